"""Files count by content, directories by their trees; a large file is read once as long as nobody writes to it."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import pickle
import stat
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest
from blake3 import blake3

from dibs.digest import File, digest_of, filememo
from dibs.digest.filememo import FileMemo
from dibs.errors import Undigestible

LARGE = 300_000


@pytest.fixture(autouse=True)
def _own_cache_directory(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    filememo._memo_in.cache_clear()
    yield
    filememo._memo_in.cache_clear()


def written(path: Path, content: bytes, aged: bool = True) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    if aged:
        age(path)
    return path


def age(path: Path) -> None:
    """Wait until the file has been left alone for long enough to be remembered."""
    while time.time() - path.stat().st_ctime < filememo.RACY_S + 0.02:
        time.sleep(0.05)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was changed 50 ms ago is old enough."""
    monkeypatch.setattr(filememo, "RACY_S", 0.05)


def bytes_read() -> int:
    """What this process has read so far, by the kernel's own count."""
    counters = Path("/proc/self/io").read_text()
    return int(counters.split("rchar: ")[1].split()[0])


def read_by(path: Path) -> tuple[str, int]:
    """The digest of the file, and how many bytes were read for it."""
    bytes_read()
    before = bytes_read()
    digest = digest_of(File(path))
    return digest, bytes_read() - before


def test_the_content_counts_and_the_path_does_not(tmp_path: Path) -> None:
    one, other = written(tmp_path / "a", b"1", aged=False), written(tmp_path / "b" / "c", b"1", aged=False)
    assert digest_of(File(one)) == digest_of(File(str(other))) == digest_of(File(os.path.relpath(one)))
    assert digest_of(File(one)) != digest_of(b"1")
    other.write_bytes(b"2")
    assert digest_of(File(one)) != digest_of(File(other))
    (tmp_path / "link").symlink_to(one)
    assert digest_of(File(tmp_path / "link")) == digest_of(File(one))


def test_a_directory_is_the_tree_of_its_names_and_contents(tmp_path: Path) -> None:
    def tree(name: str, **files: bytes) -> str:
        for path, content in files.items():
            written(tmp_path / name / path.replace("__", "/"), content, aged=False)
        return digest_of(File(tmp_path / name))

    digests = [
        tree("one", a=b"1", b__c=b"2"), tree("content", a=b"1", b__c=b"3"), tree("name", a=b"1", b__d=b"2"),
        tree("place", a=b"1", c=b"2"), tree("more", a=b"1", b__c=b"2", e=b""), tree("moved", b__a=b"1", b__c=b"2"),
    ]  # fmt: skip
    assert len(set(digests)) == len(digests)
    (tmp_path / "one" / "empty").mkdir()
    assert digest_of(File(tmp_path / "one")) != digests[0]
    assert tree("again", b__c=b"2", a=b"1") == digests[0]


@pytest.mark.usefixtures("quick")
def test_a_large_file_is_read_once(tmp_path: Path) -> None:
    path = written(tmp_path / "large", os.urandom(LARGE))
    digest, first = read_by(path)
    again, second = read_by(path)
    assert first >= LARGE > second
    assert digest == again
    assert second < 10_000
    os.rename(path, tmp_path / "elsewhere")  # changes its time of change
    assert read_by(tmp_path / "elsewhere")[0] == digest


@pytest.mark.usefixtures("quick")
def test_a_changed_file_is_read_again_even_if_size_and_time_of_modification_are_set_back(tmp_path: Path) -> None:
    path = written(tmp_path / "large", b"a" * LARGE)
    before = path.stat()
    digest, _ = read_by(path)
    written(path, b"b" * LARGE)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    age(path)
    assert path.stat().st_mtime_ns == before.st_mtime_ns
    changed, count = read_by(path)
    assert changed != digest
    assert count >= LARGE


def test_what_was_changed_a_moment_ago_is_not_remembered(tmp_path: Path) -> None:
    path = written(tmp_path / "large", b"a" * LARGE, aged=False)
    read_by(path)
    assert read_by(path)[1] >= LARGE


@pytest.mark.usefixtures("quick")
def test_the_memo_is_shared_between_processes(tmp_path: Path) -> None:
    path = written(tmp_path / "large", os.urandom(LARGE))
    digest, _ = read_by(path)
    for method in ("fork", "spawn"):
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context(method)) as pool:
            pool.submit(read_by, path).result()  # what a child reads for its imports is not meant
            found, count = pool.submit(read_by, path).result()
        assert found == digest
        assert count < 10_000


