"""What every store must do, as plain functions: `check_all(open_store)` on an empty store of the right kind.

Each check takes a function that opens the store (two calls: two clients of the same store), uses names of its own
and raises AssertionError with a sentence.  They tell nothing about crashes and lost answers: see `workloads`.
"""

from __future__ import annotations

import io
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import BinaryIO, Final, TypeAlias

from dibs.errors import Conflict, SettingsError
from dibs.store import RECORD_SIZE_MAX, UNCHANGED, Backend, Listed, Record, Version

Opener: TypeAlias = Callable[[], Backend]

THREADS: Final = 8
INCREMENTS: Final = 20
ROUNDS: Final = 20
BLOB_SIZES: Final = (0, 1, 5 * 1024 * 1024)
RECORD_SIZES: Final = (1, 2, 100, 1991, 1992, 1993, 4095, 4096, 4097, 16 * 1024, 20_000, RECORD_SIZE_MAX)
REFUSED_NAMES: Final = (
    "", "/", "a/", "/a", "a//b", ".", "..", "a/..", "../a", "a/./b", "a\0b", "a b", "a\nb", "a\\b", "ä",
    "a" * 201, "a/" * 256 + "a",
)  # fmt: skip


def check_all(open_store: Opener) -> None:
    """Run every check; raises AssertionError at the first that fails."""
    for _, check in CHECKS:
        check(open_store)


@contextmanager
def _opened(open_store: Opener) -> Iterator[Backend]:
    store = open_store()
    try:
        yield store
    finally:
        store.close()


def _read(store: Backend, name: str) -> Record:
    record = store.read(name)
    assert isinstance(record, Record), f"{name} was written, but a read without `unless` answers {record!r}"
    return record


def _refuses(store: Backend, name: str, old: Version | None, new: bytes) -> None:
    try:
        version = store.swap(name, old, new)
    except Conflict:
        return
    raise AssertionError(f"a swap of {name} from {old!r}, where it was not, succeeded and gave {version!r}")


def an_absent_record_reads_as_none(open_store: Opener) -> None:
    with _opened(open_store) as store:
        answer = store.read("conformance/absent")
        assert answer is None, f"a name that was never written reads as {answer!r}"
        answer = store.read("conformance/absent", unless="x")
        assert answer is None, f"a name that was never written reads as {answer!r} with `unless`"


def what_was_written_is_read(open_store: Opener) -> None:
    with _opened(open_store) as store:
        version = store.swap("conformance/written", None, b"first")
        assert _read(store, "conformance/written")[:2] == (b"first", version), "a read differs from the create"
        version = store.swap("conformance/written", version, b"second")
        assert _read(store, "conformance/written")[:2] == (b"second", version), "a read differs from the swap"


def another_client_reads_it_at_once(open_store: Opener) -> None:
    with _opened(open_store) as one, _opened(open_store) as other:
        name = "conformance/shared"
        version = one.swap(name, None, b"by one")
        assert _read(other, name)[:2] == (b"by one", version), "another client doesn't see the create at once"
        later = other.swap(name, version, b"by the other")
        assert _read(one, name)[:2] == (b"by the other", later), "another client's swap is not seen at once"
        _refuses(one, name, version, b"from a version that the other client has replaced")


def a_record_is_created_only_once(open_store: Opener) -> None:
    with _opened(open_store) as store:
        version = store.swap("conformance/once", None, b"first")
        _refuses(store, "conformance/once", None, b"second")
        assert _read(store, "conformance/once")[:2] == (b"first", version), "a refused create left something"


def a_swap_needs_the_present_version(open_store: Opener) -> None:
    with _opened(open_store) as store:
        name = "conformance/stale"
        first = store.swap(name, None, b"first")
        second = store.swap(name, first, b"second")
        _refuses(store, name, first, b"third")
        assert _read(store, name)[:2] == (b"second", second), "a refused swap left something"
        assert store.swap(name, second, b"third") not in (first, second), "two writes got the same version"


def a_swap_of_an_absent_record_is_refused(open_store: Opener) -> None:
    with _opened(open_store) as store:
        version = store.swap("conformance/present", None, b"present")
        _refuses(store, "conformance/missing", version, b"new")
        assert store.read("conformance/missing") is None, "a refused swap created the record"


