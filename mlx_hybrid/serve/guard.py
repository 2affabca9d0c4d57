"""What every request passes: who may ask and how much, errors as JSON, one line of log."""

import asyncio
import hmac
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mlx_hybrid.models.generate import Sampling
from mlx_hybrid.serve.api import ApiError

LOOPBACK = ("127.0.0.1", "localhost", "::1")
SILENCE_SECONDS = 30  # a client that neither sends nor reads for so long is let go
CLIENT_LEFT = 499  # of the log alone, as nginx writes it
FAILED = ApiError(500, "The server failed on this request; its log says how.", "failed")
ADVICE = {429: {"Retry-After": "1"}, 401: {"WWW-Authenticate": "Bearer"}}


@dataclass(frozen=True)
class Policy:
    """Who may ask, and how much."""

    host: str = "127.0.0.1"
    api_key: str = field(default="", repr=False)
    origins: tuple[str, ...] = ()  # web origins besides the server's own that may call
    most_bytes: int = 1 << 20
    defaults: Sampling = field(default_factory=Sampling)

    @property
    def local(self) -> bool:
        return self.host in LOOPBACK


class Guard:
    """Around every request: refuses foreign hosts and origins, missing keys and unfit bodies before a route is looked
    up, turns whatever goes wrong into an error body, drops the answer of a request that is over, and logs method, path,
    status, seconds and token counts: never headers or text."""

    def __init__(self, app: ASGIApp, policy: Policy, log: Callable[[str], None]) -> None:
        self.app, self.policy, self.log = app, policy, log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        began, status, headers = time.monotonic(), 0, Headers(scope=scope)

        async def reply(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                self.add_headers(MutableHeaders(scope=message), headers.get("origin"))
            async with asyncio.timeout(SILENCE_SECONDS):
                await send(message)

        try:
            self.check(scope, headers)
            app = preflight(headers) if scope["method"] == "OPTIONS" else self.app
            await app(scope, receive, reply)
        except (ClientDisconnect, TimeoutError):
            status = status or CLIENT_LEFT
        except Exception as error:  # a fault here must not look like a lost connection
            if status or not isinstance(error, ApiError):
                self.log(f"error: {type(error).__name__}: {error}")
            if status:
                raise
            told = error if isinstance(error, ApiError) else FAILED
            await JSONResponse(told.body(), told.status, ADVICE.get(told.status))(scope, receive, reply)
        finally:
            state, seconds = scope.get("state", {}), time.monotonic() - began
            if "job" in state:
                state["job"].cancelled.set()
            self.log(f"{scope['method']} {scope['path']!a} {status} {seconds:.2f} s{state.get('note', '')}")

    def check(self, scope: Scope, headers: Headers) -> None:
        """A server for this machine answers only to its own names: a web page must not reach it under another (DNS
        rebinding). Pages of other origins may not call, unless named. Bodies are judged by their headers: the server
        reads no further than the length they give."""
        host, origin = headers.get("host", ""), headers.get("origin")
        if self.policy.local and urlsplit(f"//{host}").hostname not in LOOPBACK:
            raise ApiError(403, "This server answers only to localhost.", "wrong_host")
        if origin and urlsplit(origin).netloc != host and origin not in self.policy.origins:
            told = "Pages of this origin may not call this server; --cors allows one."
            raise ApiError(403, told, "wrong_origin")
        key, given = self.policy.api_key, headers.get("authorization", "")
        asked = scope["path"].startswith("/v1/") and scope["method"] != "OPTIONS"
        if key and asked and not hmac.compare_digest(given.encode(), f"Bearer {key}".encode()):
            told = "The API key is missing or wrong; send it as a bearer token."
            raise ApiError(401, told, "invalid_api_key")
        if scope["method"] != "POST":
            return
        length, limit = headers.get("content-length", ""), self.policy.most_bytes
        if not (length.isascii() and length.isdigit()) or "transfer-encoding" in headers:
            raise ApiError(411, "Send the body with a Content-Length.", "length_required")
        if int(length) > limit:
            raise ApiError(413, f"The body has {length} bytes, over the limit of {limit}.", "body_too_large")
        if headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            raise ApiError(415, "Send JSON, with Content-Type: application/json.", "wrong_type")

    def add_headers(self, headers: MutableHeaders, origin: str | None) -> None:
        headers["X-Content-Type-Options"] = "nosniff"
        if origin in self.policy.origins:
            headers["Access-Control-Allow-Origin"] = origin
            headers["Vary"] = "Origin"


def preflight(headers: Headers) -> Response:
    """What a browser asks before it lets a page of another origin call."""
    if "origin" not in headers:
        raise ApiError(405, "OPTIONS is for browsers that ask for another origin.", "method_not_allowed")
    allowed = {
        "Access-Control-Allow-Methods": "GET, POST",
        "Access-Control-Allow-Headers": headers.get("access-control-request-headers", "content-type"),
        "Access-Control-Max-Age": "600",
    }
    return Response(status_code=204, headers=allowed)
