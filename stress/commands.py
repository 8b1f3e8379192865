"""`dibs run` in a crowd: each distinct command once, the killed replaced by one waiter, directories byte for byte."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from typing import Any

from stress.fleet import PATIENCE_S, median, until

DIBS = (sys.executable, "-m", "dibs", "run")
_COUNTED = 'echo "$1" >> runs; sleep 0.1; echo "result of $1"; echo "about $1" >&2; echo "$1" > "out.$1"'
# The first says who it is and stays; whoever comes after it ends.
_KILLED = 'echo >> "runs.$1"; echo $$; [ "$(wc -l < "runs.$1")" = 1 ] && exec sleep 600; echo done > "out.$1"'


def _environment(url: str) -> dict[str, str]:
    return {**os.environ, "DIBS_URL": url}


def run_lines(url: str, folder: str, lines: int, distinct: int, processes: int) -> dict[str, Any]:
    """`xargs` over lines, many of them the same; asserts one run of each, and the same answer for all."""
    typed = "".join(f"{number % distinct}\n" for number in range(lines))
    words = [*DIBS, "--out", "out.{}", "--", "sh", "-c", _COUNTED, "sh", "{}"]
    command = ["xargs", "-P", str(processes), "-I", "{}", *words]
    began = time.monotonic()
    ran = subprocess.run(
        command, input=typed, capture_output=True, text=True, cwd=folder, env=_environment(url), timeout=600.0
    )
    took_s = time.monotonic() - began
    assert ran.returncode == 0, ran.stderr
    with open(os.path.join(folder, "runs"), encoding="ascii") as file:
        runs = Counter(file.read().split())
    assert runs == Counter(str(number) for number in range(distinct)), f"runs of the commands: {runs}"
    for said, words in ((ran.stdout, "result of"), (ran.stderr, "about")):
        wanted = Counter(f"{words} {number % distinct}" for number in range(lines))
        assert Counter(said.splitlines()) == wanted, said
    for number in range(distinct):
        with open(os.path.join(folder, f"out.{number}"), encoding="ascii") as file:
            assert file.read() == f"{number}\n"
    return {"lines": lines, "runs": sum(runs.values()), "seconds": took_s}


def kill_workers(url: str, folder: str, kills: int, waiters: int = 3) -> dict[str, Any]:
    """SIGKILL, or SIGTERM, for the worker that runs the command; asserts that one waiter takes its place."""
    delays_s: list[float] = []
    for number in range(kills):
        polite = number % 2 == 1
        words = [*DIBS, "--out", f"out.{number}", "--", "sh", "-c", _KILLED, "sh", str(number)]
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "cwd": folder, "env": _environment(url), "text": True}
        with subprocess.Popen(words, **pipes) as holder:
            assert holder.stdout is not None
            command = int(holder.stdout.readline())
            waiting = [subprocess.Popen(words, **pipes) for _ in range(waiters)]
            time.sleep(0.6)  # let them begin to wait: that is what is measured
            killed_at = time.monotonic()
            holder.send_signal(signal.SIGTERM if polite else signal.SIGKILL)
            said = {process.communicate(timeout=PATIENCE_S)[0] for process in waiting}
            delays_s.append(time.monotonic() - killed_at)
            ended = holder.wait(PATIENCE_S)
        assert ended == (128 + signal.SIGTERM if polite else -signal.SIGKILL), ended
        assert [process.returncode for process in waiting] == [0] * waiters
        assert len(said) == 1, f"different answers: {said}"
        with open(os.path.join(folder, f"runs.{number}"), encoding="ascii") as file:
            assert len(file.readlines()) == 2, "one of those who waited runs it, and no other"
        for _ in until(PATIENCE_S, "end of the killed worker's command"):
            if not _lives(command):
                break
    return {"kills": kills, "median_s": median(delays_s), "max_s": max(delays_s)}


def _lives(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:
            return file.read().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


_PLANTED = """
import os, random, sys
dice = random.Random(int(sys.argv[1]))
for number in range(int(sys.argv[2])):
    directory = os.path.join("tree", *(str(dice.randrange(4)) for _ in range(dice.randrange(4))))
    os.makedirs(directory, exist_ok=True)
    path = os.path.join(directory, f"file {number}")
    with open(path, "wb") as file:
        file.write(dice.randbytes(dice.choice([0, 1, 100, 70_000, 1_500_000])))
    os.chmod(path, dice.choice([0o644, 0o755, 0o600, 0o444]))
    if dice.random() < 0.2:
        os.symlink(f"file {number}", f"{path} again")
"""


def restore_trees(url: str, folder: str, trees: int, files: int = 40) -> dict[str, Any]:
    """Random directories, made, spoiled and restored; asserts that each comes back byte for byte."""
    restored_s: list[float] = []
    tree, kept = os.path.join(folder, "tree"), os.path.join(folder, "kept")
    for number in range(trees):
        words = [*DIBS, "--out", "tree", "--", sys.executable, "-c", _PLANTED, str(number), str(files)]
        subprocess.run(["rm", "-rf", "tree", "kept"], cwd=folder, check=True)
        subprocess.run(words, cwd=folder, env=_environment(url), check=True)
        subprocess.run(["cp", "-a", "tree", "kept"], cwd=folder, check=True)
        _spoil(tree, random.Random(number))
        began = time.monotonic()
        subprocess.run(words, cwd=folder, env=_environment(url), check=True)
        restored_s.append(time.monotonic() - began)
        assert _outline(tree) == _outline(kept), f"tree {number} came back otherwise"
        left = [name for name in os.listdir(folder) if name.startswith(".tree")]
        assert not left, f"left beside it: {left}"
    return {"trees": trees, "files": files, "restored_median_s": median(restored_s)}


def _spoil(tree: str, dice: random.Random) -> None:
    paths = [os.path.join(directory, name) for directory, _, names in os.walk(tree) for name in names]
    for path in dice.sample(paths, len(paths) // 4):
        os.remove(path)
    with open(os.path.join(tree, "stale"), "w", encoding="ascii") as file:
        file.write("of an earlier run")


def _outline(top: str) -> dict[str, object]:
    """Everything that counts below `top`, with the content of each file."""
    found: dict[str, object] = {}
    for directory, below, names in os.walk(top):
        for name in (*below, *names):
            path = os.path.join(directory, name)
            what: object = os.readlink(path) if os.path.islink(path) else os.stat(path).st_mode
            if os.path.isfile(path):
                with open(path, "rb") as file:
                    what = (what, file.read())
            found[os.path.relpath(path, top)] = what
    return found
