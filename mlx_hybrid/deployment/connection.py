"""What every connection of `serve` needs: who may ask, bodies within limits, answers and errors as JSON."""

import hmac
import json
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from mlx_hybrid import __version__
from mlx_hybrid.serve.api import ApiError

if TYPE_CHECKING:
    from mlx_hybrid.deployment.server import Server

LOOPBACK = ("127.0.0.1", "localhost", "::1")
SILENCE_SECONDS = 30  # a client that sends nothing for so long is let go
DRAINED_BODIES = 8  # so many times the limit of a refused body are read, so that the client sees the refusal


class Connection(BaseHTTPRequestHandler):
    """One connection, before it is known what is asked."""

    server: "Server"
    protocol_version = "HTTP/1.1"
    server_version, sys_version = f"mlx-hybrid/{__version__}", ""
    timeout = SILENCE_SECONDS
    disable_nagle_algorithm = True  # of an answer's small writes, each would wait 40 ms for the last
    status = 0
    """What was sent; 0 before anything was."""
    body_left = False
    """There is a body that has not been read."""

    def check_host(self) -> None:
        """A server for this machine answers only to its own names: a web page must not reach it under another (DNS
        rebinding)."""
        policy = self.server.policy
        name = urlsplit(f"//{self.headers.get('Host', '')}").hostname
        if policy.local and name not in LOOPBACK:
            raise ApiError(403, "This server answers only to localhost.", "wrong_host")

    def check_origin(self) -> None:
        """Pages of other origins may not call, unless named."""
        origin = self.headers.get("Origin")
        own = origin and urlsplit(origin).netloc == self.headers.get("Host")
        if origin and not own and origin not in self.server.policy.origins:
            raise ApiError(
                403, "Pages of this origin may not call this server; --cors allows one.", "wrong_origin"
            )

    def check_key(self) -> None:
        """Raise ApiError for a client without the key, where one is set."""
        key = self.server.policy.api_key
        given = self.headers.get("Authorization", "")
        if key and not hmac.compare_digest(given.encode("utf-8", "replace"), f"Bearer {key}".encode()):
            raise ApiError(
                401, "The API key is missing or wrong; send it as a bearer token.", "invalid_api_key"
            )

    def read_body(self) -> Any:
        """The JSON body. Raises ApiError where it is too long, of another type, or not JSON."""
        limit, length = self.server.policy.most_bytes, self.body_length()
        if length is None:
            raise ApiError(411, "Send the body with a Content-Length.", "length_required")
        if length > limit:
            raise ApiError(413, f"The body has {length} bytes, over the limit of {limit}.", "body_too_large")
        if self.headers.get_content_type() != "application/json":
            raise ApiError(415, "Send JSON, with Content-Type: application/json.", "wrong_type")
        data = self.rfile.read(length)
        self.body_left = False
        try:
            return json.loads(data)
        except (ValueError, RecursionError):
            raise ApiError(400, "The body is not JSON.", "invalid_json") from None

    def body_length(self) -> int | None:
        """Bytes of the body, or None where the client does not say."""
        length = self.headers.get("Content-Length", "")
        known = length.isascii() and length.isdigit() and "Transfer-Encoding" not in self.headers
        return int(length) if known else None

    def begin_events(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream; charset=utf-8")
        self.send_header("Cache-Control", "no-store")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()

    def send_event(self, value: dict) -> None:
        self.write_chunk(b"data: " + json.dumps(value).encode() + b"\n\n")

    def write_chunk(self, data: bytes) -> None:
        self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")

    def send_problem(self, error: ApiError) -> None:
        if self.status:  # the answer had begun: nothing but its end can be told
            self.close_connection = True
            self.send_event(error.body())
            return
        self.drain()
        more = {429: {"Retry-After": "1"}, 401: {"WWW-Authenticate": "Bearer"}}.get(error.status, {})
        self.send_json(error.status, error.body(), more)

    def drain(self) -> None:
        """Read what is left of a refused body, within reason, and close: the client then sees why."""
        if not self.body_left:
            return
        self.close_connection = True
        left = min(self.body_length() or 0, DRAINED_BODIES * self.server.policy.most_bytes)
        while left > 0 and (data := self.rfile.read(min(left, 1 << 16))):
            left -= len(data)

    def send_json(self, status: int, value: Any, more: dict | None = None) -> None:
        self.send(status, json.dumps(value).encode(), "application/json", more)

    def send(self, status: int, data: bytes, kind: str | None, more: dict | None = None) -> None:
        self.send_response(status)
        if kind:
            self.send_header("Content-Type", kind)
        if status != 204:
            self.send_header("Content-Length", str(len(data)))
        for name, value in (more or {}).items():
            self.send_header(name, value)
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(data)

    def send_response(self, code: int, message: str | None = None) -> None:
        self.status = code
        super().send_response(code, message)

    def end_headers(self) -> None:
        origin = self.headers.get("Origin") if hasattr(self, "headers") else None
        if origin in self.server.policy.origins:
            self.send_header("Access-Control-Allow-Origin", origin)
            self.send_header("Vary", "Origin")
        self.send_header("X-Content-Type-Options", "nosniff")
        super().end_headers()

    def log_message(self, format: str, *arguments: Any) -> None:
        """Nothing: `answer` logs path, status and counts, never headers or text."""
