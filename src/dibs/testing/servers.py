"""Real S3 servers on free loopback ports, each a context manager, for tests, demos and rehearsals.

    with ministack() as server:
        server.make_bucket("bucket")
        with server.credentials():
            cache = dibs.open(server.url("bucket", "prefix"))

| server | what it is | what it is for |
|---|---|---|
| `ministack()` | an emulator in pure Python whose conditional writes are atomic | the default |
| `moto(atomic=True)` | moto with one lock around each request | a second opinion |
| `moto(atomic=False)` | moto as shipped: it checks, then writes, unlocked | a store that races |
| `ceph()` | one-node Ceph with one or two of its gateways (see `servers_ceph`) | the real thing |

Each server runs under a guard process that ends it when its parent is gone, however that died.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

READY_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 5.0
PORT_ATTEMPTS_MAX = 3
LOG_TAIL_CHARS = 2000


class ServiceMissing(Exception):
    """A server isn't installed here; the message says how to install it."""


class Server(NamedTuple):
    """A running server.  `endpoint_urls` has one entry for each of its gateways."""

    name: str
    endpoint_urls: tuple[str, ...]
    access_key: str = "testkey"
    secret_key: str = "testsecret"
    region: str = "us-east-1"

    @property
    def endpoint_url(self) -> str:
        return self.endpoint_urls[0]

    def url(self, bucket: str, prefix: str = "", gateway: int = 0) -> str:
        """The URL for `dibs.open`; the credentials come from the environment, see `credentials`."""
        endpoint = quote(self.endpoint_urls[gateway], safe=":/")
        return f"s3://{bucket}/{prefix}?endpoint_url={endpoint}&region={self.region}"

    def make_bucket(self, name: str) -> None:
        self.client().create_bucket(Bucket=name)

    def client(self) -> Any:
        """A plain SDK client of this server, for looking behind dibs' back."""
        import boto3
        from botocore.config import Config

        return boto3.Session().client(
            "s3",
            endpoint_url=self.endpoint_url,
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            region_name=self.region,
            config=Config(s3={"addressing_style": "path"}),
        )

    def environment(self) -> dict[str, str]:
        """The variables that a worker of this server needs."""
        return {
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_EC2_METADATA_DISABLED": "true",  # no real role may answer instead
            "NO_PROXY": ",".join(filter(None, (os.environ.get("NO_PROXY"), "127.0.0.1"))),
        }

    @contextmanager
    def credentials(self) -> Iterator[None]:
        """Put `environment` into this process's environment, for its children too."""
        with patched_environment(self.environment()):
            yield


