"""A real S3 server, and a proxy before it that can be told to answer errors, or late."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.client import HTTPConnection, HTTPException
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

BUCKET = "bucket"
CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "planted-key",
    "AWS_SECRET_ACCESS_KEY": "planted-secret",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}


@contextlib.contextmanager
def s3_server() -> Iterator[int]:
    """Run moto's server in a process of its own; yield its port."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                connection = HTTPConnection("127.0.0.1", port, timeout=30)
                connection.request("PUT", f"/{BUCKET}")
                assert connection.getresponse().status == 200
                break
            except OSError:
                assert time.monotonic() < deadline, "the S3 server does not start"
                time.sleep(0.1)
        yield port
    finally:
        server.kill()
        server.wait()


class Proxy:
    """Pass requests on to a server, or answer them with errors or late: whatever ``mode`` says.

    Arguments:
        port: of the server.
    """

    def __init__(self, port: int) -> None:
        self.mode = "pass"  # "fail" answers 500; "stall" answers after ``delay``
        self.delay = 0.0  # seconds
        self.seen: list[tuple[str, str]] = []  # methods and paths of requests
        self.refused = 0
        self.before: Callable[[str, str], None] = lambda method, path: (
            None
        )  # is told of each before it goes on
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_one_request(self) -> None:
                with contextlib.suppress(OSError, HTTPException):  # the client has given up
                    super().handle_one_request()

            def answer(self) -> None:
                body = _body(self)
                proxy.seen.append((self.command, self.path))
                proxy.before(self.command, self.path)
                mode = proxy.mode
                if mode == "fail":
                    proxy.refused += 1
                    self.send_response(500)
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
                if mode == "stall":
                    proxy.refused += 1
                    time.sleep(proxy.delay)
                server = HTTPConnection("127.0.0.1", port, timeout=60)
                server.request(self.command, self.path, body, _headers(self, len(body)))
                response = server.getresponse()
                content = response.read()
                self.send_response_only(response.status)
                for name, value in response.getheaders():
                    if name.lower() not in ("transfer-encoding", "connection"):
                        self.send_header(name, value)
                self.end_headers()
                self.wfile.write(content)
                server.close()

            do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = answer  # noqa: N815

            def log_message(self, *arguments: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    @property
    def environment(self) -> dict[str, str]:
        """What a process needs to reach the server through here."""
        return {**CREDENTIALS, "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self._server.server_port}"}

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def _headers(handler: BaseHTTPRequestHandler, length: int) -> dict[str, str]:
    kept = {n: v for n, v in handler.headers.items() if n.lower() not in ("transfer-encoding", "expect")}
    return {**kept, "Content-Length": str(length)}


def _body(handler: BaseHTTPRequestHandler) -> bytes:
    if handler.headers.get("Transfer-Encoding") != "chunked":
        return handler.rfile.read(int(handler.headers.get("Content-Length", 0)))
    body = b""
    while size := int(handler.rfile.readline().partition(b";")[0], 16):
        body += handler.rfile.read(size)
        handler.rfile.readline()
    while handler.rfile.readline().strip():  # trailers
        pass
    return body
