"""What the journals add up to: counts, take-overs, savings, and whether every promise was kept.  Pure."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

from dibs.demo.crew import Strike
from dibs.demo.journal import Entry
from dibs.demo.plan import TASKS
from dibs.stats import GRAMS_PER_KWH, WATTS_PER_CORE, grams_of_co2

SAME_SCORE: Final = 0.005
"""Accuracies of the same work may differ so much (numeric libraries round differently by memory alignment)."""


class TakeOver(NamedTuple):
    """`delay_s` counts from the strike to the new holder's claim."""

    key: str
    what: str
    victim: int
    by: int
    delay_s: float


class LateCommit(NamedTuple):
    """What became of the value of a worker that was stopped and woken: adopted means it took the other's."""

    key: str
    worker: int
    how: str
    after_s: float


class Run(NamedTuple):
    """One run of all workers through all keys."""

    wall_s: float
    cpu_s: float
    computations: int
    hits: int
    waits: int
    waited_s: float


class Tally(NamedTuple):
    """The numbers of the whole demo; a run that didn't take place is None."""

    first: Run | None
    again: Run
    without: Run | None
    per_key: dict[str, int]
    strikes: list[Strike]
    takeovers: list[TakeOver]
    late_commits: list[LateCommit]
    best: dict[str, tuple[float, str]]
    checks: dict[str, bool]

    @property
    def ok(self) -> bool:
        return all(self.checks.values())

    @property
    def saved_cpu_s(self) -> float:
        """CPU seconds that the cache saved in the first run, both sides measured."""
        return self.without.cpu_s - self.first.cpu_s if self.without and self.first else 0.0


def tally(entries: Sequence[Entry], strikes: Mapping[str, Strike], workers: int) -> Tally:
    """Add up the entries of all runs."""
    first, again, without = (_run([e for e in entries if e.run == name]) for name in ("first", "again", "without"))
    assert again is not None
    began = [entry for entry in entries if entry.run == "first" and entry.kind == "begins"]
    per_key = dict(Counter(entry.key for entry in began))
    takeovers = _takeovers(entries, strikes)
    late_commits = _late_commits(entries, strikes)
    checks: dict[str, bool] = {}
    if first is not None:
        struck = Counter(strike.key for strike in strikes.values())
        expected = {key: 1 + struck[key] for key in TASKS}
        checks["every key was computed once, and once more for the killed and for the stopped worker"] = (
            per_key == expected and len(strikes) == 2
        )
        checks["exactly one worker took over from each of them"] = (
            sorted(found.key for found in takeovers if found.victim) == sorted(strikes) and len(takeovers) == 2
        )
        stopped = {strike.key for strike in strikes.values() if strike.what == "stopped"}
        checks["the late commit of the woken worker changed nothing"] = {late.key for late in late_commits} == stopped
    checks["all workers got the same answer for each key"] = _agree(entries, workers)
    checks["the second run computed nothing"] = again.computations == 0
    if without is not None:
        checks["the scores are those of the run without dibs"] = _same_scores(entries)
    return Tally(
        first, again, without, per_key, list(strikes.values()), takeovers, late_commits, _best(entries), checks
    )


def _run(entries: Sequence[Entry]) -> Run | None:
    if not entries:
        return None
    used: defaultdict[int, list[float]] = defaultdict(list)
    for entry in entries:
        used[entry.worker].append(entry.cpu_s)
    kinds = Counter(entry.kind for entry in entries)
    times = [entry.at for entry in entries]
    return Run(
        max(times) - min(times),
        sum(max(cpu_s) - min(cpu_s) for cpu_s in used.values()),
        kinds["begins"],
        kinds["got: hit"],
        kinds["got: waited"],
        sum(entry.seconds for entry in entries if entry.kind == "got: waited"),
    )


def _takeovers(entries: Sequence[Entry], strikes: Mapping[str, Strike]) -> list[TakeOver]:
    """Those after a strike, and, with no victim, those that nobody provoked."""
    found = []
    for entry in entries:
        if entry.kind != "taken over":
            continue
        strike = strikes.get(entry.key)
        if strike is None or entry.at < strike.at:
            found.append(TakeOver(entry.key, entry.detail, 0, entry.worker, entry.seconds))
        else:
            found.append(TakeOver(entry.key, strike.what, strike.worker, entry.worker, entry.at - strike.at))
    return found


def _late_commits(entries: Sequence[Entry], strikes: Mapping[str, Strike]) -> list[LateCommit]:
    return [
        LateCommit(entry.key, entry.worker, entry.kind, entry.at - strike.woken_at)
        for entry in entries
        if entry.kind in ("adopted", "refused")
        and (strike := strikes.get(entry.key)) is not None
        and strike.what == "stopped"
        and strike.worker == entry.worker
    ]


def _answers(entries: Sequence[Entry], *runs: str) -> dict[str, list[str]]:
    answers: defaultdict[str, list[str]] = defaultdict(list)
    for entry in entries:
        if entry.kind.startswith("got: ") and entry.run in runs:
            answers[entry.key].append(entry.detail)
    return dict(answers)


def _agree(entries: Sequence[Entry], workers: int) -> bool:
    """True when each worker got each key in the last run, and all answers of all runs with a cache are equal."""
    answers, last = _answers(entries, "first", "again"), _answers(entries, "again")
    return all(len(last.get(key, [])) == workers and len(set(answers[key])) == 1 for key in TASKS)


def _same_scores(entries: Sequence[Entry]) -> bool:
    with_dibs, without = _answers(entries, "again"), _answers(entries, "without")
    return all(
        abs(float(answer) - float(with_dibs[task.key][0])) <= SAME_SCORE
        for task in TASKS.values()
        if task.family
        for answer in without[task.key]
    )


def _best(entries: Sequence[Entry]) -> dict[str, tuple[float, str]]:
    """The best accuracy of each family of classifiers, and its key."""
    best: dict[str, tuple[float, str]] = {}
    for key, answers in _answers(entries, "again").items():
        family = TASKS[key].family
        if family:
            best[family] = max(best.get(family, (0.0, "")), (float(answers[0]), key))
    return dict(sorted(best.items()))


def as_json(numbers: Tally, workers: int, url: str, ttl_s: float) -> dict[str, Any]:
    """All numbers as one JSON object."""
    runs = {"first": numbers.first, "second": numbers.again, "without": numbers.without}
    first = numbers.first
    return {
        "ok": numbers.ok,
        "checks": numbers.checks,
        "store": url,
        "workers": workers,
        "ttl_s": ttl_s,
        "keys": len(TASKS),
        "computations": first.computations if first else 0,
        "computations_per_key": dict(sorted(numbers.per_key.items())),
        "strikes": [{"what": s.what, "key": s.key, "worker": s.worker} for s in numbers.strikes],
        "takeovers": [t._asdict() for t in numbers.takeovers],
        "late_commits": [late._asdict() for late in numbers.late_commits],
        "runs": {name: run._asdict() if run else None for name, run in runs.items()},
        "best": {family: {"accuracy": best, "key": key} for family, (best, key) in numbers.best.items()},
        "saved": {
            "wall_s": numbers.without.wall_s - first.wall_s if numbers.without and first else 0.0,
            "cpu_hours": numbers.saved_cpu_s / 3600,
            "co2_g": grams_of_co2(numbers.saved_cpu_s),
            "watts_per_core": WATTS_PER_CORE,
            "g_per_kwh": GRAMS_PER_KWH,
        },
    }
