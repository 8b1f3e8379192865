"""`dibs demo`: the main job on real data."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from dibs.cli.printing import Out

if TYPE_CHECKING:
    from dibs.cli.parser import Commands


def add(commands: Commands, shared: argparse.ArgumentParser) -> None:
    parser = commands.add_parser(
        "demo",
        parents=[shared],
        help="the main job on real data, on this machine",
        description="A pool of workers on real data; one is killed on the way, one is stopped and woken too late.",
    )
    parser.add_argument("--s3", action="store_true", help="through an S3 server that is started for the show")
    parser.add_argument("--workers", type=int, default=8, metavar="N", help="processes (default: 8)")
    parser.add_argument("--fresh", action="store_true", help="compute again what an earlier run has left")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace, out: Out) -> int:
    from dibs.demo import run_demo

    return run_demo(options.store, options.s3, as_json=out.json, workers=options.workers, fresh=options.fresh)