def _remember(path: str, start: int) -> None:
    memo, status = FileMemo(path), os.stat("/")
    for number in range(start, start + 3000):
        fields = [*status[:10]]
        fields[1], fields[6] = number, 1
        memo.put(os.stat_result([*fields, *[1] * 9]), number.to_bytes(32, "big"))


def test_the_memo_stays_small_and_right_when_many_write_at_once(tmp_path: Path) -> None:
    path = str(tmp_path / "memo")
    context = multiprocessing.get_context("fork")
    children = [context.Process(target=_remember, args=(path, start)) for start in (0, 1500, 3000, 0)]
    for child in children:
        child.start()
    for child in children:
        child.join()
        assert child.exitcode == 0
    memo, status = FileMemo(path), os.stat("/")
    found = 0
    for number in range(6000):
        fields = [*status[:10]]
        fields[1], fields[6] = number, 1
        digest = memo.get(os.stat_result([*fields, *[1] * 9]))
        assert digest in (None, number.to_bytes(32, "big"))
        found += digest is not None
    assert found > 5900
    assert os.stat(path).st_size <= filememo.SIZE_MAX
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600


def test_a_damaged_memo_is_no_memo(tmp_path: Path) -> None:
    memo, status = FileMemo(str(tmp_path / "memo")), os.stat("/")
    memo.put(status, b"d" * 32)
    kept = memo.get(status)
    if kept is None:  # the root directory changed a moment ago
        pytest.skip("the file system is busy")
    whole = Path(memo.path).read_bytes()
    for place in itertools.islice((place for place, byte in enumerate(whole) if byte), 64):
        damaged = bytearray(whole)
        damaged[place] ^= 1
        Path(memo.path).write_bytes(damaged)
        assert memo.get(status) is None
    Path(memo.path).write_bytes(whole[: len(whole) // 2])
    assert memo.get(status) in (None, kept)


def test_a_memo_that_others_could_write_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = tmp_path / "cache" / "dibs"
    directory.mkdir(parents=True)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    directory.chmod(0o777)
    assert FileMemo.of_this_user() is None
    filememo._memo_in.cache_clear()
    directory.chmod(0o700)
    assert FileMemo.of_this_user() is not None


def test_a_file_that_is_written_meanwhile_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dibs.digest import files

    path = written(tmp_path / "busy", b"a" * LARGE, aged=False)
    read = files._read

    def read_and_write(source: object, size_bytes: int) -> bytes:
        digest = read(source, size_bytes)
        with open(path, "ab") as file:
            file.write(b"b")
        return digest

    monkeypatch.setattr(files, "_read", read_and_write)
    with pytest.raises(Undigestible, match="is being written"):
        digest_of(File(path))


def test_what_is_missing_or_no_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(Undigestible, match=r"^data\['x'\].*there is no file or directory 'missing' \(looked in "):
        digest_of({"x": File("missing")}, "data")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(Undigestible, match="neither a file nor a directory"):
        digest_of(File(tmp_path / "pipe"))
    (tmp_path / "loop").mkdir()
    (tmp_path / "loop" / "again").symlink_to(tmp_path / "loop")
    with pytest.raises(Undigestible, match="contains itself"):
        digest_of(File(tmp_path / "loop"))
    with pytest.raises(TypeError, match="takes a path as text"):
        File(b"bytes")  # type: ignore[arg-type]


def test_it_is_taken_wherever_a_path_is(tmp_path: Path) -> None:
    file = File(written(tmp_path / "a.txt", b"text", aged=False))
    with open(file) as opened:
        assert opened.read() == "text"
    assert Path(file).name == "a.txt"
    assert pickle.loads(pickle.dumps(file)) == file
    assert hash(file) == hash(File(file))
    assert file != str(file)
    assert repr(file) == f"File({str(file)!r})"
    with pytest.raises(AttributeError, match="can't be changed"):
        file.path = "other"  # type: ignore[misc]


def test_a_file_of_many_pieces_is_hashed_whole(tmp_path: Path) -> None:
    from dibs.digest.files import content_digest

    content = os.urandom(1 << 20) * 20 + b"end"
    path = written(tmp_path / "large", content, aged=False)
    assert content_digest(None, str(path), ()) == (b"f", blake3(content).digest())
