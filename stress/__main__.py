"""`python -m stress [SCENARIO…]`: the full counts that the issue of each scenario asks for; CI runs fewer of each.

Scenarios are named below; without any, all run.  Prints what was counted, and ends with 1 if a promise broke.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from dibs.testing.servers import Server, ServiceMissing, ceph, ministack
from stress.clocks import skewed_clocks
from stress.commands import kill_workers, restore_trees, run_lines
from stress.damage import Objects, damage_everything, fresh_folder
from stress.failures import failing_key, killing_key
from stress.faults import all_faults
from stress.fleet import METHODS
from stress.full_disk import full_disk
from stress.gil import keep_the_interpreter
from stress.kills import kill_on_another_host, kill_the_holder, poll_by_fresh_processes
from stress.large import break_connections, damage_mapped, store_and_load
from stress.locks import count_under_lock, one_owner
from stress.once import compute_once
from stress.pauses import RIVALS, stop_a_lock_holder, stop_a_worker
from stress.requests import count_requests
from stress.sweeping import evict_while_working, kill_during_upload, sweep_while_working
from stress.tasks import compute_in_tasks

BUCKET = "dibs-stress"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m stress", description=__doc__)
    parser.add_argument("scenario", nargs="*", help="part of a scenario's name")
    parser.add_argument("--list", action="store_true", help="name the scenarios and end")
    parser.add_argument("--share", type=float, default=1.0, help="share of the full counts, for a quicker look")
    arguments = parser.parse_args()
    logging.disable(logging.CRITICAL)
    with ExitStack() as stack:
        servers: dict[str, Server] = {}

        def server(name: str) -> Server:
            if name not in servers:
                servers[name] = stack.enter_context(ministack() if name == "ministack" else ceph(gateways=2))
                stack.enter_context(servers[name].credentials())
                servers[name].make_bucket(BUCKET)
            return servers[name]

        scenarios = _scenarios(server, arguments.share)
        chosen = [name for name in scenarios if not arguments.scenario or any(p in name for p in arguments.scenario)]
        if arguments.list:
            print("\n".join(scenarios))
            return 0
        broken = sum(not _run(name, scenarios[name]) for name in chosen)
    print(f"{len(chosen) - broken} passed, {broken} failed")
    return 1 if broken else 0


def _run(name: str, scenario: Callable[[], dict[str, Any]]) -> bool:
    began = time.monotonic()
    try:
        result = scenario()
    except (ServiceMissing, PermissionError) as why:
        print(f"NOT RUN {name}: {why}", flush=True)
        return False
    except Exception:
        print(f"FAILED  {name} after {time.monotonic() - began:.1f} s\n{traceback.format_exc()}", flush=True)
        return False
    words = [f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}" for key, value in result.items()]
    numbers = ", ".join(words)
    print(f"ok      {name} ({time.monotonic() - began:.1f} s): {numbers}", flush=True)
    return True


def _scenarios(server: Callable[[str], Server], share: float) -> dict[str, Callable[[], dict[str, Any]]]:
    def some(count: int) -> int:
        return max(int(count * share), 1)

    def folder() -> str:
        return tempfile.mkdtemp(prefix="dibs-stress-")

    def local() -> str:
        return f"{folder()}/cache"

    def s3(name: str = "ministack") -> str:
        return server(name).url(BUCKET, tempfile.mktemp(prefix="run-", dir=""))

    def objects(number: int) -> tuple[str, Objects]:
        prefix = f"damage-{time.monotonic_ns()}-{number}"
        return server("ministack").url(BUCKET, prefix), Objects(server("ministack").client(), BUCKET, prefix)

    found: dict[str, Callable[[], dict[str, Any]]] = {}
    for method in METHODS:
        for processes in (2, 8, 64):
            found[f"once local {method} {processes}"] = lambda m=method, p=processes: compute_once(
                local(), f"{folder()}/log", p, m, some(50)
            )
            found[f"once s3 {method} {processes}"] = lambda m=method, p=processes: compute_once(
                s3(), f"{folder()}/log", p, m, some(10), ttl_s=30.0
            )
    found |= {
        "once ceph fork 8": lambda: compute_once(s3("ceph"), f"{folder()}/log", 8, "fork", some(5)),
        "count local 8": lambda: count_under_lock(local(), folder(), 8, some(500)),
        "count local 64": lambda: count_under_lock(local(), folder(), 64, some(200)),
        "count s3 8": lambda: count_under_lock(s3(), folder(), 8, some(50)),
        "count ceph 4": lambda: count_under_lock(s3("ceph"), folder(), 4, some(20)),
        "kill local": lambda: kill_the_holder(local(), folder(), some(20)),
        "kill s3": lambda: kill_the_holder(s3(), folder(), some(20)),
        "kill other host local": lambda: kill_on_another_host(local(), folder(), 3.0, 1.0),
        "kill other host s3": lambda: kill_on_another_host(s3(), folder(), 3.0, 1.5),
        "poll local": lambda: poll_by_fresh_processes(local(), folder(), 5.0),
        "poll s3": lambda: poll_by_fresh_processes(s3(), folder(), 5.0),
        "stop lock local": lambda: stop_a_lock_holder(local(), folder(), some(50)),
        "stop lock s3": lambda: stop_a_lock_holder(s3(), folder(), some(10), ttl_s=2.0),
        "faults s3": lambda: all_faults(server("ministack"), BUCKET, folder(), some(20)),
        "gil process local": lambda: keep_the_interpreter(local(), folder(), some(50), "process"),
        "gil process s3": lambda: keep_the_interpreter(s3(), folder(), some(10), "process", ttl_s=6.0),
        "gil thread local": lambda: keep_the_interpreter(local(), folder(), some(50), "thread"),
        "failing local": lambda: failing_key(local(), folder()),
        "failing s3": lambda: failing_key(s3(), folder()),
        "killing local": lambda: killing_key(local(), folder()),
        "killing s3": lambda: killing_key(s3(), folder()),
        "full disk": lambda: full_disk(folder()),
        "stale locks": lambda: one_owner(local(), folder(), some(400), 8, stale=True),
        "fresh locks": lambda: one_owner(local(), folder(), some(2000), 8, stale=False),
        "clocks behind": lambda: skewed_clocks(local(), folder(), 2.0, 600, 0),
        "clocks ahead": lambda: skewed_clocks(local(), folder(), 2.0, 0, 600),
        "run local": lambda: run_lines(local(), folder(), some(400), max(some(100), 10), 8),
        "run s3": lambda: run_lines(s3(), folder(), some(40), max(some(10), 1), 8),
        "run kill local": lambda: kill_workers(local(), folder(), some(20)),
        "run kill s3": lambda: kill_workers(s3(), folder(), some(10)),
        "run trees local": lambda: restore_trees(local(), folder(), some(30)),
        "run trees s3": lambda: restore_trees(s3(), folder(), some(10)),
        "tasks local": lambda: compute_in_tasks(local(), folder(), tasks=some(2000)),
        "tasks s3": lambda: compute_in_tasks(s3(), folder(), 4, some(500), 50, ttl_s=30.0),
        "large local": lambda: store_and_load(local(), folder(), some(1024)),
        "large s3": lambda: store_and_load(s3(), folder(), some(1024)),
        "large broken s3": lambda: break_connections(server("ministack"), BUCKET, some(20)),
        "large damage": lambda: damage_mapped(folder(), some(300)),
        "requests": lambda: count_requests(server("ministack"), BUCKET),
        "sweep local": lambda: sweep_while_working(local(), folder(), 8, some(60)),
        "sweep s3": lambda: sweep_while_working(s3(), folder(), 4, some(60)),
        "evict local": lambda: evict_while_working(local(), folder(), 8, some(30)),
        "evict s3": lambda: evict_while_working(s3(), folder(), 4, some(30)),
        "kill upload local": lambda: kill_during_upload(local(), folder(), some(10)),
        "kill upload s3": lambda: kill_during_upload(s3(), folder(), some(10)),
        "damage local": lambda: damage_everything(fresh_folder(folder()), some(60)),
        "damage s3": lambda: damage_everything(objects, some(20)),
    }
    for rival in RIVALS:
        found[f"stop local {rival}"] = lambda r=rival: stop_a_worker(local(), folder(), some(50), r)
        found[f"stop s3 {rival}"] = lambda r=rival: stop_a_worker(s3(), folder(), some(5), r, ttl_s=2.0)
    return found


if __name__ == "__main__":
    sys.exit(main())
