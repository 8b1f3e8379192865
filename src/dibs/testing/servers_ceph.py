"""One-node Ceph in a temporary directory: a monitor, one in-memory store daemon, and one or two gateways.

Several gateways over one cluster are the only place on one machine where conditional writes meet real
distribution.  Gateways before 2025 take the ETag of If-Match only without its quotes, and answer 500 to some
losers of a race.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

from dibs.testing.servers import LOG_TAIL_CHARS, ServiceMissing, free_port, running

PACKAGES: Final = "ceph-mon ceph-osd radosgw ceph-common"
PROGRAMS: Final = ("ceph", "ceph-authtool", "ceph-mon", "ceph-osd", "monmaptool", "radosgw", "radosgw-admin")
COMMAND_TIMEOUT_S: Final = 60
OSD_TIMEOUT_S: Final = 30
GATEWAY_TIMEOUT_S: Final = 60

# cephx with one keyring: this gateway never authenticates when authentication is switched off.
CONFIGURATION: Final = """\
[global]
fsid = {fsid}
mon_host = [v2:127.0.0.1:{port}/0]
public_network = 127.0.0.0/8
public_addr = 127.0.0.1
ms_bind_ipv6 = false
auth_cluster_required = cephx
auth_service_required = cephx
auth_client_required = cephx
keyring = {dir}/keyring
auth_allow_insecure_global_id_reclaim = false
run_dir = {dir}/run
pid_file = {dir}/run/$type.$id.pid
admin_socket = {dir}/run/$type.$id.asok
log_file = {dir}/log/$type.$id.log
log_to_stderr = false
mon_cluster_log_file = {dir}/log/cluster.log
osd_pool_default_size = 1
osd_pool_default_min_size = 1
osd_pool_default_pg_num = 1
osd_pool_default_pgp_num = 1
osd_pool_default_pg_autoscale_mode = off
mon_allow_pool_size_one = true
mon_warn_on_pool_no_redundancy = false
mon_max_pg_per_osd = 1000
osd_crush_chooseleaf_type = 0
osd_objectstore = memstore
memstore_device_bytes = 2147483648
osd_memory_target = 939524096
osd_op_num_shards = 2
osd_numa_auto_affinity = false
ms_async_op_threads = 2
rgw_thread_pool_size = 64
rgw_dynamic_resharding = false
rgw_override_bucket_index_max_shards = 1
rgw_enable_usage_log = false
rgw_enable_ops_log = false
rgw_run_sync_thread = false
[mon.a]
mon_data = {dir}/mon
mon_initial_members = a
mon_data_avail_warn = 2
mon_data_avail_crit = 1
[osd.0]
osd_data = {dir}/osd
"""
GATEWAY_CONFIGURATION: Final = """\
[client.{name}]
rgw_frontends = beast endpoint=127.0.0.1:{port} tcp_nodelay=1
"""


@contextmanager
def running_ceph(gateways: int) -> Iterator[tuple[str, ...]]:
    """Run the cluster and yield the endpoint of each gateway; ServiceMissing when it isn't installed."""
    missing = [program for program in PROGRAMS if shutil.which(program) is None]
    if missing:
        raise ServiceMissing(
            f"Ceph is not installed (no {missing[0]}): apt-get install --no-install-recommends {PACKAGES}"
        )
    with tempfile.TemporaryDirectory(prefix="dibs-ceph-") as directory, ExitStack() as daemons:
        node = _Node(Path(directory), [f"rgw{n}" for n in range(gateways)])
        node.format()
        daemons.enter_context(running("ceph-mon", node.daemon("ceph-mon", "-i", "a")))
        node.register_osd()
        daemons.enter_context(running("ceph-osd", node.daemon("ceph-osd", "-i", "0")))
        node.wait_for_osd()
        node.create_user("testkey", "testsecret")
        for name, port in node.gateways.items():
            command = node.daemon("radosgw", "-n", f"client.{name}", "--no-mon-config")
            daemons.enter_context(running("radosgw", command, port, ready_timeout_s=GATEWAY_TIMEOUT_S))
        yield tuple(f"http://127.0.0.1:{port}" for port in node.gateways.values())


class _Node:
    """The files of the cluster and the commands that talk to it."""

    def __init__(self, directory: Path, gateways: list[str]) -> None:
        self.directory, self.configuration = directory, directory / "ceph.conf"
        self.gateways = {name: free_port() for name in gateways}
        self.fsid, self.monitor_port = str(uuid.uuid4()), free_port()
        for name in ("mon", "osd", "run", "log"):
            (directory / name).mkdir()
        text = CONFIGURATION.format(fsid=self.fsid, port=self.monitor_port, dir=directory)
        text += "".join(GATEWAY_CONFIGURATION.format(name=name, port=port) for name, port in self.gateways.items())
        self.configuration.write_text(text)

    def daemon(self, program: str, *arguments: str) -> list[str]:
        return [program, "-f", "-c", str(self.configuration), *arguments]

    def run(self, program: str, *arguments: str) -> str:
        ran = subprocess.run(
            [program, "-c", str(self.configuration), *arguments],
            capture_output=True,
            text=True,
            timeout=COMMAND_TIMEOUT_S,
        )
        if ran.returncode:
            said = (ran.stdout + ran.stderr)[-LOG_TAIL_CHARS:]
            raise RuntimeError(f"{program} {' '.join(arguments)} failed ({ran.returncode}):\n{said}")
        return ran.stdout

    def format(self) -> None:
        keyring, monmap = str(self.directory / "keyring"), str(self.directory / "monmap")
        capabilities = {
            "mon.": "mon:allow *",
            "client.admin": "mon:allow *,osd:allow *,mgr:allow *",
            "osd.0": "mon:allow profile osd,osd:allow *",
            **{f"client.{name}": "mon:allow *,osd:allow rwx" for name in self.gateways},
        }
        for name, caps in capabilities.items():
            words = [word for cap in caps.split(",") for word in ("--cap", *cap.split(":"))]
            create = ["--create-keyring"] if name == "mon." else []
            self.run("ceph-authtool", *create, keyring, "--gen-key", "-n", name, *words)
        address = f"[v2:127.0.0.1:{self.monitor_port}]"
        self.run("monmaptool", "--create", "--clobber", "--fsid", self.fsid, "--addv", "a", address, monmap)
        self.run("ceph-mon", "-i", "a", "--mkfs", "--monmap", monmap, "--keyring", keyring)

    def register_osd(self) -> None:
        number = self.run("ceph", "osd", "create").strip()
        assert number == "0", number
        self.run("ceph-osd", "-i", "0", "--mkfs", "--osd-uuid", str(uuid.uuid4()))
        self.run("ceph", "osd", "crush", "add-bucket", "default", "root")
        self.run("ceph", "osd", "crush", "add", "osd.0", "1.0", "root=default", "host=vm")

    def wait_for_osd(self) -> None:
        deadline = time.monotonic() + OSD_TIMEOUT_S
        while "1 up" not in self.run("ceph", "osd", "stat"):
            if time.monotonic() > deadline:
                raise RuntimeError(f"the store daemon didn't come up within {OSD_TIMEOUT_S} s")
            time.sleep(0.1)

    def create_user(self, access_key: str, secret_key: str) -> None:
        keys = [f"--access-key={access_key}", f"--secret-key={secret_key}"]
        names = ["--uid=dibs", "--display-name=dibs"]
        self.run("radosgw-admin", "user", "create", *names, *keys, "--no-mon-config")
