"""Results of commands as bytes, and outputs put in place: nothing lost, nothing outside, each in one step."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import stat
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dibs.command import restore as restoring
from dibs.command.restore import Output, restore
from dibs.command.result import Pieces, Result, decode
from dibs.command.transcript import STDERR, STDOUT, Transcript, replay
from dibs.command.tree import entries_of
from dibs.errors import CodecError
from dibs.runtime import Runtime

OLD_NS = 10**18


def outline(top: Path) -> dict[str, tuple[int, bytes]]:
    """Everything that counts below `top`."""
    found = {}
    for path in [top, *sorted(top.rglob("*"))]:
        mode = path.lstat().st_mode
        content = os.fsencode(os.readlink(path)) if path.is_symlink() else b"" if path.is_dir() else path.read_bytes()
        found[str(path.relative_to(top))] = (0 if path.is_symlink() else mode, content)
    return found


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A directory with one of everything."""
    top = tmp_path / "made"
    (top / "deep" / "deeper").mkdir(parents=True)
    (top / "empty").mkdir()
    (top / "data.bin").write_bytes(os.urandom(3_000_000))
    (top / "nothing").touch()
    (top / "deep" / "deeper" / "odd name\n").write_text("odd")
    (top / os.fsdecode(b"\xff\xfe")).write_text("no UTF-8")
    (top / "tool").write_text("#!/bin/sh\n")
    (top / "tool").chmod(0o755)
    (top / "private").write_text("mine")
    (top / "private").chmod(0o400)
    (top / "link").symlink_to("deep/deeper")
    (top / "away").symlink_to("/nowhere/at/all")
    (top / "deep").chmod(0o555)
    top.chmod(0o750)
    return top


def sent(result: Result) -> Result:
    """As another worker gets it."""
    return decode(memoryview(b"".join(Pieces(result))))


def silent() -> Transcript:
    return Transcript()


def placed(made: Path, place: Path, runtime: Runtime) -> None:
    restore(sent(Result(0, silent(), [Output(str(place), entries_of(str(made)))])).outputs, runtime)


def test_a_directory_comes_back_byte_for_byte(tree: Path, tmp_path: Path, runtime: Runtime) -> None:
    place = tmp_path / "there" / "copy"
    placed(tree, place, runtime)
    assert outline(place) == outline(tree)
    assert os.listdir(place.parent) == ["copy"]


def test_the_bytes_depend_on_nothing_but_the_result(tree: Path, tmp_path: Path, runtime: Runtime) -> None:
    place = tmp_path / "copy"
    placed(tree, place, runtime)
    one, other = (Pieces(Result(0, silent(), [Output("out", entries_of(str(top)))])) for top in (tree, place))
    assert b"".join(one) == b"".join(other)
    assert b"".join(one) == b"".join(one), "as often as they are asked for"
    assert one.size_bytes == len(b"".join(one))


@pytest.mark.parametrize("before", ["file", "directory", "dangling link", "link to a file", "read-only directory"])
@pytest.mark.parametrize("made", ["file", "directory"])
def test_what_was_there_is_replaced(made: str, before: str, tree: Path, tmp_path: Path, runtime: Runtime) -> None:
    place = at = tmp_path / "there" / "place"
    place.parent.mkdir()
    if before == "file":
        place.write_text("old")
    elif before.endswith("directory"):
        place.mkdir()
        (place / "stale").write_text("old")
        place.chmod(0o555 if before.startswith("read") else 0o755)
    else:
        at = tmp_path / "elsewhere"
        place.symlink_to(at)
        if before == "link to a file":
            at.write_text("old")
    source = tree if made == "directory" else tree / "tool"
    placed(source, place, runtime)
    assert outline(at) == outline(source)
    assert place.is_symlink() == ("link" in before), "a link is written through, as the command would"
    assert os.listdir(place.parent) == ["place"], "nothing is left beside it"


