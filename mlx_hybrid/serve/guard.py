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
ADVICE = {429: {"Retry-After": "1"}, 401: {"WWW-Authenticate": "Bearer"}}


@dataclass(frozen=True)
class Policy:
    """Who may ask, and how much."""

    host: str = "127.0.0.1"
    api_key: str = field(default="", repr=False)
    origins: tuple[str, ...] = ()
    """Web origins besides the server's own that may call; none by default."""
    most_bytes: int = 1 << 20
    defaults: Sampling = field(default_factory=Sampling)

    @property
    def local(self) -> bool:
        return self.host in LOOPBACK


class Guard:
    """Refuses foreign hosts and origins, missing keys and unfit bodies, before a route is looked up."""

    def __init__(self, app: ASGIApp, policy: Policy) -> None:
        self.app, self.policy = app, policy

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        self.check_host(headers)
        self.check_origin(headers)
        if scope["method"] == "OPTIONS":
            await preflight(headers)(scope, receive, send)
            return
        if scope["path"].startswith("/v1/"):
            self.check_key(headers)
        if scope["method"] == "POST":
            self.check_body(headers)
        await self.app(scope, receive, send)

    def check_host(self, headers: Headers) -> None:
        """A server for this machine answers only to its own names: a web page must not reach it under another (DNS
        rebinding)."""
        name = urlsplit(f"//{headers.get('host', '')}").hostname
        if self.policy.local and name not in LOOPBACK:
            raise ApiError(403, "This server answers only to localhost.", "wrong_host")

    def check_origin(self, headers: Headers) -> None:
        """Pages of other origins may not call, unless named."""
        origin = headers.get("origin")
        own = origin and urlsplit(origin).netloc == headers.get("host")
        if origin and not own and origin not in self.policy.origins:
            raise ApiError(
                403, "Pages of this origin may not call this server; --cors allows one.", "wrong_origin"
            )

    def check_key(self, headers: Headers) -> None:
        key, given = self.policy.api_key, headers.get("authorization", "")
        if key and not hmac.compare_digest(given.encode(), f"Bearer {key}".encode()):
            raise ApiError(
                401, "The API key is missing or wrong; send it as a bearer token.", "invalid_api_key"
            )

    def check_body(self, headers: Headers) -> None:
        """By its headers: the server reads no further than the length they give."""
        length, limit = headers.get("content-length", ""), self.policy.most_bytes
        if not (length.isascii() and length.isdigit()) or "transfer-encoding" in headers:
            raise ApiError(411, "Send the body with a Content-Length.", "length_required")
        if int(length) > limit:
            raise ApiError(413, f"The body has {length} bytes, over the limit of {limit}.", "body_too_large")
        if headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            raise ApiError(415, "Send JSON, with Content-Type: application/json.", "wrong_type")


def preflight(headers: Headers) -> Response:
    """What a browser asks before it lets a page of another origin call."""
    if "origin" not in headers:
        raise ApiError(405, "OPTIONS is for browsers that ask for another origin.", "method_not_allowed")
    asked = headers.get("access-control-request-headers", "content-type")
    allowed = {
        "Access-Control-Allow-Methods": "GET, POST",
        "Access-Control-Allow-Headers": asked,
        "Access-Control-Max-Age": "600",
    }
    return Response(status_code=204, headers=allowed)


class Ledger:
    """Turns whatever goes wrong into an error body, drops the answer of a request that is over, and logs method, path,
    status, seconds and token counts: never headers or text."""

    def __init__(self, app: ASGIApp, policy: Policy, log: Callable[[str], None]) -> None:
        self.app, self.policy, self.log = app, policy, log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        began, status = time.monotonic(), 0
        origin = Headers(scope=scope).get("origin")

        async def reply(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                self.add_headers(MutableHeaders(scope=message), origin)
            async with asyncio.timeout(SILENCE_SECONDS):
                await send(message)

        try:
            await self.app(scope, receive, reply)
        except (ClientDisconnect, TimeoutError):
            status = status or CLIENT_LEFT
        except Exception as error:  # a fault here must not look like a lost connection
            if status:
                self.log(f"error: {type(error).__name__}: {error}")
                raise
            await self.problem(error)(scope, receive, reply)
        finally:
            state = scope["state"]
            if "job" in state:
                state["job"].cancel()
            self.log(
                f"{scope['method']} {scope['path']!a} {status} {time.monotonic() - began:.2f} s{state.get('note', '')}"
            )

    def problem(self, error: Exception) -> Response:
        if not isinstance(error, ApiError):
            self.log(f"error: {type(error).__name__}: {error}")
            error = ApiError(500, "The server failed on this request; its log says how.", "failed")
        return JSONResponse(error.body(), error.status, ADVICE.get(error.status))

    def add_headers(self, headers: MutableHeaders, origin: str | None) -> None:
        headers["X-Content-Type-Options"] = "nosniff"
        if origin in self.policy.origins:
            headers["Access-Control-Allow-Origin"] = origin
            headers["Vary"] = "Origin"
