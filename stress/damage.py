"""Every file of a local cache and every object of a bucket is damaged in every way: never a wrong value."""

from __future__ import annotations

import os
import random
import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, Protocol

from dibs.errors import StoreUnsuitable
from dibs.record import FORMAT
from stress.fleet import open_cache

EXPECTED: Final = {
    "small": "a small value " * 5,
    "large": b"x" * 50_000,
    "json": {"a": [1, 2, 3]},
}


class Things(Protocol):
    """The files or objects of a store, read and written behind its back."""

    def names(self) -> list[str]: ...
    def read(self, name: str) -> bytes: ...
    def write(self, name: str, data: bytes | None) -> None: ...


class Files:
    def __init__(self, root: str) -> None:
        self.root = Path(root)

    def names(self) -> list[str]:
        return sorted(
            str(path.relative_to(self.root))
            for path in self.root.rglob("*")
            if path.is_file() and path.relative_to(self.root).parts[0] in ("records", "blobs")
        )

    def read(self, name: str) -> bytes:
        return (self.root / name).read_bytes()

    def write(self, name: str, data: bytes | None) -> None:
        if data is None:
            (self.root / name).unlink()
        else:
            (self.root / name).write_bytes(data)


class Objects:
    def __init__(self, client: Any, bucket: str, prefix: str) -> None:
        self.client, self.bucket, self.prefix = client, bucket, prefix

    def names(self) -> list[str]:
        answer = self.client.list_objects_v2(Bucket=self.bucket, Prefix=f"{self.prefix}/")
        return sorted(entry["Key"] for entry in answer.get("Contents", ()))

    def read(self, name: str) -> bytes:
        data: bytes = self.client.get_object(Bucket=self.bucket, Key=name)["Body"].read()
        return data

    def write(self, name: str, data: bytes | None) -> None:
        if data is None:
            self.client.delete_object(Bucket=self.bucket, Key=name)
        else:
            self.client.put_object(Bucket=self.bucket, Key=name, Body=data)


def damages(data: bytes, flips: int, chance: random.Random) -> Iterator[tuple[str, bytes | None]]:
    """What can happen to a file: (name of the damage, what is left of the bytes)."""
    yield "empty", b""
    yield "garbage", chance.randbytes(len(data))
    yield "text", b"hello, I am not a record\n" * 3
    yield "gone", None
    for share in (0.1, 0.5, 0.9):
        yield "truncated", data[: int(len(data) * share)]
    yield "longer", data + b"\0" * 100
    for at in {0, 1, 7, 20, 60, len(data) - 1, *(chance.randrange(len(data)) for _ in range(flips))}:
        if at < len(data):
            yield "flipped byte", data[:at] + bytes([data[at] ^ (1 << chance.randrange(8))]) + data[at + 1 :]


ROLES: Final = (
    "keys/.*small", "keys/.*large", "keys/.*json", "locks/", "card$", "card-copy", "stats/", "values|blobs/"
)  # fmt: skip
"""One pattern for each kind of thing that a store keeps; together they match everything in it."""


def damage_everything(make: Callable[[int], tuple[str, Things]], flips: int, seed: int = 1) -> dict[str, Any]:
    """Damage one thing of a fresh store; a cache opened afterwards gives right values, recomputed or not.

    `make(n)` gives the url of an empty store and the things in it.
    """
    outcomes: Counter[str] = Counter()
    stores = 0
    for role in ROLES:
        for number in range(1_000):  # ends when the ways to damage are used up
            url, things = make(stores)
            stores += 1
            _fill(url)
            name = _the_one(role, things.names())
            original = things.read(name)
            ways = list(damages(original, flips, random.Random(seed)))
            if number == len(ways):
                break
            kind, damaged = ways[number]
            things.write(name, damaged)
            healed, computed, refused = _use(url)
            what = f"{name}, {kind}: {healed} healings, {computed} computations"
            assert computed <= 1, what
            assert not computed or healed or kind == "gone", f"{what}: without a report"
            assert not refused, f"{what}: refused"
            outcomes[f"{kind}: {'healed' if healed else 'computed' if computed else 'harmless'}"] += 1
    return {"damages": outcomes.total(), **dict(sorted(outcomes.items()))}


def _the_one(role: str, names: list[str]) -> str:
    unknown = [name for name in names if not any(re.search(pattern, _plain(name)) for pattern in ROLES)]
    assert not unknown, f"things that no role covers: {unknown}"
    matching = [name for name in names if re.search(role, _plain(name)) and not (role == "card$" and "copy" in name)]
    if role.startswith("keys/"):
        matching = [name for name in matching if not re.search(ROLES[-1], _plain(name))]
    assert len(matching) == 1, (role, names)
    return matching[0]


def _plain(name: str) -> str:
    return name.replace("%2F", "/")


def _fill(url: str) -> None:
    with open_cache(url) as cache:
        for key, value in EXPECTED.items():
            assert cache.get_or_compute(key, lambda value=value: value) == value  # type: ignore[misc]
        with cache.lock("lock"):
            pass


def _use(url: str) -> tuple[int, int, bool]:
    """Ask for everything again; returns (healings reported, computations, refused because of the card)."""
    computed, healed = [], []
    try:
        with open_cache(url) as cache:
            cache.on_event(lambda event: healed.append(event) if event.kind == "healed" else None)
            for key, value in EXPECTED.items():

                def compute(key: str = key, value: Any = value) -> Any:
                    computed.append(key)
                    return value

                assert cache.get_or_compute(key, compute) == value, f"a wrong value of {key}"
                assert cache.get(key) == value, f"{key} was not healed"
            with cache.lock("lock") as lock:
                assert lock.generation >= 1
    except StoreUnsuitable:
        return len(healed), len(computed), True
    return len(healed), len(computed), False


def newer_format(data: bytes) -> bytes:
    """A sound record of the next format."""
    from blake3 import blake3

    number = b"%d" % (FORMAT + 1)
    body = b'"anything":"else"}\n'
    return b'{"dibs":' + number + b',"check":"' + blake3(number + body).hexdigest(16).encode() + b'",' + body


def fresh_folder(folder: str) -> Callable[[int], tuple[str, Things]]:
    def make(number: int) -> tuple[str, Things]:
        root = os.path.join(folder, f"store{number}")
        return root, Files(root)

    return make