@contextmanager
def patched_environment(values: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextmanager
def ministack(data_dir: str | Path | None = None, install: bool = True) -> Iterator[Server]:
    """MiniStack's S3, in memory, or kept in `data_dir` over restarts.

    Its Python is $DIBS_MINISTACK_PYTHON, or `.venv-ministack` in the checkout or the working directory; else,
    with `install`, one that is made in the user's cache directory (46 MB, once).
    Raises ServiceMissing when there is none.
    """
    python = ministack_python(install)
    kept = {} if data_dir is None else {"S3_PERSIST": "1", "S3_DATA_DIR": str(Path(data_dir).resolve())}
    with ExitStack() as stack:

        def start(port: int) -> None:
            address = f"127.0.0.1:{port}"
            settings = {
                "GATEWAY_PORT": str(port), "EDGE_PORT": str(port), "MINISTACK_HOST": "localhost",
                "GATEWAY_LISTEN": address, "SERVICES": "s3", "LOG_LEVEL": "ERROR", "PERSIST_STATE": "0",
            }  # fmt: skip
            command = [python, "-m", "hypercorn", "ministack.app:app", "--bind", address]
            command += ["--log-level", "error", "--keep-alive", "75"]
            stack.enter_context(running("MiniStack", command, port, {**settings, **kept}))

        yield Server("ministack", (_on_free_port(start),))


@contextmanager
def moto(atomic: bool = True) -> Iterator[Server]:
    """Moto's server; `atomic` serialises its requests, because by itself it checks first and writes later."""
    if importlib.util.find_spec("moto") is None or importlib.util.find_spec("flask") is None:
        raise ServiceMissing("moto's server is not installed: pip install 'moto[server]'")
    with ExitStack() as stack:

        def start(port: int) -> None:
            command = [sys.executable, "-P", __file__, "moto", str(port), "atomic" if atomic else "stock"]
            stack.enter_context(running("moto", command, port))

        yield Server("moto", (_on_free_port(start),))


@contextmanager
def ceph(gateways: int = 1) -> Iterator[Server]:
    """One-node Ceph (in memory) with so many gateways in front of it; takes about 15 s to start."""
    from dibs.testing.servers_ceph import running_ceph

    with running_ceph(gateways) as endpoint_urls:
        yield Server("ceph", endpoint_urls)


# --- processes ------------------------------------------------------------------------------------------


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class EndedEarly(RuntimeError):
    """A server ended before it listened; the message ends with its log."""


def _on_free_port(start: Any) -> str:
    """Call `start(port)`, again with another port when somebody else was faster to take it."""
    for attempt in range(1, PORT_ATTEMPTS_MAX + 1):
        port = free_port()
        try:
            start(port)
        except EndedEarly as error:
            if attempt == PORT_ATTEMPTS_MAX or "in use" not in str(error):
                raise
        else:
            return f"http://127.0.0.1:{port}"
    raise AssertionError("unreachable")


@contextmanager
def running(
    name: str,
    command: Sequence[str],
    port: int | None = None,
    environment: Mapping[str, str] | None = None,
    ready_timeout_s: float = READY_TIMEOUT_S,
) -> Iterator[int]:
    """Run `command` under a guard until the block ends; enter when it listens on `port`.

    Yields the pid of the guard.
    Raises EndedEarly with the end of its log when it ends before that.
    """
    with tempfile.TemporaryFile() as log:
        guard = subprocess.Popen(
            [sys.executable, "-I", "-S", __file__, "guard", *command],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            env={**os.environ, **(environment or {})},
        )
        try:
            deadline = time.monotonic() + ready_timeout_s
            while port is not None and not listens(port):
                if guard.poll() is not None or time.monotonic() > deadline:
                    log.seek(0)
                    tail = log.read().decode(errors="replace")[-LOG_TAIL_CHARS:]
                    raise EndedEarly(f"{name} didn't start (status {guard.poll()}):\n{tail}")
                time.sleep(0.02)
            yield guard.pid
        finally:
            stop(guard)


def stop(guard: subprocess.Popen[bytes]) -> None:
    assert guard.stdin is not None
    guard.stdin.close()
    try:
        guard.wait(2 * STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        guard.kill()
        guard.wait()


def listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


def _guard(command: Sequence[str]) -> int:
    """Run `command` in a process group of its own; end the whole group when our parent lets go of our stdin.

    A pipe instead of PR_SET_PDEATHSIG: that one follows the thread that started us, and Linux only.
    The parent's forked children may keep the pipe open, so its pid is watched as well.
    """
    import select

    parent = os.getppid()
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches our parent too, which then stops us
    try:
        while child.poll() is None and os.getppid() == parent:
            readable, _, _ = select.select([sys.stdin], [], [], 0.5)
            if readable and not os.read(sys.stdin.fileno(), 1):
                break
    finally:
        _end_group(child)
    return child.returncode


def _end_group(child: subprocess.Popen[bytes]) -> None:
    for signal_number, patience_s in ((signal.SIGTERM, STOP_TIMEOUT_S), (signal.SIGKILL, STOP_TIMEOUT_S)):
        try:
            os.killpg(child.pid, signal_number)
        except ProcessLookupError:
            break
        try:
            child.wait(patience_s)
        except subprocess.TimeoutExpired:
            continue


def _moto(port: int, atomic: bool) -> None:
    import io
    import threading

    from moto.moto_server import werkzeug_app as served
    from werkzeug.serving import make_server

    class Quiet(served.MotoRequestHandler):
        protocol_version = "HTTP/1.1"  # keeps connections open

        def log_request(self, *_: object) -> None:
            pass

    app = served.DomainDispatcherApplication(served.create_backend_app)
    one_at_a_time = threading.Lock()

    def serialised(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        size = int(environ.get("CONTENT_LENGTH") or 0)
        # The body is read before the lock is taken, so that a slow client holds up nobody.
        environ["wsgi.input"] = io.BytesIO(environ["wsgi.input"].read(size))
        with one_at_a_time:
            return [b"".join(app(environ, start_response))]

    make_server("127.0.0.1", port, serialised if atomic else app, threaded=True, request_handler=Quiet).serve_forever()


# --- MiniStack's Python ---------------------------------------------------------------------------------


def ministack_python(install: bool) -> str:
    """The interpreter that has MiniStack; it lives apart, because it pins its own botocore."""
    named = os.environ.get("DIBS_MINISTACK_PYTHON")
    if named:
        if not Path(named).exists():
            raise ServiceMissing(f"$DIBS_MINISTACK_PYTHON is {named}, which doesn't exist: run `make setup`")
        return named
    cached = user_cache_dir() / "ministack-venv"
    beside = [Path(__file__).resolve().parents[3] / ".venv-ministack", Path.cwd() / ".venv-ministack"]
    for venv in (*beside, cached):
        if (venv / "bin" / "python").exists():
            return str(venv / "bin" / "python")
    if not install:
        raise ServiceMissing("MiniStack is not installed: run `make setup`")
    return _install_ministack(cached)


def user_cache_dir() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dibs"


def _install_ministack(venv: Path) -> str:
    venv.parent.mkdir(parents=True, exist_ok=True)
    making = Path(tempfile.mkdtemp(prefix="ministack-venv-", dir=venv.parent))
    try:
        for command in (
            [sys.executable, "-m", "venv", str(making)],
            [str(making / "bin" / "python"), "-m", "pip", "install", "--quiet", "ministack>=1.5"],
        ):
            ran = subprocess.run(command, capture_output=True, text=True)
            if ran.returncode:
                why = (ran.stdout + ran.stderr)[-LOG_TAIL_CHARS:]
                raise ServiceMissing(
                    "MiniStack could not be installed.  By hand: python3 -m venv .venv-ministack && "
                    f".venv-ministack/bin/pip install ministack\n{why}"
                )
        try:
            making.rename(venv)  # whole or not at all; `python -m` works from the new place too
        except OSError:
            if not (venv / "bin" / "python").exists():
                raise
    finally:
        shutil.rmtree(making, ignore_errors=True)
    return str(venv / "bin" / "python")


if __name__ == "__main__":
    if sys.argv[1] == "guard":
        sys.exit(_guard(sys.argv[2:]))
    _moto(int(sys.argv[2]), atomic=sys.argv[3] == "atomic")
