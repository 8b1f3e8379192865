"""The real code in the simulator: it keeps its promises there, and verdicts see when it is made to break them."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from time import process_time
from typing import Any

import pytest

pytest.importorskip("greenlet")

from dibs import cell, cells, contend, hold, liveness, record, values
from dibs.cell import Cell
from dibs.cells import Cells, Seen
from dibs.testing.simulator import History, Rates, Settings, Strikes, World, drawn, simulate
from dibs.testing.simulator.settings import WORKLOADS
from dibs.testing.verdicts import VERDICTS, violations

SEEDS = range(10)


def told(seed: int, **fixed: Any) -> History:
    return World(seed, drawn(seed, **fixed)).run()


@pytest.mark.parametrize("workload", WORKLOADS)
@pytest.mark.parametrize("seed", SEEDS)
def test_a_drawn_world_keeps_every_promise(workload: str, seed: int) -> None:
    found = violations(told(seed, workload=workload))
    assert found == [], f"dibs simulate --seed {seed} (workload={workload!r})"


@pytest.mark.parametrize("workload", WORKLOADS)
def test_without_faults_each_key_is_computed_once_and_nothing_is_lost(workload: str) -> None:
    for seed in SEEDS:
        calm = replace(drawn(seed, workload=workload), rates=Rates(), strikes=Strikes())
        history = World(seed, calm).run()
        assert violations(history) == []
        assert list(history.of("lost", "killed", "fault")) == []


REPLAY = """
from dibs.testing.simulator import simulate
for workload in ("compute_once", "relay", "recompute"):
    simulate(range(4), history=True, workload=workload)
