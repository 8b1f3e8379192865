"""The main job on real data, with fewer workers than on show: every promise kept, and nobody left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from dibs import SettingsError
from dibs.demo import INTERRUPTED, WRONG_USAGE, run_demo
from dibs.demo.crew import Strike
from dibs.demo.journal import Entry
from dibs.demo.plan import KILLED_ON, STOPPED_ON, TASKS, order_of
from dibs.demo.tally import tally

WORKERS = 4
STOPS_WITHIN_S = 30.0


def command(store: Path, as_json: bool) -> list[str]:
    """A process of its own, because the demo has a server of processes that lives as long as its parent."""
    call = f"run_demo(store={str(store)!r}, s3=False, as_json={as_json}, workers={WORKERS})"
    return [sys.executable, "-c", f"import sys; from dibs.demo import run_demo; sys.exit({call})"]


def run(store: Path) -> dict[str, Any]:
    ran = subprocess.run(command(store, as_json=True), capture_output=True, text=True, timeout=280)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert ran.stderr == ""
    numbers: dict[str, Any] = json.loads(ran.stdout)
    return numbers


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_each_key_is_computed_once_though_one_worker_is_killed_and_one_is_stopped(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    numbers = run(tmp_path / "store")

    assert numbers["ok"] and all(numbers["checks"].values())
    assert numbers["keys"] == len(TASKS)
    assert numbers["computations"] == len(TASKS) + 2
    assert {strike["what"] for strike in numbers["strikes"]} == {"killed", "stopped"}
    takeovers = {found["what"]: found for found in numbers["takeovers"]}
    assert set(takeovers) == {"killed", "stopped"} and len(numbers["takeovers"]) == 2
    assert all(found["by"] != found["victim"] for found in takeovers.values())
    assert [late["how"] for late in numbers["late_commits"]] == ["adopted"]
    assert numbers["runs"]["first"]["waits"] >= 2
    assert numbers["runs"]["second"]["computations"] == 0
    assert numbers["runs"]["second"]["hits"] == WORKERS * len(TASKS)
    assert numbers["runs"]["without"]["computations"] == WORKERS * len(TASKS)
    assert set(numbers["best"]) == {task.family for task in TASKS.values() if task.family}

    again = run(tmp_path / "store")

    assert again["computations"] == 0 and again["strikes"] == []
    assert again["runs"]["first"] is None and again["runs"]["without"] is None
    assert again["runs"]["second"]["hits"] == WORKERS * len(TASKS)
    assert again["best"] == numbers["best"]


@pytest.mark.slow
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, INTERRUPTED), (signal.SIGTERM, 128 + signal.SIGTERM)])
def test_an_interrupted_demo_leaves_no_process_behind(tmp_path: Path, number: int, status: int) -> None:
    pytest.importorskip("sklearn")
    # The environment marks all its processes, also those that have lost their parents.
    mark = f"{tmp_path}/mark"
    with subprocess.Popen(
        command(tmp_path / "store", as_json=False),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "DIBS_RUNTIME_DIR": mark},
    ) as demo:
        assert demo.stdout is not None
        assert any(b"stopped" in line for line in demo.stdout), "nobody was ever stopped"
        assert len(marked(mark)) > WORKERS

        demo.send_signal(number)

        assert demo.wait(STOPS_WITHIN_S) == status
    give_up_at = time.monotonic() + STOPS_WITHIN_S
    while marked(mark) and time.monotonic() < give_up_at:  # the server of processes follows its parent
        time.sleep(0.05)
    assert marked(mark) == []


def marked(mark: str) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("DIBS_RUNTIME_DIR") == mark and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            continue
    return found


def test_workers_ask_for_all_keys_in_different_orders() -> None:
    orders = [order_of(worker) for worker in range(1, 9)]

    assert all(sorted(order) == sorted(TASKS) for order in orders)
    assert len({tuple(order) for order in orders}) == 8


def test_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "sklearn", None)

    assert run_demo(None, s3=False, as_json=False) == WRONG_USAGE
    assert "pip install 'dibs[demo]'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("store", "s3", "workers", "complaint"),
    [("./there", True, 8, "--store"), (None, False, 2, "2 workers"), (None, False, 65, "65 workers")],
)
def test_it_refuses_what_makes_no_sense(
    store: str | None, s3: bool, workers: int, complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("sklearn")
    assert run_demo(store, s3, as_json=False, workers=workers) == WRONG_USAGE
    assert complaint in capsys.readouterr().err


@pytest.mark.parametrize("variable", ["DIBS_DISABLE", "DIBS_READ_ONLY"])
def test_it_refuses_a_cache_that_keeps_nothing(variable: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("sklearn")
    monkeypatch.setenv(variable, "1")
    with pytest.raises(SettingsError, match=variable):
        run_demo(str(tmp_path / "store"), s3=False, as_json=True)


# --- the verdicts see broken promises -------------------------------------------------------------------


def healthy() -> tuple[list[Entry], dict[str, Strike]]:
    """What three workers write when all is well: 1 is killed, 2 is stopped and 3 takes over from both."""
    strikes = {
        KILLED_ON: Strike("killed", KILLED_ON, 1, 10.0),
        STOPPED_ON: Strike("stopped", STOPPED_ON, 2, 11.0, 16.0),
    }
    entries = [Entry("first", 1, 1.0, 0.0, "begins", KILLED_ON), Entry("first", 2, 1.0, 0.0, "begins", STOPPED_ON)]
    for key in strikes:
        entries.append(Entry("first", 3, 12.0, 0.0, "taken over", key, 1.0, "from elsewhere"))
    entries += [Entry("first", 3, 13.0, 1.0, "begins", key) for key in TASKS]
    entries.append(Entry("first", 2, 17.0, 1.0, "adopted", STOPPED_ON))
    for run_name, kind in (("first", "got: waited"), ("again", "got: hit"), ("without", "got: computed")):
        entries += [Entry(run_name, n, 20.0, 2.0, kind, key, 0.5, "0.9") for n in (1, 2, 3) for key in TASKS]
    return entries, strikes


def broken(entries: list[Entry], strikes: dict[str, Strike]) -> list[str]:
    return [sentence.split()[0] for sentence, kept in tally(entries, strikes, workers=3).checks.items() if not kept]


def test_the_verdicts_pass_what_is_well_and_count_it() -> None:
    entries, strikes = healthy()
    numbers = tally(entries, strikes, workers=3)

    assert broken(entries, strikes) == [] and numbers.ok
    assert {found.what: found.delay_s for found in numbers.takeovers} == {"killed": 2.0, "stopped": 1.0}
    assert numbers.first is not None and numbers.first.computations == len(TASKS) + 2
    assert numbers.first.waits == 3 * len(TASKS) and numbers.first.waited_s == 1.5 * len(TASKS)


SOME = next(key for key, task in TASKS.items() if task.family)


@pytest.mark.parametrize(
    ("planted", "found"),
    [
        (Entry("first", 1, 18.0, 2.0, "begins", SOME), "every"),
        (Entry("first", 1, 18.0, 2.0, "taken over", SOME), "exactly"),
        (Entry("first", 1, 18.0, 2.0, "got: hit", SOME, 0.0, "0.8"), "all"),
        (Entry("again", 1, 21.0, 2.0, "begins", SOME), "the"),
        (Entry("without", 1, 21.0, 2.0, "got: computed", SOME, 0.0, "0.8"), "the"),
    ],
)
def test_the_verdicts_see_a_broken_promise(planted: Entry, found: str) -> None:
    entries, strikes = healthy()

    assert broken([*entries, planted], strikes) == [found]


def test_the_verdicts_see_a_late_commit_that_was_published() -> None:
    entries, strikes = healthy()
    late = [entry._replace(kind="committed") if entry.kind == "adopted" else entry for entry in entries]

    assert broken(late, strikes) == ["the"]


def test_the_verdicts_see_a_worker_without_an_answer() -> None:
    entries, strikes = healthy()

    assert broken([e for e in entries if (e.run, e.worker, e.key) != ("again", 3, SOME)], strikes) == ["all"]
