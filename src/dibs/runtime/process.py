"""What the kernel tells about processes: this boot, this process, and the fate of another one.

Nothing here ever calls a living process dead: what can't be read, or could mean either, counts as alive.
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from typing import Final, NamedTuple

_PF_EXITING: Final = 0x4  # include/linux/sched.h


class Fate(NamedTuple):
    """What a pid tells: `dead` says how; `alive` is True only when it is certainly the very same process."""

    dead: str | None
    alive: bool


UNKNOWN: Final = Fate(None, False)


def _read_text(path: str) -> str:
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            return file.read()
    except OSError:
        return ""


def boot_id() -> str:
    """Random id of this boot of this kernel; empty where there is none."""
    if sys.platform == "darwin":
        return _sysctl("kern.bootsessionuuid")
    return _read_text("/proc/sys/kernel/random/boot_id").strip()


def _sysctl(name: str) -> str:
    import ctypes

    buffer, size = ctypes.create_string_buffer(256), ctypes.c_size_t(256)
    try:
        sysctl = ctypes.CDLL(None).sysctlbyname
        failed = sysctl(name.encode(), buffer, ctypes.byref(size), None, ctypes.c_size_t(0))
    except (OSError, AttributeError):
        return ""
    return "" if failed else buffer.value.decode("ascii", "replace")


def pid_namespace() -> int:
    """Inode of this process's PID namespace; 1 on systems that have but one; 0 where unknown."""
    try:
        return os.stat("/proc/self/ns/pid").st_ino
    except OSError:
        return 0 if sys.platform == "linux" else 1


def clocks_are_shifted() -> bool:
    """True in a time namespace, where monotonic time, boot time and start times are moved."""
    offsets = [line.split() for line in _read_text("/proc/self/timens_offsets").splitlines()]
    return any(number != "0" for line in offsets for number in line[1:])


def start_ticks(pid: int) -> int:
    """When the process started, in clock ticks since boot; 0 where unknown."""
    if sys.platform != "linux":
        return _start_by_psutil(pid)
    fields = _stat_fields(pid)
    return int(fields[19]) if fields else 0


def this() -> tuple[int, int]:
    """Pid and start ticks of this process."""
    pid = os.getpid()
    return pid, start_ticks(pid)


def _stat_fields(pid: int) -> list[str]:
    # From field 3 on: the name before it, in parentheses, may contain anything.
    _, closed, rest = _read_text(f"/proc/{pid}/stat").rpartition(")")
    fields = rest.split()
    return fields if closed and len(fields) > 19 else []


def fate(pid: int, started: int) -> Fate:
    """What is certain about process `pid` of this PID namespace that started at `started` (0: unknown)."""
    if pid <= 0:
        return UNKNOWN
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return Fate(f"pid {pid} is gone", False)
    except OSError:
        pass  # not ours to signal, but there
    if sys.platform != "linux":
        return _fate_by_psutil(pid, started)
    fields = _stat_fields(pid)
    if not fields:  # hidden from us, or gone this very moment
        return UNKNOWN
    state, flags, ticks = fields[0], int(fields[6]), int(fields[19])
    if state in "ZX":
        return Fate(f"pid {pid} is a zombie", False)
    if not started:
        return UNKNOWN
    if ticks != started:
        return Fate(f"pid {pid} was reused", False)
    return Fate(None, not flags & _PF_EXITING)


def _start_by_psutil(pid: int) -> int:
    try:
        import psutil

        return int(psutil.Process(pid).create_time() * 100)
    except Exception:
        return 0


def _fate_by_psutil(pid: int, started: int) -> Fate:
    try:
        import psutil

        process = psutil.Process(pid)
        if process.status() in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD):
            return Fate(f"pid {pid} is a zombie", False)
        ticks = int(process.create_time() * 100)
    except Exception:
        return UNKNOWN
    if started and abs(ticks - started) > 1:
        return Fate(f"pid {pid} was reused", False)
    return Fate(None, bool(started))


def flock_owner(fd: int) -> str | None:
    """Who holds the `flock` on this file, as text for people: "pid 123 (stopped)"; None where unknown."""
    try:
        status = os.fstat(fd)
    except OSError:
        return None
    device = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
    for line in _read_text("/proc/locks").splitlines():
        fields = line.split()
        if "FLOCK" in fields and device in fields and "->" not in fields:
            pid = int(fields[fields.index(device) - 1])
            if pid > 0:
                state = _stat_fields(pid)[:1]
                return f"pid {pid} (stopped)" if state in (["T"], ["t"]) else f"pid {pid}"
    return None


def paused(pid: int) -> str | None:
    """Why process `pid` can't go on now (stopped, traced, frozen); None if it can, or where that can't be told."""
    if sys.platform != "linux":
        return _paused_by_psutil(pid)
    state = _stat_fields(pid)[:1]
    if state in (["T"], ["t"]):
        return f"pid {pid} is stopped" if state == ["T"] else f"pid {pid} is stopped by a debugger"
    return f"pid {pid} is frozen" if _frozen(pid) else None


def _frozen(pid: int) -> bool:
    """True when its control group is frozen, where that can be seen from here."""
    for line in _read_text(f"/proc/{pid}/cgroup").splitlines():
        _, kinds, path = line.split(":", 2)
        if not kinds and "frozen 1" in _read_text(f"/sys/fs/cgroup{path}/cgroup.events").splitlines():
            return True
        if kinds == "freezer" and _read_text(f"/sys/fs/cgroup/freezer{path}/freezer.state").strip() == "FROZEN":
            return True
    return False


def _paused_by_psutil(pid: int) -> str | None:
    try:
        import psutil

        stopped = psutil.Process(pid).status() in (psutil.STATUS_STOPPED, psutil.STATUS_TRACING_STOP)
    except Exception:
        return None
    return f"pid {pid} is stopped" if stopped else None


def reap(pid: int, started: int) -> None:
    """Forget process `pid` if it is a child of ours that has ended, and the very one that started at `started`."""
    fields = _stat_fields(pid) if pid > 0 else []
    if fields and fields[0] == "Z" and int(fields[19]) == started and int(fields[1]) == os.getpid():
        with suppress(OSError):
            os.waitpid(pid, os.WNOHANG)
