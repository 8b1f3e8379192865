"""Where settings come from, which one wins, and what is said about a wrong one."""

from __future__ import annotations

import contextlib
import copy
import pickle
import re
from pathlib import Path
from typing import Any

import pytest

import dibs
from dibs.cache import _reopened
from dibs.errors import SettingsError, StoreUnavailable
from dibs.settings import Settings, check_terms, gather
from dibs.stores.memory import MemoryStore
from tests.fakes import Counted, FaultyStore, HandRuntime, crowd


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory, so that no file of this project counts."""
    monkeypatch.chdir(tmp_path)
    for name in ("DIBS_URL", "DIBS_TTL_S", "DIBS_DISABLE", "DIBS_READ_ONLY"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, "utf-8")
    return path


def test_without_anything_the_defaults_hold() -> None:
    assert gather({}, {}) == (None, Settings())
    assert Settings().beat == 10.0


def test_arguments_win_over_variables_over_dibs_toml_over_pyproject(elsewhere: Path) -> None:
    write(elsewhere / "pyproject.toml", "[tool.dibs]\nttl_s = 1.0")
    assert gather({}, {})[1].ttl_s == 1.0
    write(elsewhere / "dibs.toml", "ttl_s = 2.0")
    assert gather({}, {})[1].ttl_s == 2.0
    assert gather({}, {"DIBS_TTL_S": "3"})[1].ttl_s == 3.0
    assert gather({"ttl_s": 4.0}, {"DIBS_TTL_S": "3"})[1].ttl_s == 4.0


def test_the_nearest_file_at_or_above_the_working_directory_counts(
    elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(elsewhere / "dibs.toml", "ttl_s = 2.0")
    inner = write(elsewhere / "a/b/pyproject.toml", "[tool.other]\nx = 1").parent
    monkeypatch.chdir(inner)
    assert gather({}, {})[1].ttl_s == 2.0, "a pyproject.toml without [tool.dibs] is passed by"
    write(elsewhere / "a/pyproject.toml", "[tool.dibs]\nttl_s = 5.0")
    assert gather({}, {})[1].ttl_s == 5.0


def test_the_url_comes_from_the_same_places(elsewhere: Path) -> None:
    write(elsewhere / "dibs.toml", 'url = "./there"')
    assert gather({}, {})[0] == f"{elsewhere}/./there"
    assert gather({}, {"DIBS_URL": "memory:"})[0] == "memory:"
    assert gather({"url": "./here"}, {"DIBS_URL": "memory:"})[0] == "./here"


@pytest.mark.parametrize("name", ["dibs.toml", "pyproject.toml"])
def test_a_relative_url_of_a_file_counts_from_the_file_and_others_from_the_working_directory(
    elsewhere: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    head = "[tool.dibs]\n" if name == "pyproject.toml" else ""
    file = write(elsewhere / "project" / name, head + 'url = "shared/cache"')
    below = elsewhere / "project" / "deep"
    below.mkdir()
    monkeypatch.chdir(below)
    with dibs.open() as cache:
        assert cache.url == f"file://{elsewhere}/project/shared/cache"
    monkeypatch.setenv("DIBS_URL", "near")
    with dibs.open() as cache:
        assert cache.url == f"file://{below}/near"
    assert not (below / "shared").exists()
    for url in ("s3://bucket/x", "memory:", "/absolute"):
        write(file, f"{head}url = '{url}'")
        assert gather({}, {})[0] == url
    write(file, f"{head}url = 's3:/bucket'")
    with pytest.raises(SettingsError, match=re.escape(str(file))):
        gather({}, {})


@pytest.mark.parametrize(
    ("variables", "field", "expected"),
    [
        ({"DIBS_WAIT_S": "none"}, "wait_s", None),
        ({"DIBS_WAIT_S": ""}, "wait_s", None),
        ({"DIBS_HOLD_MAX_S": "1e3"}, "hold_max_s", 1000.0),
        ({"DIBS_FAILURES_MAX": "7"}, "failures_max", 7),
        ({"DIBS_DISABLE": "1"}, "disable", True),
        ({"DIBS_DISABLE": "0"}, "disable", False),
        ({"DIBS_READ_ONLY": "Yes"}, "read_only", True),
        ({"DIBS_ALLOW_PICKLE": "off"}, "allow_pickle", False),
        ({"DIBS_HEARTBEAT": "manual"}, "heartbeat", "manual"),
        ({"DIBS_ON_UNAVAILABLE": "compute"}, "on_unavailable", "compute"),
    ],
)
def test_variables_are_read_as_the_type_of_their_setting(variables: dict[str, str], field: str, expected: Any) -> None:
    assert getattr(gather({}, variables)[1], field) == expected


WRONG = [
    ("ttl", 5), ("ttl_s", "5"), ("ttl_s", True), ("ttl_s", None), ("ttl_s", -1.0), ("ttl_s", float("nan")),
    ("ttl_s", float("inf")), ("wait_s", -1), ("failures_max", 0), ("failures_max", 1.5), ("failures_max", True),
    ("deaths_max", "3"), ("read_only", "yes"), ("read_only", None), ("disable", 1), ("allow_pickle", "maybe"),
    ("heartbeat", "fork"), ("on_unavailable", "ignore"), ("retry_after_s", None),
    ("local", "auto"), ("fresh_s", 60.0), ("values", "./v"), ("hold_max_s", 0), ("url", 5),
    ("codec", ""), ("codec", None), ("secret", "short"), ("secret", []), ("secret", 5),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value"), WRONG)
def test_a_wrong_argument_is_an_error_that_names_it_and_says_that_it_is_an_argument(name: str, value: Any) -> None:
    with pytest.raises(SettingsError, match=rf"\b{name}\b") as caught:
        gather({name: value}, {})
    assert isinstance(caught.value, ValueError)
    assert "argument" in str(caught.value) or name == "hold_max_s"


@pytest.mark.parametrize(
    ("variable", "text"),
    [
        ("DIBS_TTL_S", "soon"), ("DIBS_TTL_S", "nan"), ("DIBS_TTL_S", "-1"), ("DIBS_FAILURES_MAX", "1.5"),
        ("DIBS_DISABLE", "perhaps"), ("DIBS_READONLY", "1"), ("DIBS_HEARTBEAT", "x"), ("DIBS_FRESH_S", "60"),
    ],
)  # fmt: skip
def test_a_wrong_variable_is_an_error_that_says_that_it_is_a_variable(variable: str, text: str) -> None:
    name = variable.removeprefix("DIBS_")
    with pytest.raises(SettingsError, match=re.compile(name, re.IGNORECASE)) as caught:
        gather({}, {variable: text})
    assert re.search("environment|DIBS_", str(caught.value))


@pytest.mark.parametrize("text", ["ttl = 5", 'ttl_s = "5"', "ttl_s = true", "not toml", "[dibs]\nttl_s = 5"])
def test_a_wrong_line_of_dibs_toml_is_an_error_that_names_the_file(elsewhere: Path, text: str) -> None:
    path = write(elsewhere / "dibs.toml", text)
    with pytest.raises(SettingsError, match=re.escape(str(path))):
        gather({}, {})


def test_a_broken_pyproject_is_somebody_elses_business(elsewhere: Path) -> None:
    write(elsewhere / "pyproject.toml", "not toml")
    assert gather({}, {}) == (None, Settings())


@pytest.mark.parametrize("text", ["[tool]\ndibs = 3", "tool = 3"])
def test_a_pyproject_whose_tool_is_no_table_is_no_crash(elsewhere: Path, text: str) -> None:
    write(elsewhere / "pyproject.toml", text)
    with contextlib.suppress(SettingsError):
        gather({}, {})


def test_a_secret_is_never_printed() -> None:
    with pytest.raises(SettingsError) as caught:
        gather({}, {"DIBS_SECRET": "hunter2"})
    assert "secret" in str(caught.value)
    assert "hunter2" not in str(caught.value)
    _, settings = gather({"secret": ["new-" + "s" * 20, "old-" + "s" * 20]}, {})
    assert "sss" not in repr(settings)
    assert settings.secret is not None
    assert settings.secret.values[0].startswith(b"new-")


def test_a_secret_is_not_sent_along_with_what_is_pickled(monkeypatch: pytest.MonkeyPatch) -> None:
    _, settings = gather({"secret": "s" * 20}, {})
    sent = pickle.dumps(settings)
    assert b"sss" not in sent
    monkeypatch.delenv("DIBS_SECRET", raising=False)
    with pytest.raises(SettingsError, match="DIBS_SECRET"):
        pickle.loads(sent)
    monkeypatch.setenv("DIBS_SECRET", "t" * 20 + " " + "s" * 20)
    assert pickle.loads(sent).secret.values == (b"t" * 20, b"s" * 20)
    assert copy.deepcopy(settings).secret is settings.secret


@pytest.mark.parametrize(("ttl_s", "beat_s"), [(60.0, 0.0), (60.0, 20.1), (60.0, -1.0), (0.01, None), (1e9, None)])
def test_times_by_which_no_holder_could_live_are_refused(ttl_s: float, beat_s: float | None) -> None:
    with pytest.raises(SettingsError, match=r"ttl_s|beat_s"):
        check_terms(ttl_s, beat_s, None)


def test_a_third_of_the_ttl_is_the_slowest_beat() -> None:
    check_terms(60.0, 20.0, None)


def test_disable_computes_everything_and_stores_nothing(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with dibs.open("./cache") as cache:
        cache.put("key", "stored")
    monkeypatch.setenv("DIBS_DISABLE", "1")
    compute = Counted("computed")
    with dibs.open("./cache") as cache:
        assert [cache.get_or_compute("key", compute) for _ in range(3)] == ["computed"] * 3
        assert cache.get("key") is None and "key" not in cache
    assert compute.calls == 3


@pytest.mark.parametrize("where", ["./absent", "s3://bucket/x?endpoint_url=http://127.0.0.1:1", "given"])
def test_disable_leaves_the_store_alone(elsewhere: Path, where: str, caplog: pytest.LogCaptureFixture) -> None:
    given = FaultyStore(MemoryStore(HandRuntime()))
    given.down = True
    with dibs.open(given if where == "given" else where, disable=True) as opened:
        cache = opened if where == "given" else pickle.loads(pickle.dumps(opened))
        assert cache.url == {"./absent": f"file://{elsewhere}/absent", "given": given.url}.get(where, where)
        assert cache.get_or_compute("key", lambda: 1) == 1
        assert cache.memoize(abs, name="abs", version="1")(-2) == 2
        cache.put("key", 2)
        cache.forget("key")
        assert cache.get("key") is None
        assert not caplog.records
        with cache.lock("name"):
            assert crowd(1, lambda number: cache.try_lock("name")) == [None]
        assert "this process only" in caplog.text
        cache.close()
    assert not list(elsewhere.iterdir())
    assert given.sent == given.reads == 0


def test_disable_reaches_the_block_form_too() -> None:
    with dibs.open("memory:", disable=True) as cache:
        cache.put("key", "stored")
        with cache.once("key") as slot:
            assert not slot.done


def test_read_only_reads_and_computes_but_never_writes(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with dibs.open("./cache") as cache:
        cache.put("key", "stored")

    def contents() -> dict[str, bytes]:
        files = (path for path in (elsewhere / "cache/records").rglob("*") if path.is_file())
        return {str(path): path.read_bytes() for path in files}

    before = contents()
    monkeypatch.setenv("DIBS_READ_ONLY", "1")
    compute = Counted("computed")
    with dibs.open("./cache") as cache:
        assert cache.get_or_compute("key", compute) == "stored"
        assert cache.get_or_compute("other", compute) == "computed"
        assert cache.recompute("key", compute) == "computed"
        for refused in (
            lambda: cache.put("key", "x"), lambda: cache.forget("key"), lambda: cache.lock("x"),
            lambda: cache.try_lock("x"), lambda: cache.once("key"),
        ):  # fmt: skip
            with pytest.raises(SettingsError, match="read_only"):
                refused()
    assert contents() == before


def test_read_only_makes_no_folder(elsewhere: Path) -> None:
    with pytest.raises(StoreUnavailable, match=re.escape(f"there is no cache at {elsewhere}/absent")):
        dibs.open("./absent", read_only=True)
    with pytest.raises(StoreUnavailable, match="there is no cache"):
        _reopened(f"file://{elsewhere}/absent", Settings(read_only=True))
    assert not (elsewhere / "absent").exists()


@pytest.mark.parametrize("arguments", [{"wait_s": -1}, {"wait_s": float("nan")}, {"expires_s": -1}])
def test_wrong_times_of_one_call_are_errors_too(arguments: dict[str, float]) -> None:
    with dibs.open("memory:") as cache, pytest.raises(SettingsError, match=next(iter(arguments))):
        cache.get_or_compute("key", Counted(), **arguments)


@pytest.mark.parametrize("key", ["x" * 4097, "\ud800", object(), (n for n in ())])
def test_a_key_that_is_too_long_or_has_no_digest_is_an_error(key: Any) -> None:
    with dibs.open("memory:") as cache, pytest.raises((SettingsError, dibs.Undigestible), match="key"):
        cache.get_or_compute(key, Counted())