def test_a_reader_sees_the_old_tree_or_the_new_one(
    tree: Path, tmp_path: Path, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "place"
    place.mkdir()
    (place / "old").touch()
    swapped = []
    exchange = restoring.exchange

    def watched(staged: str, at: str) -> None:
        assert os.listdir(at) == ["old"]
        assert outline(Path(staged)).keys() == outline(tree).keys(), "complete before it is put there"
        exchange(staged, at)
        swapped.append(at)

    monkeypatch.setattr(restoring, "exchange", watched)
    placed(tree, place, runtime)
    assert swapped == [str(place)]


def test_without_exchange_it_is_replaced_all_the_same(
    tree: Path, tmp_path: Path, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unknown(staged: str, at: str) -> None:
        raise OSError(errno.EINVAL, "no such call here")

    monkeypatch.setattr(restoring, "exchange", unknown)
    place = tmp_path / "there" / "place"
    (place / "old").mkdir(parents=True)
    placed(tree, place, runtime)
    assert outline(place) == outline(tree)
    assert os.listdir(place.parent) == ["place"]


def test_what_is_right_already_stays_and_gets_newer(tree: Path, tmp_path: Path, runtime: Runtime) -> None:
    inodes = {path: path.lstat().st_ino for path in tree.rglob("*")}
    for path in [*tree.rglob("*"), tree]:
        os.utime(path, ns=(OLD_NS, OLD_NS), follow_symlinks=False)
    began = time.time_ns() - 10**9
    placed(tree, tree, runtime)
    assert {path: path.lstat().st_ino for path in tree.rglob("*")} == inodes
    assert min(path.lstat().st_mtime_ns for path in [*tree.rglob("*"), tree]) > began


@pytest.mark.parametrize(
    "spoil",
    [
        lambda top: (top / "data.bin").write_bytes((top / "data.bin").read_bytes()[:-1] + b"?"),
        lambda top: (top / "tool").chmod(0o644),
        lambda top: (top / "more").touch(),
        lambda top: (top / "empty").rmdir(),
        lambda top: ((top / "link").unlink(), (top / "link").symlink_to("deep")),
        lambda top: ((top / "nothing").unlink(), (top / "nothing").mkdir()),
    ],
)
def test_the_slightest_difference_is_put_right(
    spoil: Callable[[Path], object], tree: Path, tmp_path: Path, runtime: Runtime
) -> None:
    place = tmp_path / "place"
    placed(tree, place, runtime)
    spoil(place)
    assert outline(place) != outline(tree)
    placed(tree, place, runtime)
    assert outline(place) == outline(tree)


def test_nothing_is_touched_when_one_of_the_outputs_cannot_be_written(tmp_path: Path, runtime: Runtime) -> None:
    (tmp_path / "new").write_text("new")
    (tmp_path / "first").write_text("old")
    entries = entries_of(str(tmp_path / "new"))
    with pytest.raises(OSError, match="first"):
        restore([Output(str(tmp_path / "first"), entries), Output(str(tmp_path / "first" / "x"), entries)], runtime)
    assert (tmp_path / "first").read_text() == "old"
    assert sorted(os.listdir(tmp_path)) == ["first", "new"]


def test_what_a_killed_restore_left_is_removed_and_what_a_living_one_builds_is_not(
    tree: Path, tmp_path: Path, runtime: Runtime
) -> None:
    there = tmp_path / "there"
    for name in (".place.dibs-dead", ".place.dibs-alive", ".other.dibs-dead"):
        (there / name / "new" / "deep").mkdir(parents=True)
        (there / name / "new").chmod(0o500)
    alive = os.open(there / ".place.dibs-alive", os.O_RDONLY)
    fcntl.flock(alive, fcntl.LOCK_EX)
    placed(tree, there / "place", runtime)
    os.close(alive)
    assert sorted(os.listdir(there)) == [".other.dibs-dead", ".place.dibs-alive", "place"]


def test_a_name_of_the_greatest_length_has_room(tmp_path: Path, runtime: Runtime) -> None:
    (tmp_path / "made").write_text("x")
    place = tmp_path / ("ü" * 127)
    placed(tmp_path / "made", place, runtime)
    assert place.read_text() == "x"


def test_a_file_that_changes_while_it_is_stored_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "out").write_bytes(b"x" * 3_000_000)
    pieces = Pieces(Result(0, silent(), [Output("out", entries_of(str(tmp_path / "out")))]))
    b"".join(pieces)
    (tmp_path / "out").write_bytes(b"y" * 3_000_000)
    with pytest.raises(CodecError, match="changed while it was stored"):
        b"".join(pieces)


def test_only_a_piece_of_a_large_file_is_in_memory(tmp_path: Path) -> None:
    with open(tmp_path / "out", "wb") as file:
        file.truncate(50_000_000)
    pieces = Pieces(Result(0, silent(), [Output("out", entries_of(str(tmp_path / "out")))]))
    assert max(len(piece) for piece in pieces) <= 1 << 20


def test_what_is_no_file_cannot_be_stored(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    os.mkfifo(tmp_path / "out" / "pipe")
    with pytest.raises(CodecError, match="pipe"):
        entries_of(str(tmp_path / "out"))


# --- bytes that somebody else has made ----------------------------------------------------------------------------


def forged(entries: Any, rest: bytes = b"", status: Any = 0, said: Any = 0) -> memoryview:
    index = json.dumps({"status": status, "said": said, "outputs": [["out", entries]]}).encode()
    return memoryview(b"dibs outputs 1\n" + struct.pack("<Q", len(index)) + index + rest)


def test_forged_bytes_are_read_when_nothing_is_wrong_with_them() -> None:
    found = decode(forged([["d", "", 0o755], ["f", "a", 0o644, 3]], b"abc"))
    assert [entry.path for entry in found.outputs[0].entries] == [(), ("a",)]


@pytest.mark.parametrize(
    "entries",
    [
        [["d", "", 0o755], ["f", "../x", 0o644, 0]],
        [["d", "", 0o755], ["f", "..", 0o644, 0]],
        [["d", "", 0o755], ["f", ".", 0o644, 0]],
        [["d", "", 0o755], ["f", "/x", 0o644, 0]],
        [["d", "", 0o755], ["f", "a\0b", 0o644, 0]],
        [["d", "", 0o755], ["d", "a", 0o755], ["f", "a/../../x", 0o644, 0]],
        [["d", "", 0o755], ["d", "a", 0o755], ["d", "a/..", 0o755]],
        [["d", "", 0o755], ["f", "a//b", 0o644, 0]],
        [["d", "", 0o755], ["l", "a", "/etc"], ["f", "a/x", 0o644, 0]],
        [["d", "", 0o755], ["l", "a", "/etc"], ["d", "a", 0o755], ["f", "a/x", 0o644, 0]],
        [["d", "", 0o755], ["f", "a", 0o644, 0], ["f", "a/x", 0o644, 0]],
        [["d", "", 0o755], ["f", "missing/x", 0o644, 0]],
        [["l", "", "/etc/passwd"]],
        [["f", "", 0o4755, 0]],
        [["f", "", 0o644, 4]],
        [["f", "", 0o644, -1]],
        [["f", "", 0o644, 1.0]],
        [["x", "", 0o644]],
        [["f", "x", 0o644, 0]],
        [["l", "a", "b\0c"]],
        ["fff"],
        7,
    ],
)
def test_an_entry_that_would_lead_out_or_makes_no_sense_is_refused(entries: Any) -> None:
    with pytest.raises(CodecError):
        decode(forged(entries))


def test_other_damage_is_refused_too() -> None:
    good = bytes(forged([["f", "", 0o644, 3]], b"abc"))
    for spoiled in (b"", good[:10], good[:40], good[:-1], good + b"x", b"dibs outputs 2" + good[14:]):
        with pytest.raises(CodecError):
            decode(memoryview(spoiled))
    for fields in ({"status": 256}, {"status": -1}, {"status": "0"}, {"said": 1}, {"said": True}):
        with pytest.raises(CodecError):
            decode(forged([], **fields))


# --- transcripts --------------------------------------------------------------------------------------------------


@pytest.fixture
def files(tmp_path: Path) -> Iterator[dict[int, int]]:
    opened = {
        stream: os.open(tmp_path / str(stream), os.O_RDWR | os.O_CREAT | os.O_APPEND) for stream in (STDOUT, STDERR)
    }
    yield opened
    for descriptor in opened.values():
        os.close(descriptor)


def test_a_transcript_keeps_the_order_of_both_streams(tmp_path: Path) -> None:
    both = os.open(tmp_path / "both", os.O_RDWR | os.O_CREAT | os.O_APPEND)
    said = [(STDOUT, b"one "), (STDERR, b"two "), (STDERR, b"three "), (STDOUT, b"four "), (STDERR, b"x" * 600_000)]
    with Transcript() as transcript:
        for stream, chunk in said:
            transcript.add(stream, chunk)
        replay(transcript.chunks(), {STDOUT: both, STDERR: both})
        assert transcript.size_bytes == sum(map(len, transcript.chunks()))
        assert transcript.tail == b"x" * 2000
    assert (tmp_path / "both").read_bytes() == b"".join(chunk for _, chunk in said)


@pytest.mark.parametrize("size", [1, 2, 5, 7, 1000])
def test_a_transcript_is_said_again_however_its_bytes_are_cut(
    size: int, tmp_path: Path, files: dict[int, int]
) -> None:
    with Transcript() as transcript:
        for number in range(20):
            transcript.add(STDOUT if number % 3 else STDERR, str(number).encode() * number)
        whole = b"".join(transcript.chunks())
    replay((whole[at : at + size] for at in range(0, len(whole), size)), files)
    for stream, wanted in ((STDOUT, True), (STDERR, False)):
        text = "".join(str(number) * number for number in range(20) if bool(number % 3) == wanted)
        assert (tmp_path / str(stream)).read_text() == text
    with pytest.raises(CodecError):
        replay([whole[:-1]], files)
    with pytest.raises(CodecError):
        replay([b"\7" + whole[1:]], files)


def test_a_full_disk_leaves_a_gap_and_no_error() -> None:
    with Transcript() as transcript:
        os.dup2(os.open("/dev/full", os.O_RDWR), transcript._file.fileno())
        transcript.add(STDOUT, b"lost")
        transcript.flush()
        transcript.add(STDOUT, b"lost as well")
        transcript.flush()
        assert transcript.gap is not None
        assert transcript.size_bytes == 0


def test_modes_have_no_bits_that_would_change_who_runs_it(tmp_path: Path, runtime: Runtime) -> None:
    (tmp_path / "made").write_text("x")
    (tmp_path / "made").chmod(0o4755)
    placed(tmp_path / "made", tmp_path / "copy", runtime)
    assert stat.S_IMODE((tmp_path / "copy").stat().st_mode) == 0o755
