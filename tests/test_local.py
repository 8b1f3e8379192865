"""The folder store where it differs from others: damage, full and read-only disks, other people's files, forks."""

from __future__ import annotations

import fcntl
import io
import os
import shutil
import signal
import stat
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from dibs.errors import Conflict, SettingsError, StoreUnavailable, StoreUnsuitable
from dibs.runtime import Runtime
from dibs.store import Listed, Record, asked_within
from dibs.stores import local_disk, open_store
from dibs.stores.local import LocalStore
from dibs.stores.local_slots import HEADER_SIZE
from dibs.stores.memory import MemoryStore

NAME = "keys/f/0123"


@pytest.fixture
def store(runtime: Runtime, tmp_path: Path) -> LocalStore:
    return LocalStore(str(tmp_path / "store"), runtime)


def file_of(store: LocalStore, name: str = NAME) -> Path:
    return Path(store.files_of(name)[0])


def read(store: LocalStore, name: str = NAME) -> Record:
    record = store.read(name)
    assert isinstance(record, Record)
    return record


# --- damage ---


def is_damaged(record: Record) -> bool:
    return record.data == b"" and record.version.startswith("damaged.")


@pytest.mark.parametrize("size", [200, 5000])
@pytest.mark.parametrize("writes", [1, 2, 3])
def test_a_flipped_byte_is_damage_or_changes_nothing(store: LocalStore, size: int, writes: int) -> None:
    version = None
    for number in range(writes):
        version = store.swap(NAME, version, bytes([number]) * size)
    whole, path = read(store), file_of(store)
    content = path.read_bytes()
    slot = len(content) // 2
    newer = 0 if writes % 2 else slot
    for at in range(0, len(content), 7 if size < 1000 else 61):
        flipped = bytearray(content)
        flipped[at] ^= 0x10
        path.write_bytes(flipped)
        record = read(store)
        counts = at % slot < HEADER_SIZE or newer <= at < newer + HEADER_SIZE + size
        assert is_damaged(record) if counts else record[:2] == whole[:2], f"byte {at}"
    path.write_bytes(content)
    assert read(store)[:2] == whole[:2]


