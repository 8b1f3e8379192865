"""A loopback proxy in front of a real S3 server that loses, doubles, delays and falsifies, as a plan says.

    with FaultProxy(server.endpoint_url) as proxy:
        proxy.plan = nth(ANSWER_LOST, "PUT")
        ...                                     # a store opened on proxy.endpoint_url
        assert proxy.fired == [Fired(ANSWER_LOST, "PUT", "prefix/name")]

The words for faults, lies and plans are in `proxy_faults`.

Signatures: the Host header and all others are handed on as they came, so a server that verifies them is
content; but lies that strip a condition break the signature over it.  MiniStack and moto don't verify.
"""

from __future__ import annotations

import http.client
import socket
import threading
from collections import Counter
from collections.abc import Collection, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final
from urllib.parse import urlsplit

from dibs.testing.proxy_faults import (
    ANSWER_HANGS,
    ANSWER_LOST,
    HALF_SENT,
    TRUNCATED,
    Answer,
    Call,
    Fault,
    Fired,
    Lie,
    Plan,
    Request,
    error_answer,
    status,
)

UPSTREAM_TIMEOUT_S: Final = 60.0
HANG_MAX_S: Final = 60.0
HOP_BY_HOP: Final = frozenset({"connection", "expect", "keep-alive", "proxy-connection", "transfer-encoding"})
CONDITIONS: Final = ("if-match", "if-none-match")
ONE_ETAG: Final = '"00000000000000000000000000000000"'


class FaultProxy:
    """The proxy; a context manager.  `plan` and `lies` may be changed while it runs."""

    def __init__(self, upstream: str, plan: Plan | None = None, lies: Collection[Lie] = ()) -> None:
        address = urlsplit(upstream)
        assert address.scheme == "http" and address.hostname and address.port, upstream
        self.plan, self.lies = plan, frozenset(lies)
        self.fired: list[Fired] = []
        self.errors: list[BaseException] = []
        """What a plan raised; a test asserts that it is empty."""
        self._upstream = (address.hostname, address.port)
        self._counts: Counter[tuple[str, str]] = Counter()
        self._last_headers: dict[tuple[str, str], Mapping[str, str]] = {}
        self._shown: dict[str, Answer] = {}
        self._connections: set[socket.socket] = set()
        self._ghosts: list[threading.Thread] = []
        self._lock, self._closing = threading.Lock(), threading.Event()

    def __enter__(self) -> FaultProxy:
        handler = type("Handler", (_Handler,), {"proxy": self})
        self._server = _Listener(("127.0.0.1", 0), handler)
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.set()
        self._server.shutdown()
        self._server.server_close()
        with self._lock:
            connections = list(self._connections)
        for connection in connections:
            _cut_off(connection)
        self.settle()

    @property
    def endpoint_url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def counts(self) -> dict[tuple[str, str], int]:
        """How many requests came in, by method and key."""
        with self._lock:
            return dict(self._counts)

    def count(self, method: str) -> int:
        return sum(n for (counted, _), n in self.counts().items() if counted == method)

    def headers(self, method: str, key: str) -> Mapping[str, str]:
        """The headers of the last such request, with names in lower case."""
        with self._lock:
            return self._last_headers[method, key]

    def reset(self) -> None:
        """Forget what was counted, fired and shown; plan and lies stay."""
        with self._lock:
            self._counts.clear()
            self.fired.clear()
            self._shown.clear()

    def settle(self) -> None:
        """Wait until all ghosts have landed (or, when the proxy is being closed, have given up)."""
        while self._ghosts:
            self._ghosts.pop().join(UPSTREAM_TIMEOUT_S)

    # --- for the handlers -------------------------------------------------------------------------------

    def arrived(self, call: Call) -> Fault | Lie | None:
        """Count the request and ask the plan about it."""
        with self._lock:
            self._counts[call.method, call.key] += 1
            number = self._counts[call.method, call.key]
            self._last_headers[call.method, call.key] = {name.lower(): value for name, value in call.headers}
        conditions = {name: value for name in CONDITIONS if (value := call.header(name)) is not None}
        try:
            return self.plan(Request(call.method, call.key, conditions, number)) if self.plan else None
        except BaseException as error:
            self.errors.append(error)
            raise

    def fire(self, fault: Fault | Lie, call: Call) -> None:
        with self._lock:
            self.fired.append(Fired(fault, call.method, call.key))

    def sleep(self, seconds: float) -> bool:
        """Return False when the proxy is closed meanwhile."""
        return not self._closing.wait(seconds)

    def haunt(self, call: Call, seconds: float) -> None:
        def land() -> None:
            if self.sleep(seconds):
                self.deliver(call)

        thread = threading.Thread(target=land, daemon=True)
        thread.start()
        self._ghosts.append(thread)

    def connected(self, connection: socket.socket, there: bool) -> None:
        with self._lock:
            (self._connections.add if there else self._connections.discard)(connection)

    def deliver(self, call: Call) -> Answer:
        """Hand `call` to the server on a connection of its own, so that it arrives exactly once."""
        connection = http.client.HTTPConnection(*self._upstream, timeout=UPSTREAM_TIMEOUT_S)
        try:
            connection.putrequest(call.method, call.path, skip_host=True, skip_accept_encoding=True)
            for name, value in call.headers:
                if name.lower() not in HOP_BY_HOP | {"content-length"}:
                    connection.putheader(name, value)
            if call.body or call.method in ("PUT", "POST"):
                connection.putheader("Content-Length", str(len(call.body)))
            connection.endheaders(call.body or None)
            got = connection.getresponse()
            headers = tuple((n, v) for n, v in got.getheaders() if n.lower() not in HOP_BY_HOP)
            return Answer(got.status, headers, got.read())
        finally:
            connection.close()

    def falsified(self, call: Call, lies: frozenset[Lie]) -> Answer:
        """Deliver `call` as a server with these lies would treat it."""
        writes = call.method == "PUT"
        if Lie.ALWAYS_409 in lies and writes and any(call.header(name) for name in CONDITIONS):
            self.fire(Lie.ALWAYS_409, call)
            return error_answer(status(409))
        if Lie.IGNORE_IF_NONE_MATCH in lies and writes:
            call = self._stripped(call, "if-none-match", Lie.IGNORE_IF_NONE_MATCH)
        if Lie.IGNORE_IF_MATCH in lies and writes:
            call = self._stripped(call, "if-match", Lie.IGNORE_IF_MATCH)
        if Lie.DROP_304 in lies and not writes:
            call = self._stripped(call, "if-none-match", Lie.DROP_304)
        if Lie.CONSTANT_ETAG in lies:
            return self._with_one_etag(call)
        if Lie.STALE_READS in lies and call.method == "GET" and call.key:
            return self._stale(call)
        answer = self.deliver(call)
        if Lie.CREATES_ON_IF_MATCH_MISSING in lies and writes and answer.status == 404:
            answer = self.deliver(self._stripped(call, "if-match", Lie.CREATES_ON_IF_MATCH_MISSING))
        if Lie.WEAK_ETAG in lies and (etag := answer.header("etag")):
            self.fire(Lie.WEAK_ETAG, call)
            answer = answer.with_header("ETag", f"W/{etag}")
        return answer

    def _stripped(self, call: Call, header: str, lie: Lie) -> Call:
        if call.header(header) is None:
            return call
        self.fire(lie, call)
        return call.without(header)

    def _with_one_etag(self, call: Call) -> Answer:
        self.fire(Lie.CONSTANT_ETAG, call)
        unchanged = call.method == "GET" and call.header("if-none-match") == ONE_ETAG
        for name in CONDITIONS:
            if call.header(name) == ONE_ETAG:
                call = call.without(name)
        answer = self.deliver(call)
        if answer.header("etag"):
            answer = answer.with_header("ETag", ONE_ETAG)
        return answer.not_modified() if unchanged and answer.status == 200 else answer

    def _stale(self, call: Call) -> Answer:
        fresh = self.deliver(call.without("if-none-match"))
        with self._lock:
            shown = self._shown.get(call.path, fresh)
            self._shown[call.path] = fresh
        if (shown.status, shown.header("etag")) != (fresh.status, fresh.header("etag")):
            self.fire(Lie.STALE_READS, call)
        same = shown.status == 200 and shown.header("etag") == call.header("if-none-match")
        return shown.not_modified() if same else shown