def an_old_version_never_comes_back(open_store: Opener) -> None:
    # Real records carry a nonce, so equal bytes never come twice; versions must not come twice either.
    with _opened(open_store) as store:
        name = "conformance/aba"
        versions = [store.swap(name, None, b"A nonce 0")]
        for number in range(1, 6):
            letter = b"B" if number % 2 else b"A"
            versions.append(store.swap(name, versions[-1], letter + b" nonce %d" % number))
        assert len(set(versions)) == len(versions), f"a version came twice: {versions}"
        for version in versions[:-1]:
            _refuses(store, name, version, b"from long ago")


def an_unchanged_record_is_not_sent_again(open_store: Opener) -> None:
    with _opened(open_store) as store:
        name = "conformance/unless"
        first = store.swap(name, None, b"first")
        assert store.read(name, unless=first) is UNCHANGED, "a read unless its version is not UNCHANGED"
        assert _read(store, name).version == first, "the version of a read differs from that of the write"
        second = store.swap(name, first, b"second")
        record = store.read(name, unless=first)
        assert isinstance(record, Record), f"a changed record reads as {record!r}"
        assert record[:2] == (b"second", second), "a read unless an old version gives something else"


def records_of_all_sizes_come_back(open_store: Opener) -> None:
    with _opened(open_store) as store:
        name = "conformance/grows-and-shrinks"
        version = None
        sizes = (*RECORD_SIZES, *reversed(RECORD_SIZES))
        for number, size in enumerate(sizes):
            data = bytes((number + at) % 256 for at in range(min(size, 256))) * (size // 256 + 1)
            version = store.swap(name, version, data[:size])
            assert _read(store, name)[:2] == (data[:size], version), f"a record of {size} bytes came back changed"
        for size in RECORD_SIZES:
            version = store.swap(f"conformance/size-{size}", None, b"\0" * size)
            there = _read(store, f"conformance/size-{size}")
            assert there[:2] == (b"\0" * size, version), f"a new record of {size} bytes came back changed"


def an_empty_record_is_not_absent(open_store: Opener) -> None:
    with _opened(open_store) as store:
        version = store.swap("conformance/empty", None, b"")
        assert _read(store, "conformance/empty")[:2] == (b"", version), "an empty record came back changed"
        _refuses(store, "conformance/empty", None, b"again")
        store.swap("conformance/empty", version, b"full")


def ages_grow_or_are_unknown(open_store: Opener) -> None:
    with _opened(open_store) as store:
        version = store.swap("conformance/age", None, b"young")
        age_s = _read(store, "conformance/age").age_s
        assert age_s is None or 0 <= age_s < 60, f"a record that was written just now is {age_s} s old"
        store.swap("conformance/age", version, b"younger")
        age_s = _read(store, "conformance/age").age_s
        assert age_s is None or 0 <= age_s < 60, f"a record that was rewritten just now is {age_s} s old"


def a_scan_lists_its_prefix_and_nothing_else(open_store: Opener) -> None:
    with _opened(open_store) as store:
        inside = {f"conformance/scan/in/{number}" for number in range(30)} | {"conformance/scan/in/deep/er/x"}
        outside = {"conformance/scan/inside", "conformance/scan/other/1"}
        for name in inside | outside:
            store.swap(name, None, name.encode())
        listed = list(store.scan("conformance/scan/in/"))
        names = [line.name for line in listed]
        assert len(names) == len(set(names)), "a scan lists a name twice"
        assert set(names) == inside, f"a scan differs from what was written: {set(names) ^ inside}"
        sizes = {line.name: line.size_bytes for line in listed}
        assert sizes == {name: len(name) for name in inside}, "a scan tells wrong sizes"
        assert {line.name for line in store.scan("conformance/scan/")} == inside | outside, "a wider scan differs"
        assert list(store.scan("conformance/nothing/")) == [], "a scan of nothing lists something"


def a_scan_survives_changes(open_store: Opener) -> None:
    with _opened(open_store) as store, _opened(open_store) as other:
        names = {f"conformance/scan-changing/{number}" for number in range(20)}
        versions = {name: store.swap(name, None, b"before") for name in names}
        listed = set()
        for line in store.scan("conformance/scan-changing/"):
            listed.add(line.name)
            for name, version in versions.items():
                other.swap(name, version, b"after")
            versions = {}
        assert listed == names, f"a scan lost records that were rewritten meanwhile: {names - listed}"


def dangerous_names_are_refused(open_store: Opener) -> None:
    with _opened(open_store) as store:
        uses: list[tuple[str, Callable[[str], object]]] = [
            ("read", store.read),
            ("swap", lambda name: store.swap(name, None, b"escaped")),
            ("upload", lambda name: store.upload(name, io.BytesIO(b"escaped"))),
            ("download", store.download),
            ("remove", store.remove),
        ]
        for name in REFUSED_NAMES:
            for what, use in uses:
                try:
                    use(name)
                except SettingsError:
                    continue
                raise AssertionError(f"{what} accepts the name {name!r}")


def names_of_all_permitted_characters_are_kept_apart(open_store: Opener) -> None:
    with _opened(open_store) as store:
        lasts = ("Aa0%._=,+@~-", "a%2Fb", "a%2fb", "A", "a", "a.tmp", "..a", "x" * 200)
        names = [f"conformance/n/{last}" for last in lasts]
        for name in names:
            store.swap(name, None, name.encode())
        for name in names:
            assert _read(store, name).data == name.encode(), f"{name!r} reads as another record"
        # A record may have the name of a folder of others.
        store.swap("conformance/n", None, b"above")
        store.swap("conformance/n/a/below", None, b"below")
        assert _read(store, "conformance/n/a").data == b"conformance/n/a", "a record below changed the one above"
        assert _read(store, "conformance/n").data == b"above", "a record was mistaken for one below it"


def blobs_come_back(open_store: Opener) -> None:
    with _opened(open_store) as store:
        for size in BLOB_SIZES:
            data = (b"%d " % size * (size // 2 + 1))[:size]
            name = f"conformance/blob-{size}"
            store.upload(name, io.BytesIO(data))
            with store.download(name) as file:
                assert file.read() == data, f"a blob of {size} bytes came back changed"
            store.remove(name)
            _is_missing(store, name)
            store.remove(name)


def _is_missing(store: Backend, name: str) -> None:
    try:
        with store.download(name):
            pass
    except FileNotFoundError:
        return
    raise AssertionError(f"the blob {name} isn't there and can be downloaded")


def a_blob_is_read_in_pieces_and_not_by_records(open_store: Opener) -> None:
    with _opened(open_store) as store:
        name = "conformance/pieces"
        store.upload(name, io.BytesIO(b"0123456789" * 1000))
        with store.download(name) as file:
            pieces = [file.read(7), file.read(3), file.read()]
        assert b"".join(pieces) == b"0123456789" * 1000, "reading in pieces gives other bytes"
        assert store.read(name) is None, "a blob reads as a record"
        assert list(store.scan("conformance/pieces/")) == [], "a blob is listed as a record"


class _Failing(io.RawIOBase):
    """Fails in the middle."""

    def __init__(self) -> None:
        self._reads = 0

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        self._reads += 1
        if self._reads > 1 or size < 0:
            raise ZeroDivisionError("the source failed")
        return b"x" * 1000


def a_blob_whose_source_fails_is_never_seen(open_store: Opener) -> None:
    with _opened(open_store) as store:
        source: BinaryIO = _Failing()  # type: ignore[assignment]
        try:
            store.upload("conformance/failing", source)
        except ZeroDivisionError:
            pass
        else:
            raise AssertionError("the error of the source was lost")
        _is_missing(store, "conformance/failing")


def blobs_are_listed_apart_from_records(open_store: Opener) -> None:
    with _opened(open_store) as store:
        sizes = {f"conformance/listed/in/{number}": number * 1000 for number in range(1, 6)}
        for name, size in sizes.items():
            store.upload(name, io.BytesIO(b"x" * size))
        store.upload("conformance/listed/other", io.BytesIO(b"x"))
        store.swap("conformance/listed/in/record", None, b"x")
        listed = list(store.scan_blobs("conformance/listed/in/"))
        assert {line.name: line.size_bytes for line in listed} == sizes, f"the listing of blobs differs: {listed}"
        assert all(line.age_s is None or 0 <= line.age_s < 60 for line in listed), f"wrong ages: {listed}"
        store.remove("conformance/listed/in/1")
        names = {line.name for line in store.scan_blobs("conformance/listed/in/")}
        assert names == set(sizes) - {"conformance/listed/in/1"}, "a removed blob is listed, or another one isn't"
        assert list(store.scan_blobs("conformance/listed/nothing/")) == [], "blobs are listed where there are none"


def an_upload_under_way_is_not_cleared_away(open_store: Opener) -> None:
    with _opened(open_store) as store, _opened(open_store) as cleaner:
        name, data = "conformance/under-way", b"0123456789abcdef" * (17 << 16)  # two parts in a bucket
        cleared: list[Listed] = []

        class Slow(io.BytesIO):
            def read(self, size: int | None = -1) -> bytes:
                if self.tell() > len(data) // 2:
                    cleared.extend(cleaner.clear_leftovers(lambda name: False))
                return super().read(size)

        store.upload(name, Slow(data))
        assert cleared == [], f"an upload that was under way was cleared away: {cleared}"
        with store.download(name) as file:
            assert file.read() == data, "a blob came back changed after leftovers were cleared during its upload"
        left = list(cleaner.clear_leftovers(lambda other: other == name, dry_run=True))
        assert left == [], f"an upload that came to its end left {left}"
        store.remove(name)


def _together(tasks: Sequence[Callable[[], None]]) -> None:
    """Run them in threads, started at one moment; raise what the first of them raised."""
    barrier = threading.Barrier(len(tasks))
    errors: list[BaseException] = []

    def run(task: Callable[[], None]) -> None:
        try:
            barrier.wait(60)
            task()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(task,), daemon=True) for task in tasks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(300)
        assert not thread.is_alive(), "a client hangs"
    if errors:
        raise errors[0]


def of_racing_creates_one_wins(open_store: Opener) -> None:
    stores = [open_store() for _ in range(THREADS)]
    for number in range(ROUNDS):
        name, winners = f"conformance/race-{number}", list[tuple[int, Version]]()

        def create(index: int, name: str = name, winners: list[tuple[int, Version]] = winners) -> None:
            try:
                winners.append((index, stores[index].swap(name, None, b"by %d" % index)))
            except Conflict:
                pass

        _together([lambda index=index: create(index) for index in range(THREADS)])  # type: ignore[misc]
        assert len(winners) == 1, f"{len(winners)} of {THREADS} racing creates won, in round {number}"
        index, version = winners[0]
        there = _read(stores[0], name)[:2]
        assert there == (b"by %d" % index, version), f"{index} won, and there is {there}, in round {number}"
    for store in stores:
        store.close()


def no_increment_is_lost(open_store: Opener) -> None:
    name = "conformance/counter"
    with _opened(open_store) as store:
        store.swap(name, None, b"0 ")

    def count(index: int) -> None:
        with _opened(open_store) as mine:
            for number in range(INCREMENTS):
                while True:
                    record = _read(mine, name)
                    value = int(record.data.split()[0]) + 1
                    try:
                        mine.swap(name, record.version, b"%d by %d.%d" % (value, index, number))
                        break
                    except Conflict:
                        pass  # somebody else counted: that is progress, so this ends

    _together([lambda index=index: count(index) for index in range(THREADS)])  # type: ignore[misc]
    with _opened(open_store) as store:
        total = int(_read(store, name).data.split()[0])
    assert total == THREADS * INCREMENTS, f"{THREADS * INCREMENTS} increments made {total}"


def a_closed_store_opens_again(open_store: Opener) -> None:
    store = open_store()
    version = store.swap("conformance/closed", None, b"before")
    store.close()
    store.close()
    assert _read(store, "conformance/closed").version == version, "a closed store forgot its record"
    store.swap("conformance/closed", version, b"after")
    store.close()


CHECKS: Final[Sequence[tuple[str, Callable[[Opener], None]]]] = [
    (check.__name__, check)
    for check in (
        an_absent_record_reads_as_none,
        what_was_written_is_read,
        another_client_reads_it_at_once,
        a_record_is_created_only_once,
        a_swap_needs_the_present_version,
        a_swap_of_an_absent_record_is_refused,
        an_old_version_never_comes_back,
        an_unchanged_record_is_not_sent_again,
        records_of_all_sizes_come_back,
        an_empty_record_is_not_absent,
        ages_grow_or_are_unknown,
        a_scan_lists_its_prefix_and_nothing_else,
        a_scan_survives_changes,
        dangerous_names_are_refused,
        names_of_all_permitted_characters_are_kept_apart,
        blobs_come_back,
        a_blob_is_read_in_pieces_and_not_by_records,
        a_blob_whose_source_fails_is_never_seen,
        blobs_are_listed_apart_from_records,
        an_upload_under_way_is_not_cleared_away,
        of_racing_creates_one_wins,
        no_increment_is_lost,
        a_closed_store_opens_again,
    )
]
