"""`dibs doctor [URL]`: print what the doctor finds."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from dibs.cli.opening import wanted
from dibs.cli.printing import Out, shown, time_words

if TYPE_CHECKING:
    from dibs.cli.parser import Commands
    from dibs.doctor import Check, Latency, Report


def add(commands: Commands, shared: argparse.ArgumentParser) -> None:
    parser = commands.add_parser(
        "doctor",
        parents=[shared],
        help="can this store coordinate workers? conformance, races, latency",
        description="Examine a store in a scratch place below it, and clean up: does it keep its word, also in races? "
        "How fast is it, and which ttl_s fits it?",
        epilog="exit status: 0 healthy; 1 a check failed; 3 the store lies, lacks something, or can't be reached",
    )
    parser.add_argument("url", nargs="?", metavar="URL", help="the store (default: as --store)")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace, out: Out) -> int:
    from dibs.doctor import examine
    from dibs.runtime.system import system

    if options.url is not None:
        options.store = options.url
    url, _ = wanted(options)
    report = examine(url, system(), None if out.json else lambda check: _print_check(check, out))
    if out.json:
        out.data({**_plain(report), "healthy": report.status == 0})
    else:
        _print_summary(report, out)
    return report.status


def _plain(report: Report) -> dict[str, object]:
    plain = report._asdict()
    plain["checks"] = [check._asdict() for check in report.checks]
    for name in ("read", "swap"):
        latency: Latency | None = getattr(report, name)
        plain[name] = None if latency is None else latency._asdict()
    return plain


def _print_check(check: Check, out: Out) -> None:
    detail = f": {shown(check.detail)}" if check.detail else ""
    out.line(f"{out.state(check.verdict, 7)}  {check.name}{detail}")


def _print_summary(report: Report, out: Out) -> None:
    out.line()
    out.line(f"{out.paint('bold', shown(report.url))}{' (' + shown(report.server) + ')' if report.server else ''}")
    for what, latency in (("read", report.read), ("swap", report.swap)):
        if latency is not None:
            out.line(f"{what}: p50 {time_words(latency.p50_s)}, p95 {time_words(latency.p95_s)}")
    if report.clock_ahead_s is not None:
        side = "ahead of" if report.clock_ahead_s >= 0 else "behind"
        out.line(
            f"clock: {time_words(abs(report.clock_ahead_s))} {side} the server's, to about a second "
            "(dibs compares no clocks; servers refuse requests that are signed a quarter of an hour off)"
        )
    if report.ttl_s is not None:
        out.line(f"suggested ttl_s: {report.ttl_s:g} ({report.why_ttl})")
    if report.status == 0:
        out.line(out.paint("green", "healthy: workers can rely on this store"))
    elif report.refused:
        out.line(out.paint("red", "refused: workers can't rely on this store"))
    else:
        failed = sum(check.verdict == "failed" for check in report.checks)
        out.line(out.paint("red", f"{failed} of {len(report.checks)} checks failed"))
