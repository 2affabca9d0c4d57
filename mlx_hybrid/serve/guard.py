"""What every request passes: who may ask and how much, errors as JSON, one line of log."""

import asyncio
import hmac
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mlx_hybrid.models.sampling import Sampling
from mlx_hybrid.serve.api import ApiError, need

LOOPBACK = ("127.0.0.1", "localhost", "::1")
SILENCE_SECONDS = 30  # a client that neither sends nor reads for so long is let go
CLIENT_LEFT = 499  # of the log alone, as nginx writes it
FAILED = ("The server failed on this request; its log says how.", "failed", None, 500)
ADVICE = {429: {"Retry-After": "1"}, 401: {"WWW-Authenticate": "Bearer"}}


@dataclass(frozen=True)
class Policy:
    """Who may ask, and how much; `origins` are web origins besides the server's own that may call."""

    host: str = "127.0.0.1"
    api_key: str = field(default="", repr=False)
    origins: tuple[str, ...] = ()
    most_bytes: int = 1 << 20
    defaults: Sampling = field(default_factory=Sampling)

    @property
    def local(self) -> bool:
        return self.host in LOOPBACK


class Guard:
    """Around every request: refuses it, makes an error body of what goes wrong, drops answers nobody reads, logs."""

    def __init__(self, app: ASGIApp, policy: Policy, log: Callable[[str], None]) -> None:
        self.app, self.policy, self.log = app, policy, log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        began, status = time.monotonic(), 0

        async def reply(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["X-Content-Type-Options"] = "nosniff"
            async with asyncio.timeout(SILENCE_SECONDS):
                await send(message)

        try:
            self.check(scope, Headers(scope=scope))
            await self.app(scope, receive, reply)
        except (ClientDisconnect, TimeoutError):
            status = status or CLIENT_LEFT
        except Exception as error:  # a fault here must not look like a lost connection
            if status or not isinstance(error, ApiError):
                self.log(f"error: {type(error).__name__}: {error}")
            if status:
                raise
            told = error if isinstance(error, ApiError) else ApiError(*FAILED)
            await JSONResponse(told.body(), told.status, ADVICE.get(told.status))(scope, receive, reply)
        finally:
            state, seconds = scope.get("state", {}), time.monotonic() - began
            if "job" in state:
                state["job"].cancelled.set()
            self.log(f"{scope['method']} {scope['path']!a} {status} {seconds:.2f} s{state.get('note', '')}")

    def check(self, scope: Scope, headers: Headers) -> None:
        """A server for this machine answers only to its own names, lest a web page reach it under another (DNS
        rebinding). Bodies are judged by their headers: the server reads no further than the length they give."""
        policy, host, origin = self.policy, headers.get("host", ""), headers.get("origin")
        near = not policy.local or urlsplit(f"//{host}").hostname in LOOPBACK
        need(near, "This server", "answers only to localhost.", "wrong_host", 403)
        own = not origin or urlsplit(origin).netloc == host or origin in policy.origins
        need(own, "This server", "is not for pages of this origin; --cors allows one.", "wrong_origin", 403)
        key, given = f"Bearer {policy.api_key}".encode(), headers.get("authorization", "").encode()
        known = hmac.compare_digest(given, key) or not (policy.api_key and scope["path"].startswith("/v1/"))
        need(known, "The API key", "is missing or wrong; send it as a bearer token.", "invalid_api_key", 401)
        if scope["method"] != "POST":
            return
        length, limit = headers.get("content-length", ""), policy.most_bytes
        counted = length.isascii() and length.isdigit() and "transfer-encoding" not in headers
        need(counted, "The body", "must come with a Content-Length.", "length_required", 411)
        over = f"has {length} bytes, over the limit of {limit}."
        need(int(length) <= limit, "The body", over, "body_too_large", 413)
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        need(kind == "application/json", "The Content-Type", "must be application/json.", "wrong_type", 415)
