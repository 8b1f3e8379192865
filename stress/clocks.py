"""Two hosts whose wall clocks are ten minutes apart: nobody takes over early, and nobody late.

Run as `python -m stress.clocks hold|take URL LOG TTL` by itself, under the preloaded shim.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from dibs.liveness import silent_after_s
from stress.fleet import PATIENCE_S, Log, open_cache

ROOT = Path(__file__).resolve().parent.parent


def build_shim(folder: str) -> str:
    """Compile the shim and return its path; raises FileNotFoundError without a C compiler."""
    shim = os.path.join(folder, "wallskew.so")
    source = str(Path(__file__).with_name("wallskew.c"))
    subprocess.run(["cc", "-shared", "-fPIC", "-O2", "-o", shim, source, "-ldl"], check=True)
    return shim


def skewed_clocks(url: str, folder: str, ttl_s: float, holder_skew_s: int, taker_skew_s: int) -> dict[str, Any]:
    """The holder beats for 3 ttl and is then killed; the taker, on another host, wants the lock all the time."""
    shim = build_shim(folder)
    log = Log(os.path.join(folder, f"clocks{holder_skew_s}{taker_skew_s}.jsonl"))

    def start(role: str, skew_s: int) -> subprocess.Popen[bytes]:
        environment = {**os.environ, "LD_PRELOAD": shim, "WALLSKEW_S": str(skew_s), "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-m", "stress.clocks", role, url, log.path, str(ttl_s)]
        return subprocess.Popen(command, env=environment, cwd=ROOT)

    holder = start("hold", holder_skew_s)
    try:
        held = log.wait_for(what="held")[0]
        taker = start("take", taker_skew_s)
        try:
            asked = log.wait_for(what="asked")[0]
            apart_s = asked["wall"] - held["wall"]
            assert abs(abs(apart_s) - abs(taker_skew_s - holder_skew_s)) < 60, f"the shim moved nothing: {apart_s}"
            time.sleep(3 * ttl_s)
            assert not log.read(what="taken"), "taken over although the holder beats"
            holder.kill()
            killed_at = time.monotonic()
            delay_s = log.wait_for(what="taken")[0]["at"] - killed_at
        finally:
            taker.kill()
            taker.wait()
    finally:
        holder.kill()
        holder.wait()
    assert ttl_s * 1.1 - ttl_s / 6 - 0.1 <= delay_s <= silent_after_s(ttl_s) + 1.0, f"taken over after {delay_s:.2f} s"
    return {"holder_skew_s": holder_skew_s, "taker_skew_s": taker_skew_s, "ttl_s": ttl_s, "delay_s": delay_s}


def _main(role: str, url: str, log_path: str, ttl_s: float) -> None:
    cache, log = open_cache(url, f"clock-{role}", ttl_s=ttl_s), Log(log_path)
    if role == "take":
        log.write(what="asked", wall=time.time())
    with cache.lock("clocks"):
        log.write(what="held" if role == "hold" else "taken", wall=time.time())
        if role == "hold":
            time.sleep(PATIENCE_S)


if __name__ == "__main__":
    _main(sys.argv[1], sys.argv[2], sys.argv[3], float(sys.argv[4]))
