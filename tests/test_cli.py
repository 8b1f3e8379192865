"""The command line, in this process: what it prints, and how it says how it went."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import dibs
from dibs.cli import main
from dibs.names import KEYS, record_name

LOOKING = (["ls"], ["ls", "-l"], ["show", "text"], ["status"], ["stats"], ["locks"])
ON_EXISTING_CACHES = (*LOOKING, ["forget", "text"], ["unlock", "deploy", "--yes"])


@pytest.fixture(autouse=True)
def _nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No settings but the test's own."""
    for name in [name for name in os.environ if name.startswith("DIBS_") and name != "DIBS_MINISTACK_PYTHON"]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("DIBS_RUNTIME_DIR", str(tmp_path / "runtime"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def cache(tmp_path: Path, _nowhere: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[dibs.Cache]:
    """A cache with some of everything in it."""
    monkeypatch.setenv("DIBS_URL", str(tmp_path / "cache"))
    with dibs.open() as cache:
        cache.put("text", "hello")
        cache.put("bytes", b"\0\xff" * 20_000)
        cache.put("json", {"a": [1, None]})
        cache.put("odd\n\x1b[31mkey", 1)
        cache.get_or_compute("pickle", lambda: {len})
        with pytest.raises(ZeroDivisionError):
            cache.get_or_compute("bad", lambda: 1 / 0)
        with cache.lock("deploy"):
            pass
        yield cache


class Ran:
    def __init__(self, status: int, out: str, err: str) -> None:
        self.status, self.out, self.err = status, out, err

    @property
    def data(self) -> Any:
        return json.loads(self.out)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Any:
    def run(*words: str) -> Ran:
        capsys.readouterr()
        status = main(words)
        return Ran(status, *capsys.readouterr())

    return run


# --- usage ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words",
    [[], ["run"], ["explain"], ["retag"], ["sweep", "--nonsense"], ["import"], ["show"], ["ls", "--nonsense"],
     ["lock"], ["lock", "x"], ["lock", "x", "--"], ["lock", "x", "--ttl", "soon", "--", "true"],
     ["simulate", "--seeds", "0"], ["simulate", "--workload", "nonsense"],
     ["--store", "nonsense://x", "ls"], ["--store", "memory:", "ls"]],
)  # fmt: skip
def test_wrong_usage_ends_with_2_and_a_line_on_stderr(run: Any, words: list[str]) -> None:
    ran = run(*words)
    assert ran.status == 2
    assert not ran.out
    assert "dibs" in ran.err
    assert "Traceback" not in ran.err


def test_an_impossible_setting_is_wrong_usage(run: Any, cache: dibs.Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIBS_TTL_S", "soon")
    ran = run("ls")
    assert ran.status == 2
    assert "DIBS_TTL_S" in ran.err
    monkeypatch.setenv("DIBS_TTL_S", "60")
    assert run("lock", "x", "--ttl", "0.001", "--", "true").status == 2


def test_help_is_no_error(run: Any) -> None:
    assert run("--help").status == 0
    for command in ("demo", "lock", "ls", "show", "forget", "locks", "unlock", "status", "stats", "doctor", "simulate"):
        ran = run(command, "--help")
        assert ran.status == 0
        assert "--json" in ran.out or command == "lock"


@pytest.mark.parametrize("words", ON_EXISTING_CACHES)
def test_looking_never_makes_a_cache(run: Any, tmp_path: Path, words: list[str]) -> None:
    ran = run(*words, "--store", str(tmp_path / "absent"))
    assert ran.status == 3
    assert "there is no cache at" in ran.err
    assert not (tmp_path / "absent").exists()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").touch()
    assert run("--store", str(tmp_path / "other"), *words).status == 3
    assert [path.name for path in (tmp_path / "other").iterdir()] == ["file"]


@pytest.mark.parametrize("words", LOOKING)
def test_looking_changes_nothing(run: Any, cache: dibs.Cache, tmp_path: Path, words: list[str]) -> None:
    def content() -> dict[str, bytes]:
        return {str(path): path.read_bytes() for path in (tmp_path / "cache").rglob("*") if path.is_file()}

    before = content()
    assert run(*words).status == 0
    assert content() == before


@pytest.mark.parametrize("words", [*LOOKING, ["forget", "text"]])
def test_json_may_be_asked_for_before_and_behind_the_command(run: Any, cache: dibs.Cache, words: list[str]) -> None:
    assert run("--json", *words).data is not None
    assert run(*words, "--json").data is not None


def test_the_store_may_be_named_in_three_ways(
    run: Any, cache: dibs.Cache, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    listed = run("ls").out
    monkeypatch.delenv("DIBS_URL")
    assert run("ls").status == 3, "./.dibs isn't there"
    assert run("ls", "--store", "cache").out == listed
    assert run("--store", f"file://{tmp_path}/cache", "ls").out == listed
    (tmp_path / "dibs.toml").write_text('url = "cache"\n')
    assert run("ls").out == listed


# --- keys -----------------------------------------------------------------------------------------------


def test_ls_prints_one_name_a_line_into_a_pipe(run: Any, cache: dibs.Cache) -> None:
    assert run("ls").out.splitlines() == ["bad", "bytes", "json", "odd\\n\\x1b[31mkey", "pickle", "text"]
    assert run("ls", "b").out.splitlines() == ["bad", "bytes"]
    assert run("ls", "nothing").status == 0
    assert "odd\n\x1b[31mkey" in [line["key"] for line in run("ls", "--json").data]


def test_ls_long_reads_the_records(run: Any, cache: dibs.Cache) -> None:
    lines = {line["key"]: line for line in run("ls", "-l", "--json").data}
    assert (lines["text"]["state"], lines["text"]["codec"], lines["text"]["size_bytes"]) == ("done", "str", 5)
    assert lines["bytes"]["size_bytes"] == 40_000
    assert (lines["bad"]["state"], lines["bad"]["codec"]) == ("failed", None)
    assert run("ls", "-l", "text").out.split("\t")[:3] == ["done", "str", "5 B"]


def test_show_tells_all_about_a_value(run: Any, cache: dibs.Cache) -> None:
    told = run("show", "pickle", "--json").data
    assert (told["state"], told["generation"], told["epoch"], told["hold"]) == ("done", 1, 0, None)
    assert told["value"]["codec"] == "pickle"
    assert told["value"]["current"]
    assert told["trail"] == [{"generation": 1, "claim": told["value"]["claim"], "how": "committed"}]
    text = run("show", "bytes").out
    assert "bytes, 40 kB, in the blob values/keys/bytes/" in text
    assert f"pid {os.getpid()}" in text


def test_show_tells_of_a_failure_with_its_traceback(run: Any, cache: dibs.Cache) -> None:
    ran = run("show", "bad")
    assert "ZeroDivisionError: division by zero" in ran.out
    assert "Traceback" in ran.out
    assert run("show", "bad", "--json").data["failures"]["failures"] == 1


def test_show_tells_who_computes_it_and_what_that_one_waits_for(run: Any, cache: dibs.Cache) -> None:
    with cache.once("running") as slot:
        slot.beat(progress=0.25)
        cache._heartbeat.living()[0].keep()
        ran = run("show", "running")
        assert f"pid {os.getpid()}" in ran.out
        assert "25%" in ran.out
        assert "alive" in ran.out
        told = run("show", "running", "--json").data
        assert (told["state"], told["hold"]["progress"], told["hold"]["verdict"]) == ("held", 0.25, "alive")
        assert told["hold"]["who"]["pid"] == os.getpid()
        slot.commit(1)


def test_show_prints_values_that_are_bytes_text_or_json(
    cache: dibs.Cache, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    assert main(["show", "bytes", "--value"]) == 0
    assert capfdbinary.readouterr().out == b"\0\xff" * 20_000
    assert main(["show", "text", "--value"]) == 0
    assert capfdbinary.readouterr().out == b"hello"
    assert main(["show", "json", "--value"]) == 0
    assert json.loads(capfdbinary.readouterr().out) == {"a": [1, None]}
    assert main(["show", "text", "--value", "--json"]) == 0
    assert json.loads(capfdbinary.readouterr().out) == {"key": "text", "value": "hello"}


def test_show_prints_what_json_cannot_say_as_python_would(run: Any, cache: dibs.Cache) -> None:
    cache.put("t", (1, {2}, b"x"))
    assert run("show", "t", "--value").out == "(1, {2}, b'x')\n"
    assert json.loads(run("show", "t", "--value", "--json").out)["value_repr"] == "(1, {2}, b'x')"


def test_show_loads_no_pickle_and_finds_no_value_where_none_is(run: Any, cache: dibs.Cache) -> None:
    ran = run("show", "pickle", "--value")
    assert ran.status == 1
    assert "stored as pickle" in ran.err
    assert run("show", "bad", "--value").status == 1
    ran = run("show", "nonsense")
    assert (ran.status, ran.out) == (1, "")
    assert "no key 'nonsense'" in ran.err


def test_a_damaged_record_is_shown_as_that_and_left_alone(run: Any, cache: dibs.Cache) -> None:
    (path,) = cache._store.files_of(record_name(KEYS, "text"))
    Path(path).write_bytes(b"garbage")
    ran = run("show", "text")
    assert ran.status == 0
    assert "damaged" in ran.out
    assert run("ls", "-l", "--json", "text").data[0]["state"] == "damaged"
    assert "1 damaged" in run("status").out
    assert Path(path).read_bytes() == b"garbage"


def test_forget_says_what_became_of_each_key(run: Any, cache: dibs.Cache) -> None:
    ran = run("forget", "text", "nonsense", "bad")
    assert ran.status == 1
    assert ran.out.splitlines() == ["text: forgotten", "nonsense: unknown key, nothing to forget", "bad: forgotten"]
    assert "text" not in cache
    assert run("show", "bad", "--json").data["failures"] is None
    assert run("forget", "text").status == 1, "there is nothing any more"
    assert run("forget", "json").status == 0


def test_forget_takes_a_whole_family_and_leaves_its_neighbours(run: Any, cache: dibs.Cache) -> None:
    for key in ("train.embed/1", "train.embed/2", "train.embedding/1", "train.embed"):
        cache.put(key, 1)
    ran = run("forget", "--family", "train.embed")
    assert ran.status == 0 and ran.out.splitlines() == ["train.embed/…: 2 keys forgotten"]
    assert "train.embed/1" not in cache and "train.embed/2" not in cache
    assert "train.embedding/1" in cache and "train.embed" in cache
    ran = run("forget", "--json", "--family", "absent", "train.embed")
    assert ran.status == 1
    assert [line["forgotten"] for line in json.loads(ran.out)] == [0, True]
    assert run("forget").status == 2


def test_forget_says_that_somebody_was_computing_it(run: Any, cache: dibs.Cache) -> None:
    with cache.once("running") as slot:
        ran = run("forget", "running")
        assert ran.status == 0
        assert f"pid {os.getpid()} was computing it" in ran.out
        assert slot.commit("mine") == "mine"
    assert "running" not in cache


def test_a_read_only_setting_keeps_commands_from_writing(
    run: Any, cache: dibs.Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DIBS_READ_ONLY", "1")
    assert run("forget", "text").status == 2
    assert run("unlock", "deploy", "--yes").status == 2
    assert "text" in cache
    assert run("ls").status == 0


# --- locks, status, stats -------------------------------------------------------------------------------


def test_locks_and_status_tell_who_holds_what(run: Any, cache: dibs.Cache) -> None:
    with cache.lock("deploy"), cache.once("running") as slot:
        lines = [line.split("\t") for line in run("locks").out.splitlines()]
        assert [(line[0], line[-1]) for line in lines] == [("held", "deploy")]
        assert run("locks", "--json").data[0]["pid"] == os.getpid()
        told = run("status", "--json").data
        assert {(hold["space"], hold["name"]) for hold in told["holds"]} == {("locks", "deploy"), ("keys", "running")}
        assert (told["done"], told["failed"]) == (5, 1)
        assert told["failures"][0]["key"] == "bad"
        text = run("status").out
        assert "locks/deploy" in text
        assert "bad: 1 failures" in text
        slot.commit(1)
    assert run("locks", "--json").data[0]["state"] == "free"


def test_unlock_asks_before_it_breaks_a_lock_and_says_what_it_costs(run: Any, cache: dibs.Cache) -> None:
    assert run("unlock", "deploy", "--yes").status == 1, "nobody holds it"
    assert run("unlock", "never", "--yes").status == 1
    lock = cache.lock("deploy", ttl_s=30).acquire()
    ran = run("unlock", "deploy")
    assert ran.status == 2, "not a terminal, and no --yes"
    assert "--yes" in ran.err
    lock.check()
    ran = run("unlock", "deploy", "--yes")
    assert ran.status == 0
    assert f"pid {os.getpid()}" in ran.out
    assert "within 5 s" in ran.out, "a sixth of the ttl"
    assert "two workers may run" in ran.out
    with pytest.raises(dibs.LockLost):
        lock.release()


def test_unlock_prints_json(run: Any, cache: dibs.Cache) -> None:
    assert run("unlock", "deploy", "--json").data == {"name": "deploy", "broken": False}
    cache.lock("deploy").acquire()
    assert run("unlock", "deploy", "--yes", "--json").data["broken"] is True


def test_stats_add_up_what_all_processes_did_at_stated_rates(run: Any, cache: dibs.Cache) -> None:
    cache.get("pickle")
    cache.close()
    told = run("stats", "--json", "--watts", "3600", "--grams-per-kwh", "1000").data
    assert (told["hits"], told["computed"], told["failures"]) == (1, 1, 1)
    assert told["co2_spent_g"] == pytest.approx(told["computed_s"])
    text = run("stats", "--watts", "50").out
    assert "at 50 W" in text
    assert "475 g of CO2 per kWh" in text


# --- on a terminal --------------------------------------------------------------------------------------


def on_a_terminal(words: list[str], typed: bytes = b"", **environment: str) -> tuple[int, str]:
    """Run a command in a terminal of its own; its status and all that the terminal showed."""
    ours, theirs = os.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "dibs", *words],
        stdin=theirs, stdout=theirs, stderr=theirs, env={**os.environ, "TERM": "xterm", **environment},
    ) as process:  # fmt: skip
        os.close(theirs)
        os.write(ours, typed)
        shown = b""
        while True:
            try:
                read = os.read(ours, 65536)
            except OSError:  # the other end is closed
                break
            shown += read
        os.close(ours)
    return process.returncode, shown.decode().replace("\r\n", "\n")


def test_a_terminal_gets_a_table_in_colour(cache: dibs.Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    status, shown = on_a_terminal(["ls", "-l"])
    assert status == 0
    assert "STATE" in shown
    assert "\033[32mdone" in shown
    assert "\033[31mkey" not in shown, "a key's own escape sequences don't get through"
    _, shown = on_a_terminal(["ls", "-l"], NO_COLOR="1")
    assert "\033" not in shown


def test_unlock_asks_on_a_terminal(run: Any, cache: dibs.Cache) -> None:
    lock = cache.lock("deploy").acquire()
    status, shown = on_a_terminal(["unlock", "deploy"], b"n\n")
    assert (status, "break it? [y/N]" in shown) == (1, True)
    lock.check()
    assert on_a_terminal(["unlock", "deploy"], b"y\n")[0] == 0
    with pytest.raises(dibs.LockLost):
        lock.release()


def test_a_reader_that_leaves_is_no_error(cache: dibs.Cache) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "dibs", "ls"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    process.stdout.close()
    _, complaints = process.communicate(timeout=30)
    assert (process.returncode, complaints) == (141, b"")


# --- simulate -------------------------------------------------------------------------------------------


def test_simulate_replays_a_seed_and_searches_many(run: Any) -> None:
    pytest.importorskip("greenlet")
    ran = run("simulate", "--seed", "3", "--workload", "relay")
    assert ran.status == 0
    assert "1 worlds, 0 broke a promise" in ran.out
    told = run("simulate", "--seeds", "2", "--seed", "5", "--json").data
    assert (told["seed"], told["seeds"], told["failed"]) == (5, 2, 0)
    history = run("simulate", "--seed", "3", "--history").out.splitlines()
    assert history == run("simulate", "--seed", "3", "--history").out.splitlines()
    assert all(json.loads(line) for line in history)
