"""The servers of the tests start by themselves, keep to the loopback, and never outlive whoever started them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from dibs.errors import Conflict
from dibs.runtime import Runtime
from dibs.store import Record
from dibs.stores.s3 import UNQUOTED, S3Store, open_s3
from dibs.testing import servers
from dibs.testing.servers import EndedEarly, Server, ServiceMissing, listens, ministack, moto, running

ENDS_WITHIN_S = 15


def port_of(server: Server) -> int:
    port = urlsplit(server.endpoint_url).port
    assert port is not None
    return port


STARTER = """
import sys, time
from dibs.testing.servers import ministack
with ministack(install=False) as server:
    print(server.endpoint_url, flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("signal_number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_a_server_ends_when_its_starter_dies(ministack_server: Server, signal_number: signal.Signals) -> None:
    starter = subprocess.Popen([sys.executable, "-c", STARTER], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert starter.stdout is not None
    port = urlsplit(starter.stdout.readline().decode().strip()).port
    assert port is not None
    assert listens(port)
    starter.send_signal(signal_number)
    starter.wait()
    starter.stdout.close()
    deadline = time.monotonic() + ENDS_WITHIN_S
    while listens(port):
        assert time.monotonic() < deadline, "the server outlived its starter"
        time.sleep(0.05)


def test_a_server_listens_on_the_loopback_only_and_ends_with_its_block(ministack_server: Server) -> None:
    with ministack(install=False) as server:
        assert urlsplit(server.endpoint_url).hostname == "127.0.0.1"
        assert listens(port_of(server))
    assert not listens(port_of(server))


def test_ministack_keeps_what_it_was_given_over_a_restart(
    ministack_server: Server, tmp_path: Path, runtime: Runtime
) -> None:
    with ministack(tmp_path, install=False) as server:
        server.make_bucket("bucket")
        version = open_s3(server.url("bucket", "p"), runtime).swap("a", None, b"1")
    with ministack(tmp_path, install=False) as server:
        store = open_s3(server.url("bucket", "p"), runtime)
        record = store.read("a")
        assert isinstance(record, Record)
        assert record[:2] == (b"1", version)
        with pytest.raises(Conflict):
            store.swap("a", None, b"2")


def test_stock_moto_starts_too(aws_environment: None, runtime: Runtime) -> None:
    with moto(atomic=False) as server:
        server.make_bucket("bucket")
        store = open_s3(server.url("bucket", "p"), runtime)
        store.swap("a", None, b"1")
        assert isinstance(store.read("a"), Record)


def test_a_missing_service_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DIBS_MINISTACK_PYTHON", str(tmp_path / "none"))
    with pytest.raises(ServiceMissing, match="make setup"), ministack():
        pass
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ServiceMissing, match="apt-get install"), servers.ceph():
        pass


def test_a_server_that_does_not_start_shows_its_log() -> None:
    program = "import sys; print('no such luck', file=sys.stderr); sys.exit(3)"
    with (
        pytest.raises(EndedEarly, match=r"(?s)status 3.*no such luck"),
        running("it", [sys.executable, "-c", program], port=servers.free_port()),
    ):
        pass


def test_credentials_last_as_long_as_their_block(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "mine")
    monkeypatch.delenv("AWS_EC2_METADATA_DISABLED", raising=False)
    with Server("any", ("http://127.0.0.1:1",)).credentials():
        assert os.environ["AWS_ACCESS_KEY_ID"] == "testkey"
    assert os.environ["AWS_ACCESS_KEY_ID"] == "mine"
    assert "AWS_EC2_METADATA_DISABLED" not in os.environ


def test_two_gateways_of_ceph_show_the_same_records(ceph_server: Server, runtime: Runtime) -> None:
    one, other = (open_s3(ceph_server.url("dibs-tests", "gateways", n), runtime) for n in (0, 1))
    for store in (one, other):
        assert isinstance(store, S3Store)
        store.dialect = UNQUOTED
    version = one.swap("a", None, b"1")
    second = other.swap("a", version, b"2")
    with pytest.raises(Conflict):
        one.swap("a", version, b"3")
    record = one.read("a")
    assert isinstance(record, Record)
    assert record[:2] == (b"2", second)


def test_an_old_gateway_refuses_all_swaps_with_quoted_etags(ceph_server: Server, runtime: Runtime) -> None:
    # What a probe has to find out: the same swap is refused quoted and accepted unquoted.
    store = open_s3(ceph_server.url("dibs-tests", "quotes"), runtime)
    version = store.swap("a", None, b"1")
    try:
        store.swap("a", version, b"2")
    except Conflict:
        store.dialect = UNQUOTED
        store.swap("a", version, b"2")
    else:
        pytest.skip("this gateway is new enough to take quotes")