class _Listener(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # a client that has gone is what this proxy is for; a plan's errors are in `errors`


class _Handler(BaseHTTPRequestHandler):
    """One connection of a client."""

    proxy: FaultProxy
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def setup(self) -> None:
        super().setup()
        self.proxy.connected(self.connection, there=True)

    def finish(self) -> None:
        self.proxy.connected(self.connection, there=False)
        super().finish()

    def log_message(self, *_: object) -> None:
        pass

    def serve(self) -> None:
        call = Call(self.command, self.path, tuple(self.headers.items()), b"")
        fault = self.proxy.arrived(call)
        if fault == HALF_SENT:
            self.proxy.fire(HALF_SENT, call)
            self.rfile.read(int(self.headers.get("Content-Length") or 0) // 2)
            self._hang_up()
            return
        call = call._replace(body=self._body())
        if not isinstance(fault, Fault):
            lies = self.proxy.lies if fault is None else self.proxy.lies | {fault}
            self._answer(self.proxy.falsified(call, lies))
            return
        self.proxy.fire(fault, call)
        if fault.kind == "ghost":
            self.proxy.haunt(call, fault.seconds)
            self._hang_up()
            return
        if fault.kind == "delayed" and not self.proxy.sleep(fault.seconds):
            return
        answer = self.proxy.falsified(call, self.proxy.lies) if fault.applied else None
        if fault.kind == "twice":
            answer = self.proxy.falsified(call, self.proxy.lies)
        if fault.status:
            answer = error_answer(fault)
        if fault.hang:
            self._wait_until_the_client_gives_up()
        if answer is None or fault in (ANSWER_LOST, ANSWER_HANGS):
            self._hang_up()
        else:
            self._answer(answer, cut=fault == TRUNCATED)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = serve

    def _body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", "").lower():
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        chunks = []
        while size := int(self.rfile.readline().partition(b";")[0], 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        while self.rfile.readline().strip():
            pass  # trailers
        return b"".join(chunks)

    def _answer(self, answer: Answer, cut: bool = False) -> None:
        self.send_response_only(answer.status)
        for name, value in answer.headers:
            if name.lower() != "content-length" or self.command == "HEAD":
                self.send_header(name, value)
        if self.command != "HEAD" and answer.status not in (204, 304):
            self.send_header("Content-Length", str(len(answer.body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.body[: len(answer.body) // 2] if cut else answer.body)
        if cut:
            self._hang_up()

    def _hang_up(self) -> None:
        self.close_connection = True
        _cut_off(self.connection)

    def _wait_until_the_client_gives_up(self) -> None:
        self.connection.settimeout(HANG_MAX_S)
        try:
            self.connection.recv(1)
        except OSError:
            pass


def _cut_off(connection: socket.socket) -> None:
    try:
        connection.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass
