"""Servers that are started once for all tests, and stores on them.

A server that isn't installed skips its tests; when CI=true it fails them, because there all are promised.
"""

from __future__ import annotations

import itertools
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import pytest

from dibs.runtime import Runtime
from dibs.runtime.system import SystemRuntime
from dibs.stores.s3 import QUOTED, UNQUOTED, S3Store, open_s3
from dibs.testing.proxy import FaultProxy
from dibs.testing.servers import Server, ServiceMissing, ceph, ministack, moto

BUCKET = "dibs-tests"
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:  # under nohup: the commands under test would inherit it
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
_prefixes = itertools.count()


@pytest.fixture(scope="session")
def runtime(tmp_path_factory: pytest.TempPathFactory) -> Runtime:
    return SystemRuntime(runtime_dir=str(tmp_path_factory.mktemp("runtime")))


@pytest.fixture(scope="session")
def aws_environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Credentials of the test servers, and nothing of the account that this machine may belong to."""
    nowhere = tmp_path_factory.mktemp("aws") / "none"
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            patch.delenv(name)
        for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
            patch.setenv(name, str(nowhere))
        for name, value in Server("any", ("",)).environment().items():
            patch.setenv(name, value)
        yield


@contextmanager
def _with_bucket(starting: Callable[[], AbstractContextManager[Server]]) -> Iterator[Server]:
    with starting() as server:
        server.make_bucket(BUCKET)
        yield server


def _missing(why: ServiceMissing) -> None:
    if os.environ.get("CI") == "true":
        pytest.fail(str(why))
    pytest.skip(str(why))


@pytest.fixture(scope="session")
def ministack_server(aws_environment: None) -> Iterator[Server]:
    try:
        with _with_bucket(lambda: ministack(install=False)) as server:
            yield server
    except ServiceMissing as why:
        _missing(why)


@pytest.fixture(scope="session")
def moto_server(aws_environment: None) -> Iterator[Server]:
    try:
        with _with_bucket(moto) as server:
            yield server
    except ServiceMissing as why:
        _missing(why)


@pytest.fixture(scope="session")
def ceph_server(aws_environment: None) -> Iterator[Server]:
    """Ceph with two gateways; its stores need another dialect, which `s3_store` sees to."""
    try:
        with _with_bucket(lambda: ceph(gateways=2)) as server:
            yield server
    except ServiceMissing as why:
        _missing(why)


S3StoreMaker = Callable[..., S3Store]


@pytest.fixture
def s3_store(runtime: Runtime) -> Iterator[S3StoreMaker]:
    """`s3_store(server)` opens a store on a fresh prefix (or `prefix=`), perhaps through a `proxy=`."""
    stores = []

    def make(server: Server, prefix: str | None = None, gateway: int = 0, proxy: FaultProxy | None = None) -> S3Store:
        if prefix is None:
            prefix = f"test-{os.getpid()}-{next(_prefixes)}"
        if proxy is not None:
            server = server._replace(endpoint_urls=(proxy.endpoint_url,))
        store = open_s3(server.url(BUCKET, prefix, gateway), runtime)
        store.dialect = UNQUOTED if server.name == "ceph" else QUOTED
        stores.append(store)
        return store

    yield make
    for store in stores:
        store.close()


@pytest.fixture
def proxy(ministack_server: Server) -> Iterator[FaultProxy]:
    """A fault proxy in front of MiniStack; a plan that raises fails the test."""
    with FaultProxy(ministack_server.endpoint_url) as running:
        yield running
    assert running.errors == []


@pytest.fixture
def proxied(ministack_server: Server, s3_store: S3StoreMaker, proxy: FaultProxy) -> S3Store:
    """A store behind `proxy`; see `direct` for looking behind its back."""
    return s3_store(ministack_server, proxy=proxy)


@pytest.fixture
def direct(ministack_server: Server, s3_store: S3StoreMaker, proxied: S3Store) -> S3Store:
    """The same prefix as `proxied`, without the proxy."""
    return s3_store(ministack_server, prefix=proxied.prefix)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark by fixture, so that nobody forgets: `-m 'not s3'` starts no server."""
    for item in items:
        used = set(getattr(item, "fixturenames", ()))
        if used & {"ministack_server", "moto_server", "ceph_server"}:
            item.add_marker("s3")
        if "ceph_server" in used:
            item.add_marker("ceph")
