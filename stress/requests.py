"""What a key costs in requests, counted at the server's door."""

from __future__ import annotations

import os
from typing import Any

from dibs.testing.proxy import FaultProxy
from dibs.testing.servers import Server
from stress.fleet import open_cache


def count_requests(server: Server, bucket: str, hits: int = 20, computations: int = 20) -> dict[str, Any]:
    """Asserts: a hit is 1 GET, a small value computed in less than a beat 1 GET and 2 PUTs, and nothing else."""
    prefix = f"requests-{os.urandom(4).hex()}"
    with FaultProxy(server.endpoint_url) as proxy:
        url = server.url(bucket, prefix).replace(
            server.endpoint_url.partition("//")[2], proxy.endpoint_url.partition("//")[2]
        )
        with open_cache(url) as cache:
            proxy.reset()
            for number in range(computations):
                assert cache.get_or_compute(f"key/{number}", lambda: {"small": 1}) == {"small": 1}
            computed = _methods(proxy)
            proxy.reset()
            for number in range(hits):
                assert cache.get_or_compute(f"key/{number % computations}", _never) == {"small": 1}
            hit = _methods(proxy)
            proxy.reset()
            for _ in range(computations):
                with cache.lock("one"):
                    pass
            locked = _methods(proxy)
    assert hit == {"GET": hits}, f"{hits} hits took {hit}"
    assert computed == {"GET": computations, "PUT": 2 * computations}, f"{computations} small values took {computed}"
    assert locked["PUT"] == 2 * computations and locked.get("GET", 0) <= 1, f"{computations} locks took {locked}"
    return {"hits": hit, "computed": computed, "locks": locked}


def _methods(proxy: FaultProxy) -> dict[str, int]:
    counts: dict[str, int] = {}
    for (method, _), count in proxy.counts().items():
        counts[method] = counts.get(method, 0) + count
    return counts


def _never() -> Any:
    raise AssertionError("a hit was computed")