@pytest.mark.parametrize(
    "break_it",
    [
        lambda content: b"",
        lambda content: content[:1],
        lambda content: content[: len(content) // 2],
        lambda content: content[:-1],
        lambda content: content + b"x",
        lambda content: content * 2,
        lambda content: b"\0" * len(content),
        lambda content: b"\0" * (len(content) // 2) + content[len(content) // 2 :],
        lambda content: content[: len(content) // 2] + b"\0" * (len(content) // 2),
        lambda content: content[len(content) // 2 :] * 2,
        lambda content: content[: len(content) // 2] * 2,
        lambda content: os.urandom(len(content)),
        lambda content: b"garbage",
    ],
)
@pytest.mark.parametrize("writes", [1, 2, 3])
@pytest.mark.parametrize("size", [10, 9000])
def test_a_mutilated_file_is_damage_and_heals(
    store: LocalStore, break_it: Callable[[bytes], bytes], writes: int, size: int
) -> None:
    version = None
    for number in range(writes):
        version = store.swap(NAME, version, bytes([number]) * size)
    path = file_of(store)
    path.write_bytes(break_it(path.read_bytes()))
    record = read(store)
    assert is_damaged(record)
    for old in (None, version, "damaged.0123456789abcdef"):
        with pytest.raises(Conflict):
            store.swap(NAME, old, b"no")
    assert read(store) == record
    version = store.swap(NAME, record.version, b"healed")
    assert read(store)[:2] == (b"healed", version)


def test_damage_of_a_kind_has_a_version_of_its_own(store: LocalStore) -> None:
    store.swap(NAME, None, b"x")
    file_of(store).write_bytes(b"garbage")
    first = read(store).version
    file_of(store).write_bytes(b"other garbage")
    assert read(store).version != first
    with pytest.raises(Conflict):
        store.swap(NAME, first, b"healed")


# --- other people's files ---


def test_files_are_private(store: LocalStore) -> None:
    os.umask(os.umask(0o002))
    version = store.swap(NAME, None, b"x")
    store.swap(NAME, version, b"y" * 10_000)
    store.upload("blob/x", io.BytesIO(b"z"))
    for directory, directories, files in os.walk(store.root):
        for entry in directories:
            assert stat.S_IMODE(os.stat(os.path.join(directory, entry)).st_mode) == 0o700
        for entry in files:
            assert stat.S_IMODE(os.stat(os.path.join(directory, entry)).st_mode) == 0o600
    assert stat.S_IMODE(os.stat(store.root).st_mode) == 0o700
    assert store.private
    os.chmod(store.root, 0o770)
    assert not store.private


@pytest.mark.parametrize("kind", ["link", "dangling link", "directory", "fifo"])
def test_a_special_file_in_the_place_of_a_record_is_refused_at_once(store: LocalStore, kind: str) -> None:
    version = store.swap(NAME, None, b"x")
    path = file_of(store)
    os.rename(path, path.with_name("aside"))
    match kind:
        case "link":
            path.symlink_to("aside")
        case "dangling link":
            path.symlink_to("/nowhere")
        case "directory":
            path.mkdir()
        case "fifo":
            os.mkfifo(path)
    with pytest.raises(StoreUnsuitable, match="Remove it"):
        store.read(NAME)
    with pytest.raises(StoreUnsuitable, match="Remove it"):
        store.swap(NAME, version, b"y")
    with pytest.raises(Conflict):
        store.swap(NAME, None, b"y")


def test_a_strangers_files_are_not_listed(store: LocalStore) -> None:
    store.swap(NAME, None, b"x")
    file_of(store).with_name("stranger").write_text("hello")
    (Path(store.root) / "records" / "keys" / "README").write_text("hello")
    (Path(store.root) / "records" / "f").mkdir()
    assert [line.name for line in store.scan("")] == [NAME]


# --- disks ---


@contextmanager
def mounted(path: Path, size: str) -> Iterator[Path]:
    path.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "dibs-test", path], capture_output=True)
    if made.returncode:
        pytest.skip(f"NOT TESTED, needs root: mount a tmpfs: {made.stderr.decode().strip()}")
    try:
        yield path
    finally:
        subprocess.run(["umount", "-l", path], check=True)


def fill(directory: Path) -> Path:
    filler = directory / "filler"
    try:
        with open(filler, "wb", buffering=0) as file:
            while True:
                file.write(b"\0" * 4096)
    except OSError:
        return filler


def test_a_full_disk_refuses_and_keeps_what_was_there(runtime: Runtime, tmp_path: Path) -> None:
    with mounted(tmp_path / "disk", "400k") as disk:
        store = LocalStore(str(disk / "store"), runtime)
        small = store.swap("keys/f/small", None, b"small")
        large = store.swap("keys/f/large", None, b"l" * 20_000)  # its second slot is mostly a hole
        store.upload("first/blob", io.BytesIO(b"x"))
        filler = fill(disk)
        refusals: list[Callable[[], object]] = [
            lambda: store.swap("keys/f/new", None, b"new"),
            lambda: store.swap("keys/f/small", small, b"s" * 20_000),
            lambda: store.swap("keys/f/large", large, b"L" * 20_000),
            lambda: store.upload("keys/blob", io.BytesIO(b"x" * 20_000)),
        ]
        for refused in refusals:
            with pytest.raises(StoreUnavailable, match="disk full"):
                refused()
        assert store.read("keys/f/new") is None
        assert read(store, "keys/f/small")[:2] == (b"small", small)
        assert read(store, "keys/f/large")[:2] == (b"l" * 20_000, large)
        assert os.listdir(os.path.join(store.root, "tmp")) == []
        small = store.swap("keys/f/small", small, b"in place, so it needs no space")
        filler.unlink()
        with pytest.raises(StoreUnavailable, match="disk full") as refusal:
            store.upload("keys/blob", io.BytesIO(b"x" * 6_000_000))  # there is room for its beginning
        assert refusal.value.certain
        assert os.listdir(os.path.join(store.root, "tmp")) == []
        assert list(store.scan_blobs("keys/")) == []
        large = store.swap("keys/f/large", large, b"L" * 20_000)
        assert read(store, "keys/f/large")[:2] == (b"L" * 20_000, large)
        store.swap("keys/f/new", None, b"new")
        store.close()


def test_a_read_only_disk_serves_reads_and_says_why_it_refuses_writes(runtime: Runtime, tmp_path: Path) -> None:
    with mounted(tmp_path / "disk", "400k") as disk:
        version = LocalStore(str(disk / "store"), runtime).swap(NAME, None, b"x")
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        store = LocalStore(str(disk / "store"), runtime)
        assert read(store).data == b"x"
        for refused in (
            lambda: store.swap(NAME, version, b"y"),
            lambda: store.swap("keys/f/new", None, b"y"),
            lambda: store.upload("a/blob", io.BytesIO(b"x")),
            lambda: LocalStore(str(disk / "other"), runtime),
        ):
            with pytest.raises(StoreUnsuitable, match=r"(?s)disk/.*Read-only file system.*another directory"):
                refused()
        store.close()


@pytest.mark.parametrize(
    "kind", ["nfs", "nfs4", "cifs", "smb3", "fuse.sshfs", "fuse", "9p", "lustre", "ceph", "glusterfs", "virtiofs"]
)
def test_a_shared_file_system_is_refused_with_the_remedy(kind: str, runtime: Runtime, tmp_path: Path) -> None:
    with pytest.raises(StoreUnsuitable, match=f"(?s){tmp_path}/store.*{kind}.*s3://"):
        LocalStore(str(tmp_path / "store"), runtime, type_of=lambda path: kind)
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("kind", ["ext4", "xfs", "btrfs", "tmpfs", "overlay", "zfs", "f2fs", "apfs", None])
def test_a_local_file_system_is_welcome(kind: str | None, runtime: Runtime, tmp_path: Path) -> None:
    LocalStore(str(tmp_path / "store"), runtime, type_of=lambda path: kind)


def test_the_type_of_a_mount_is_found(tmp_path: Path) -> None:
    assert local_disk.type_of("/proc/self") in ("proc", None)
    with mounted(tmp_path / "a disk", "400k") as disk:
        assert local_disk.type_of(str(disk / "not" / "there")) == "tmpfs"
        assert local_disk.type_of(f"{disk}x") != "tmpfs" or local_disk.type_of(str(tmp_path)) == "tmpfs"


# --- a folder that goes away ---


def test_a_vanished_folder_is_an_outage_until_it_is_there_again(store: LocalStore) -> None:
    version = store.swap(NAME, None, b"x")
    shutil.rmtree(store.root)
    assert store.read(NAME) is None
    with pytest.raises(StoreUnavailable, match="vanished"):
        store.swap("keys/f/new", None, b"x")
    with pytest.raises(StoreUnavailable, match="vanished"):
        store.read(NAME)
    os.mkdir(store.root)
    with pytest.raises(Conflict):
        store.swap(NAME, version, b"x")
    store.swap(NAME, None, b"x")


def test_a_folder_that_was_wiped_under_an_open_store_still_excludes_writers(
    store: LocalStore, runtime: Runtime
) -> None:
    store.swap(NAME, None, b"x")  # so it has an open guard
    for entry in os.listdir(store.root):
        shutil.rmtree(os.path.join(store.root, entry))
    version = LocalStore(store.root, runtime).swap(NAME, None, b"by a newcomer")
    old_hand, newcomer = store, LocalStore(store.root, runtime)
    number = store._places[NAME][1]
    guard = newcomer._guards.take(number)
    newcomer._guards.lock(guard, newcomer._folder.open().fd)
    old_hand.limit_requests(0.05)
    with pytest.raises(StoreUnavailable):
        old_hand.swap(NAME, version, b"beside the guard")
    newcomer._guards.give_back(guard)
    old_hand.swap(NAME, version, b"under the guard")


def test_a_store_follows_its_folder_when_it_is_moved(store: LocalStore, runtime: Runtime) -> None:
    version = store.swap(NAME, None, b"x")
    os.rename(store.root, store.root + "-moved")
    LocalStore(store.root, runtime).swap(NAME, None, b"another store in its place")
    version = store.swap(NAME, version, b"y")
    assert read(store)[:2] == (b"y", version)
    assert read(LocalStore(store.root + "-moved", runtime))[:2] == (b"y", version)


def test_old_files_of_dead_writers_are_cleared_away(store: LocalStore, runtime: Runtime) -> None:
    store.upload("a/b", io.BytesIO(b"x"))
    dead, young = Path(store.root) / "tmp" / "dead", Path(store.root) / "tmp" / "young"
    dead.touch()
    young.touch()
    os.utime(dead, (0, os.stat(young).st_mtime - 2 * 24 * 3600))
    LocalStore(store.root, runtime).upload("a/c", io.BytesIO(b"x"))
    assert os.listdir(young.parent) == ["young"]


class Interrupting(io.BytesIO):
    """Does something in the middle."""

    def __init__(self, content: bytes, what: Callable[[], object]) -> None:
        super().__init__(content)
        self._what = what

    def read(self, size: int | None = -1) -> bytes:
        if self.tell():
            self._what()
        return super().read(min(size or 0, 1_000_000))


def test_what_a_killed_upload_leaves_is_told_from_what_a_living_one_writes(
    store: LocalStore, runtime: Runtime
) -> None:
    def upload_half() -> None:
        os.setpgid(0, 0)
        half = Interrupting(b"x" * 2_000_000, lambda: os.kill(os.getpid(), signal.SIGKILL))
        LocalStore(store.root, runtime).upload("a/killed", half)

    os.waitpid(forked(upload_half), 0)
    assert list(store.scan_blobs("a/")) == []
    (left,) = os.listdir(os.path.join(store.root, "tmp"))
    seen: list[list[Listed]] = []

    def look() -> None:
        cleaner = LocalStore(store.root, runtime)
        seen.append(list(cleaner.clear_leftovers(lambda name: False, dry_run=True)))
        seen.append(list(cleaner.clear_leftovers(lambda name: False)))
        seen.append(list(cleaner.clear_leftovers(lambda name: False)))

    store.upload("a/living", Interrupting(b"y" * 2_000_000, look))
    # The dead one's is found, and removed only when that was asked for; the living one's is left alone.
    assert [[line.name for line in lines] for lines in seen[:3]] == [[f"tmp/{left}"], [f"tmp/{left}"], []]
    assert seen[0][0].size_bytes == 1_000_000
    with store.download("a/living") as file:
        assert file.read() == b"y" * 2_000_000
    assert os.listdir(os.path.join(store.root, "tmp")) == []


def test_a_temporary_file_that_is_cleared_before_it_could_be_locked_is_made_again(
    store: LocalStore, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    cleaner = LocalStore(store.root, runtime)
    flock, cleared = fcntl.flock, []

    def late(fd: int, how: int) -> None:
        if not cleared:
            cleared.append(None)
            cleared.extend(line.name for line in cleaner.clear_leftovers(lambda name: False))
        flock(fd, how)

    monkeypatch.setattr(fcntl, "flock", late)
    store.upload("a/b", io.BytesIO(b"x"))
    assert len(cleared) == 2, "nothing was cleared, so this shows nothing"
    with store.download("a/b") as file:
        assert file.read() == b"x"


# --- guards ---


def forked(task: Callable[[], None]) -> int:
    child = os.fork()
    if child == 0:
        try:
            task()
        finally:
            os._exit(1)
    return child


def test_a_stopped_writer_is_named_and_not_waited_for_for_ever(store: LocalStore) -> None:
    version = store.swap(NAME, None, b"x")

    def stop_in_the_guard() -> None:
        guard = store._guards.take(store._places[NAME][1])
        store._guards.lock(guard, store._folder.open().fd)
        os.kill(os.getpid(), signal.SIGSTOP)

    child = forked(stop_in_the_guard)
    os.waitpid(child, os.WUNTRACED)
    try:
        assert read(store).data == b"x", "readers need no guard"
        store.limit_requests(0.05)
        with pytest.raises(StoreUnavailable, match=rf"pid {child} \(stopped\)") as raised:
            store.swap(NAME, version, b"y")
        assert raised.value.certain, "who never had the guard has certainly not written"
        store._guards.limit_s = 30.0
        with asked_within(0.05), pytest.raises(StoreUnavailable, match=r"locked for 0\.05 s"):
            store.swap(NAME, version, b"y")
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    store.swap(NAME, version, b"y")


def test_a_child_that_outlives_a_killed_writer_does_not_keep_its_guard(store: LocalStore) -> None:
    version = store.swap(NAME, None, b"x")
    ready, say_ready = os.pipe()
    wait, end = os.pipe()

    def fork_in_the_guard_and_die() -> None:
        guard = store._guards.take(store._places[NAME][1])
        store._guards.lock(guard, store._folder.open().fd)
        if os.fork() == 0:
            os.write(say_ready, b"x")
            os.close(end)
            os.read(wait, 1)  # until the test ends
            os._exit(0)
        os.read(ready, 1)
        os.kill(os.getpid(), signal.SIGKILL)

    child = forked(fork_in_the_guard_and_die)
    os.waitpid(child, 0)
    store.limit_requests(1.0)
    store.swap(NAME, version, b"y")
    for fd in (ready, say_ready, wait, end):
        os.close(fd)


def test_a_forked_child_never_unlocks_for_its_parent(store: LocalStore) -> None:
    version = store.swap(NAME, None, b"x")
    guard = store._guards.take(store._places[NAME][1])
    store._guards.lock(guard, store._folder.open().fd)

    def give_back_what_is_not_mine() -> None:
        store._guards.give_back(guard)
        os._exit(0)

    os.waitpid(forked(give_back_what_is_not_mine), 0)
    store.limit_requests(0.05)
    with pytest.raises(StoreUnavailable):
        store.swap(NAME, version, b"y")
    store._guards.give_back(guard)
    store.swap(NAME, version, b"y")


def test_increments_of_many_processes_and_threads_are_exact(store: LocalStore) -> None:
    processes, threads, increments = 3, 3, 40
    store.swap(NAME, None, b"0")

    def count() -> None:
        for _ in range(increments):
            while True:
                record = read(store)
                try:
                    # Large now and then, so that files are exchanged as well.
                    text = b"%d" % (int(record.data) + 1)
                    store.swap(NAME, record.version, text.ljust(3000) if text.endswith(b"7") else text)
                    break
                except Conflict:
                    pass

    def count_in_threads() -> None:
        running = [threading.Thread(target=count) for _ in range(threads)]
        for thread in running:
            thread.start()
        for thread in running:
            thread.join()
        os._exit(0)

    children = [forked(count_in_threads) for _ in range(processes)]
    for child in children:
        assert os.waitpid(child, 0)[1] == 0
    assert int(read(store).data) == processes * threads * increments


def test_readers_beside_a_writer_see_every_record_whole_and_never_an_older_one(store: LocalStore) -> None:
    store.swap(NAME, None, b"0 " * 900)

    def write() -> None:
        version = read(store).version
        for number in range(1, 3000):
            version = store.swap(NAME, version, b"%d " % number * 300)
        os._exit(0)

    child = forked(write)
    last = 0
    while os.waitpid(child, os.WNOHANG) == (0, 0):
        numbers = set(read(store).data.split())
        assert len(numbers) == 1
        assert int(min(numbers)) >= last
        last = int(min(numbers))
    assert set(read(store).data.split()) == {b"2999"}


# --- URLs ---


def test_urls_open_the_right_store(runtime: Runtime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert isinstance(open_store("memory:", runtime), MemoryStore)
    for url in ("./a b", "a b", f"{tmp_path}/a b", f"file://{tmp_path}/a%20b", f"file://localhost{tmp_path}/a%20b"):
        opened = open_store(url, runtime)
        assert isinstance(opened, LocalStore)
        assert opened.root == str(tmp_path / "a b")
        assert opened.url == f"file://{tmp_path}/a%20b"
    for url in ("", "ftp://x/y", "file://host/x"):
        with pytest.raises(SettingsError):
            open_store(url, runtime)
    with pytest.raises(SettingsError, match=r"file://, s3://.*memory:"):
        open_store("ftp://x/y", runtime)


def test_a_source_that_fails_with_an_os_error_keeps_its_error(store: LocalStore) -> None:
    class Unplugged(io.RawIOBase):
        def read(self, size: int = -1) -> bytes:
            raise ConnectionResetError("unplugged")

    with pytest.raises(ConnectionResetError, match="unplugged"):
        store.upload("a/b", Unplugged())  # type: ignore[arg-type]
    assert os.listdir(os.path.join(store.root, "tmp")) == []


# --- descriptors that others close ---


def test_what_opens_after_all_descriptors_were_closed_is_neither_used_nor_closed(
    store: LocalStore, tmp_path: Path
) -> None:
    version = store.swap(NAME, None, b"x")
    (tmp_path / "mine").mkdir()
    root = store._folder.root
    assert root is not None
    ours = [root.fd, *(guard.fd for guard in store._guards._all)]
    (tmp_path / "file").touch()
    for fd, what in zip(ours, ("mine", "file"), strict=True):  # as a daemon does, which then opens files of its own
        os.close(fd)
        mine = os.open(tmp_path / what, os.O_RDONLY)
        if mine != fd:
            os.dup2(mine, fd)
            os.close(mine)
    # then a look, a write and a close go to our own files,
    assert read(store).data == b"x"
    version = store.swap(NAME, version, b"y")
    assert read(store)[:2] == (b"y", version)
    store.close()
    # and what has taken their numbers is as it was.
    assert not list((tmp_path / "mine").iterdir())
    for fd in ours:
        os.close(fd)
