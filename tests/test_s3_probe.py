"""A server that lies about conditions is found out before anybody trusts it."""

from __future__ import annotations

import pytest

from dibs.errors import StoreUnavailable, StoreUnsuitable
from dibs.probe import introduce
from dibs.runtime import Runtime
from dibs.stores.s3 import QUOTED, UNQUOTED, S3Store, open_s3
from dibs.testing.proxy import FaultProxy
from dibs.testing.proxy_faults import ANSWER_LOST, Lie, nth
from dibs.testing.servers import Server

FOUND_OUT = {
    Lie.IGNORE_IF_NONE_MATCH: "ignores If-None-Match",
    Lie.IGNORE_IF_MATCH: "ignores If-Match",
    Lie.CREATES_ON_IF_MATCH_MISSING: "creates a record on If-Match",
    Lie.CONSTANT_ETAG: "same version",
    Lie.STALE_READS: "read",
    Lie.WEAK_ETAG: "weak ETags",
}
HARMLESS = {Lie.DROP_304}  # costs bytes only: the ETag of the answer says the same
CANNOT_TELL = {Lie.ALWAYS_409}  # looks like an outage, and is reported as one


def test_every_lie_has_its_verdict() -> None:
    assert set(FOUND_OUT) | HARMLESS | CANNOT_TELL == set(Lie)


@pytest.mark.parametrize("lie", FOUND_OUT, ids=lambda lie: lie.name)
def test_a_server_that_lies_is_refused(lie: Lie, proxied: S3Store, proxy: FaultProxy, runtime: Runtime) -> None:
    proxy.lies = frozenset({lie})
    with pytest.raises(StoreUnsuitable, match=FOUND_OUT[lie]):
        introduce(proxied, runtime)
    assert lie in {fired.fault for fired in proxy.fired}


@pytest.mark.parametrize("lie", HARMLESS, ids=lambda lie: lie.name)
def test_a_harmless_lie_is_put_up_with(lie: Lie, proxied: S3Store, proxy: FaultProxy, runtime: Runtime) -> None:
    proxy.lies = frozenset({lie})
    introduce(proxied, runtime)
    assert lie in {fired.fault for fired in proxy.fired}


@pytest.mark.parametrize("lie", CANNOT_TELL, ids=lambda lie: lie.name)
def test_a_server_that_never_answers_clearly_is_not_trusted(
    lie: Lie, proxied: S3Store, proxy: FaultProxy, runtime: Runtime
) -> None:
    proxy.lies = frozenset({lie})
    with pytest.raises(StoreUnavailable):
        introduce(proxied, runtime)


def test_an_honest_server_is_remembered(proxied: S3Store, direct: S3Store, proxy: FaultProxy, runtime: Runtime) -> None:
    card = introduce(proxied, runtime)
    assert card.servers == ((proxied.server, QUOTED),)
    proxy.reset()
    assert introduce(proxied, runtime) == card
    assert proxy.counts() == {("GET", f"{proxied.prefix}/records/card"): 1}


def test_the_probe_survives_a_lost_answer(proxied: S3Store, proxy: FaultProxy, runtime: Runtime) -> None:
    proxy.plan = nth(ANSWER_LOST, "PUT", 2)
    introduce(proxied, runtime)
    assert len(proxy.fired) == 1


def test_the_probe_learns_how_an_old_gateway_wants_its_etags(ceph_server: Server, runtime: Runtime) -> None:
    store = open_s3(ceph_server.url("dibs-tests", "probe"), runtime)
    assert introduce(store, runtime).servers == ((store.server, UNQUOTED),)
    again = open_s3(ceph_server.url("dibs-tests", "probe"), runtime)
    introduce(again, runtime)
    assert again.dialect == UNQUOTED