"""


def test_the_real_code_tells_the_same_history_under_any_hash_seed() -> None:
    def replayed(hash_seed: str) -> bytes:
        environ = {**os.environ, "PYTHONHASHSEED": hash_seed}
        return subprocess.run([sys.executable, "-c", REPLAY], env=environ, capture_output=True, check=True).stdout

    first = replayed("1")
    assert len(first) > 100_000
    assert replayed("2") == first


def test_the_same_seed_tells_the_same_history_twice_in_one_process() -> None:
    for workload in WORKLOADS:
        for seed in range(5):
            assert list(told(seed, workload=workload).lines()) == list(told(seed, workload=workload).lines())


def test_worlds_meet_every_kind_of_fault_and_of_event() -> None:
    counted: dict[str, int] = {}
    for workload in WORKLOADS:
        for seed in range(40):
            for what, number in told(seed, workload=workload).counts().items():
                counted[what] = counted.get(what, 0) + number
    for what in (
        "fault: lost", "fault: answer lost", "fault: ghost", "fault: duplicate", "fault: refused", "fault: slow",
        "killed: kill", "killed: at request", "killed: reboot", "asked to end", "paused", "suspended", "cut off",
        "outage", "clock stepped", "event: taken over", "event: waited", "event: refused", "event: lost", "failed",
        "fenced off", "lost",
    ):  # fmt: skip
        assert counted.get(what, 0) > 0, f"no world of these ever met {what!r}: {counted}"


def test_worlds_run_fast_enough_to_be_run_by_the_thousand() -> None:
    settings = replace(drawn(2), workload="compute_once", workers=6, keys=8, duration_s=600.0)
    began = process_time()
    for seed in range(20):
        World(seed, settings).run()
    assert 20 / (process_time() - began) > 10


# --- planted bugs ---------------------------------------------------------------------------------------

Plant = Callable[[pytest.MonkeyPatch], None]


def takes_over_too_early(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(liveness, "SILENCE_PER_TTL", 0.3)


def trusts_its_hold_too_long(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(liveness, "TRUST_PER_TTL", 3.0)


def never_takes_over(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(contend, "judge", lambda *_: liveness.Verdict("alive", "always"))


def ignores_proof_of_death(patch: pytest.MonkeyPatch) -> None:
    judge = liveness.judge
    patch.setattr(contend, "judge", lambda there, evidence, *rest: judge(there, evidence._replace(dead=None), *rest))


def commits_into_a_later_epoch(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(cell, "may_commit", lambda there, *_: cell.current(there) is None)


def forgets_within_the_epoch(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(cell, "forget", lambda there, *_: there._replace(hold=None, value=None, failures=None))


def releases_to_generation_0(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(cell, "release", lambda there, *_: there._replace(hold=None, generation=0))


def repeats_attempts(patch: pytest.MonkeyPatch) -> None:
    encode = record.encode
    patch.setattr(cells, "encode", lambda there, attempt: encode(there, "0" * 16))


def takes_unknown_for_done(patch: pytest.MonkeyPatch) -> None:
    def settle(self: Cells, name: str, seen: Seen, there: Cell, attempt: str, *_: Any) -> Seen:
        return Seen(there, seen.version, attempt)

    patch.setattr(Cells, "_settle", settle)


def names_a_blob_before_it_is_there(patch: pytest.MonkeyPatch) -> None:
    class Later:
        def __init__(self, blobs: Any, start: Any) -> None:
            self.blobs, self.start = blobs, start

        def upload(self, name: str, source: io.BytesIO) -> None:
            self.start(lambda: self.blobs.upload(name, source), "upload")

        def __getattr__(self, name: str) -> Any:
            return getattr(self.blobs, name)

    init = values.Values.__init__

    def planted(self: Any, there: Cells, backend: Any, *rest: Any) -> None:
        init(self, there, Later(backend, there.runtime.start), *rest)  # type: ignore[arg-type]

    patch.setattr(values.Values, "__init__", planted)


def holders_never_beat(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(hold.LiveHold, "keep", lambda self: 1e6)


def never_lets_a_value_expire(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(values.Values, "fresh", lambda self, seen: cell.current(seen.cell))


def compares_clocks_of_two_machines(patch: pytest.MonkeyPatch) -> None:
    def age_s(self: Any, seen: Seen) -> float:
        assert seen.cell.value is not None
        return max(float(self._runtime.wall() - seen.cell.value.at), 0.0)

    patch.setattr(values.Values, "age_s", age_s)


PLANTED: list[tuple[Plant, str]] = [
    (takes_over_too_early, "nobody_is_taken_over_while_it_lives"),
    (trusts_its_hold_too_long, "holds_never_overlap"),
    (never_takes_over, "every_wait_ended"),
    (ignores_proof_of_death, "the_dead_are_replaced_soon"),
    (commits_into_a_later_epoch, "one_commit_per_epoch"),
    (forgets_within_the_epoch, "one_commit_per_epoch"),
    (releases_to_generation_0, "numbers_never_go_back"),
    (repeats_attempts, "numbers_never_go_back"),
    (takes_unknown_for_done, "each_hold_computes_once"),
    (names_a_blob_before_it_is_there, "one_commit_per_epoch"),
    (never_lets_a_value_expire, "readers_see_what_was_published"),
    (compares_clocks_of_two_machines, "no_value_is_replaced_unasked"),
    (holders_never_beat, "each_hold_computes_once"),
]


@pytest.mark.parametrize(("plant", "verdict"), PLANTED, ids=lambda thing: getattr(thing, "__name__", None))
def test_a_planted_bug_is_found(plant: Plant, verdict: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert verdict in {known.__name__ for known in VERDICTS}
    plant(monkeypatch)
    for seed in range(400):
        if any(found.startswith(f"{verdict}:") for found in violations(told(seed))):
            return
    pytest.fail("400 worlds, and nobody noticed")


# --- the entry ------------------------------------------------------------------------------------------


def test_simulate_counts_failures_and_says_how_to_replay_them(monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.StringIO()
    assert simulate(range(3), out=out) == 0
    assert out.getvalue().startswith("3 worlds, 0 broke a promise")
    releases_to_generation_0(monkeypatch)
    out = io.StringIO()
    assert simulate([3], out=out, workload="relay") == 1
    assert "replay: dibs simulate --seed 3 --workload relay --history" in out.getvalue()


def test_a_world_without_greenlet_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "greenlet", None)
    with pytest.raises(ValueError, match=r"pip install 'dibs\[simulate\]'"):
        World(1, Settings())
