"""The doctor: healthy stores pass and are left clean; liars are refused, after few requests."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

import dibs
from dibs.cli import main
from dibs.doctor import TTL_MIN_S, Check, Report, examine, suggested_ttl
from dibs.doctor.races import race
from dibs.errors import Conflict, StoreUnsuitable
from dibs.runtime import Runtime
from dibs.store import Version
from dibs.stores.memory import MemoryStore
from dibs.testing.conformance import CHECKS
from dibs.testing.proxy import FaultProxy
from dibs.testing.proxy_faults import Fault, Lie, Request
from dibs.testing.servers import Server

REQUESTS_MAX = 60


@pytest.fixture(autouse=True)
def _nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("DIBS_") and name != "DIBS_MINISTACK_PYTHON"]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


def verdicts(report: Report) -> dict[str, str]:
    return {check.name: check.verdict for check in report.checks}


# --- directories ----------------------------------------------------------------------------------------


def test_a_directory_is_healthy_and_left_as_it_was(tmp_path: Path, runtime: Runtime) -> None:
    with dibs.open(str(tmp_path / "cache")) as cache:
        cache.put("key", "value")
    before = sorted(tmp_path.rglob("*"))
    heard: list[str] = []
    report = examine(str(tmp_path / "cache"), runtime, lambda check: heard.append(check.name))
    assert report.status == 0
    assert set(verdicts(report).values()) == {"passed"}
    assert heard == list(verdicts(report))
    assert {name.replace("_", " ") for name, _ in CHECKS} < set(heard), "the whole conformance suite"
    assert report.read is not None
    assert 0 < report.read.p50_s <= report.read.p95_s
    assert report.ttl_s is not None
    assert report.ttl_s >= TTL_MIN_S
    assert sorted(tmp_path.rglob("*")) == before


def test_a_directory_that_is_not_there_is_examined_and_not_made(tmp_path: Path, runtime: Runtime) -> None:
    assert examine(f"file://{tmp_path}/not/yet/there", runtime).status == 0
    assert list(tmp_path.iterdir()) == []


def test_a_directory_that_others_may_write_is_warned_of(tmp_path: Path, runtime: Runtime) -> None:
    tmp_path.chmod(0o777)
    report = examine(str(tmp_path), runtime)
    assert verdicts(report)["the directory is private"] == "warning"
    assert report.status == 0


def test_a_damaged_card_is_refused(tmp_path: Path, runtime: Runtime) -> None:
    dibs.open(str(tmp_path / "cache")).close()
    for path in (tmp_path / "cache" / "records").rglob("card*"):
        path.write_bytes(b"garbage")
    report = examine(str(tmp_path / "cache"), runtime)
    assert report.status == 3
    assert "card" in report.refused


def test_memory_is_healthy_but_shared_with_nobody(runtime: Runtime) -> None:
    report = examine("memory:", runtime)
    assert report.status == 0
    assert verdicts(report)["shared between processes"] == "warning"


def test_the_command_prints_the_report_and_its_status(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", str(tmp_path / "cache")]) == 0
    out = capsys.readouterr().out
    assert "healthy" in out
    assert "suggested ttl_s: " in out
    assert main(["doctor", "--json", "--store", str(tmp_path / "cache")]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["healthy"] is True
    assert told["refused"] == ""
    assert {"name", "verdict", "detail"} == set(told["checks"][0])
    (tmp_path / "file").touch()
    assert main(["doctor", "file/below"]) == 3
    assert "refused" in capsys.readouterr().out
    assert main(["doctor", "nonsense://x"]) == 2


def test_the_suggested_ttl_grows_with_the_latency() -> None:
    assert suggested_ttl(0.00001)[0] == TTL_MIN_S
    assert suggested_ttl(0.15)[0] == 15
    assert suggested_ttl(0.5)[0] == 60
    assert suggested_ttl(1000.0)[0] == 3600
    assert "150 ms" in suggested_ttl(0.15)[1]


# --- races ----------------------------------------------------------------------------------------------


class Unlocked(MemoryStore):
    """Checks first and writes a moment later."""

    def swap(self, name: str, old: Version | None, new: bytes) -> Version:
        there = self.read(name)
        if (there.version if there else None) != old:  # type: ignore[union-attr]
            raise Conflict(name)
        time.sleep(0.02)  # the window
        there = self.read(name)
        return super().swap(name, there.version if there else None, new)  # type: ignore[union-attr]


def test_a_store_that_checks_and_then_writes_is_found_out_by_racing_it(runtime: Runtime) -> None:
    with pytest.raises(StoreUnsuitable, match="not atomic"):
        race(Unlocked(runtime), runtime)
    race(MemoryStore(runtime), runtime)


# --- buckets --------------------------------------------------------------------------------------------


class Counting:
    """A plan that lets everything through and counts it."""

    def __init__(self) -> None:
        self.requests = 0

    def __call__(self, request: Request) -> Fault | Lie | None:
        self.requests += 1
        return None


def url_behind(proxy: FaultProxy, server: Server, prefix: str) -> str:
    return server._replace(endpoint_urls=(proxy.endpoint_url,)).url("dibs-tests", prefix)


def objects(server: Server, prefix: str) -> list[str]:
    listed = server.client().list_objects_v2(Bucket="dibs-tests", Prefix=f"{prefix}/")
    return [found["Key"] for found in listed.get("Contents", ())]


def test_a_bucket_is_healthy_and_left_clean(ministack_server: Server, proxy: FaultProxy, runtime: Runtime) -> None:
    proxy.plan = counting = Counting()
    requests: dict[str, int] = {}

    def hear(check: Check) -> None:
        requests[check.name] = counting.requests

    report = examine(url_behind(proxy, ministack_server, "doctor-healthy"), runtime, hear)
    assert [check for check in report.checks if check.verdict != "passed"] == []
    assert report.status == 0
    assert report.clock_ahead_s is not None
    assert abs(report.clock_ahead_s) < 60
    assert objects(ministack_server, "doctor-healthy") == []
    assert requests["of racing writes one wins"] < REQUESTS_MAX - 5, "so many find a liar; five are for cleaning up"


@pytest.mark.parametrize(
    "lie",
    [
        Lie.IGNORE_IF_NONE_MATCH, Lie.IGNORE_IF_MATCH, Lie.CREATES_ON_IF_MATCH_MISSING, Lie.CONSTANT_ETAG,
        Lie.STALE_READS, Lie.WEAK_ETAG, Lie.ALWAYS_409,
    ],
)  # fmt: skip
def test_a_server_that_lies_is_refused_after_few_requests(
    ministack_server: Server, proxy: FaultProxy, runtime: Runtime, lie: Lie
) -> None:
    proxy.plan, proxy.lies = (counting := Counting()), frozenset({lie})
    prefix = f"doctor-{lie.name.lower()}"
    report = examine(url_behind(proxy, ministack_server, prefix), runtime)
    assert report.status == 3
    assert report.refused
    assert counting.requests < REQUESTS_MAX
    assert objects(ministack_server, prefix) == []


def test_a_missing_bucket_is_refused_with_its_name(ministack_server: Server, runtime: Runtime) -> None:
    report = examine(ministack_server.url("no-such-bucket", "p"), runtime)
    assert report.status == 3
    assert "no-such-bucket" in report.refused
