"""A bucket does what a store must do, on each server that can be had here."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest

from dibs.errors import Conflict, StoreUnavailable
from dibs.runtime import Runtime
from dibs.store import Unchanged, Version
from dibs.stores.s3 import UNQUOTED, S3Store
from dibs.stores.s3_client import parse_s3_url
from dibs.testing.conformance import CHECKS, Opener
from dibs.testing.servers import Server

every_check = pytest.mark.parametrize("check", [check for _, check in CHECKS], ids=[name for name, _ in CHECKS])
_prefixes = itertools.count()


class Settling(S3Store):
    """Finds out what became of an unknown write: Ceph's gateway answers 500 to some losers of a race."""

    def swap(self, name: str, old: Version | None, new: bytes) -> Version:
        for _ in range(20):
            try:
                return super().swap(name, old, new)
            except StoreUnavailable:
                there = self.read(name)
                assert not isinstance(there, Unchanged)
                if there is not None and there.data == new:
                    return there.version
                if (there and there.version) != old:
                    raise Conflict(name) from None
        raise AssertionError("unknown twenty times")


def opener(server: Server, runtime: Runtime) -> Opener:
    """Opens one fresh prefix, through the server's gateways in turn."""
    prefix, gateways = f"conformance-{next(_prefixes)}", itertools.cycle(range(len(server.endpoint_urls)))

    def open_store() -> S3Store:
        settings = parse_s3_url(server.url("dibs-tests", prefix, next(gateways)))
        if server.name != "ceph":
            return S3Store(settings, runtime)
        store = Settling(settings, runtime)
        store.dialect = UNQUOTED
        return store

    return open_store


@every_check
def test_ministack(check: Callable[[Opener], None], ministack_server: Server, runtime: Runtime) -> None:
    check(opener(ministack_server, runtime))


@every_check
def test_moto(check: Callable[[Opener], None], moto_server: Server, runtime: Runtime) -> None:
    check(opener(moto_server, runtime))


@every_check
def test_ceph_through_two_gateways(check: Callable[[Opener], None], ceph_server: Server, runtime: Runtime) -> None:
    check(opener(ceph_server, runtime))
