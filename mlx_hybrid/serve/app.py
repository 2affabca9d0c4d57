"""The server: a page, the models, and answers as one body or as a stream of events, by uvicorn in its own thread."""

import asyncio
import dataclasses
import json
import secrets
import socket
import time
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path
from typing import Any

import uvicorn
from markdown_it import MarkdownIt
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from uvicorn.protocols.http.h11_impl import H11Protocol

from mlx_hybrid.errors import ConfigError, DataError
from mlx_hybrid.models.generate import room_for_answer
from mlx_hybrid.serve import api
from mlx_hybrid.serve.api import ApiError, Reply, StopText
from mlx_hybrid.serve.engine import Engine, Job
from mlx_hybrid.serve.guard import FAILED, SILENCE_SECONDS, Guard, Policy

PAGE = Path(__file__).with_name("page.html")
CHAT = "/v1/chat/completions"
MARKDOWN = MarkdownIt("js-default", {"html": False}).disable("image")
ALLOWED = """default-src 'none'; script-src 'nonce-NONCE'; style-src 'nonce-NONCE'; connect-src 'self'; \
img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"""
LOOK_SECONDS = 0.5  # so often it is seen whether the client still waits
HOW = {"ws": "none", "loop": "asyncio", "lifespan": "off", "server_header": False, "limit_concurrency": 64}
HOW |= {"log_config": None, "log_level": "critical", "timeout_keep_alive": SILENCE_SECONDS}
HOW |= {"timeout_graceful_shutdown": 5}  # seconds for answers that are being told that the server goes down

Text = tuple[str, str | None, int]  # to send, the reason for the end in the last one, and the tokens so far


class Answers:
    """What each address answers, from one engine."""

    def __init__(self, engine: Engine, policy: Policy, log: Callable[[str], None]) -> None:
        self.engine, self.pair, self.policy, self.log = engine, engine.pair, policy, log
        self.started, self.tokenising = int(time.time()), asyncio.Lock()

    def app(self) -> Starlette:
        """The routes, and what every request passes before one is looked up."""
        read = {"/": page, "/health": lambda _: JSONResponse({"status": "ok"})}
        read |= dict.fromkeys(("/v1/models", "/v1/models/{name:path}"), self.models)
        posted = {CHAT: self.complete, "/v1/completions": self.complete, "/v1/markdown": self.markdown}
        routes = [Route(path, answer) for path, answer in read.items()]
        routes += [Route(path, answer, methods=["POST"]) for path, answer in posted.items()]
        cors = {"allow_origins": self.policy.origins, "allow_methods": ("GET", "POST"), "allow_headers": "*"}
        passed = [Middleware(CORSMiddleware, **cors), Middleware(Guard, self.policy, self.log)]
        app = Starlette(routes=routes, middleware=passed, exception_handlers={HTTPException: nothing})
        app.router.redirect_slashes = False
        return app

    async def markdown(self, request: Request) -> Response:
        """An answer's Markdown as HTML for the page: no HTML of its own, no images, no scripts behind links."""
        body = await read_json(request)
        text = api.real_text(body.get("text") if isinstance(body, dict) else None, "text", "a string")
        return JSONResponse({"html": MARKDOWN.render(text)})

    async def models(self, request: Request) -> Response:
        models = self.engine.models
        if name := request.path_params.get("name"):
            return JSONResponse(self.card(api.parse_model(name, models)))
        return JSONResponse({"object": "list", "data": [self.card(name) for name in models]})

    def card(self, name: str) -> dict:
        modules = self.pair.modules if self.engine.models[name] is self.pair.model else 0
        about = {"id": name, "object": "model", "created": self.started, "owned_by": "mlx-hybrid"}
        return about | {"adapted_modules": modules, "context": self.pair.context}

    async def complete(self, request: Request) -> Response:
        """Answer a conversation or continue a text; the status waits for the first token."""
        chat = request.url.path == CHAT
        body = api.checked(await read_json(request), chat=chat)
        model, until = api.parse_model(body.get("model"), self.engine.models), StopText(body["stop"])
        sampling, exact = api.parse_sampling(body, self.policy.defaults)
        tokens = await self.tokens(body, chat)
        try:
            room = room_for_answer(len(tokens), self.pair.context, sampling.max_tokens, exact=exact)
        except ConfigError as error:
            raise ApiError(str(error), "context_length_exceeded") from None
        job = request.state.job = Job(model, tokens, dataclasses.replace(sampling, max_tokens=room))
        self.engine.submit(job)
        texts, reply = self.texts(job, until, request), Reply(model, chat=chat, streamed=body["stream"])
        if body["stream"]:
            told, unkept = body["stream_options"].get("include_usage"), {"Cache-Control": "no-store"}
            events = self.events(await anext(texts), texts, reply, len(tokens) if told else None)
            return StreamingResponse(events, media_type="text/event-stream", headers=unkept)
        parts = [part async for part in texts]
        text, (_, finish, count) = "".join(part for part, _, _ in parts), parts[-1]
        return JSONResponse(reply.body(text, finish, usage=api.usage(len(tokens), count)))

    async def tokens(self, body: dict, chat: bool) -> list[int]:
        content, tokenizer = api.parse_content(body, chat), self.pair.tokenizer
        ask = partial(tokenizer.ask, options=body["chat_template_kwargs"])
        try:
            async with self.tokenising:  # tokenizers are not made for several threads
                return await asyncio.to_thread(ask if chat else tokenizer.continued, content)
        except (ConfigError, DataError) as error:
            raise ApiError(str(error)) from None

    async def texts(self, job: Job, until: StopText, request: Request) -> AsyncIterator[Text]:
        """The job's texts as they come. Raises ClientDisconnect when the client has left."""
        looked, piece = time.monotonic(), None
        while piece is None or not piece.finish:
            if time.monotonic() - looked > LOOK_SECONDS:
                looked = time.monotonic()
                if await request.is_disconnected():
                    raise ClientDisconnect
            try:
                piece = await asyncio.wait_for(job.pieces.get(), LOOK_SECONDS)
            except TimeoutError:
                continue
            if isinstance(piece, ApiError):
                raise piece
            if isinstance(piece, Exception):
                self.log(f"error: {type(piece).__name__}: {piece}")
                raise ApiError(*FAILED)
            request.state.note = f" {len(job.tokens)} + {piece.count} tokens"
            text = until(piece.text)
            if until.found:
                job.cancelled.set()
                yield text, "stop", piece.count
                return
            if text or piece.finish:
                yield text + (until.held if piece.finish else ""), piece.finish, piece.count

    async def events(self, first: Text, texts: AsyncIterator[Text], reply: Reply, prompt: int | None) -> Any:
        """Server-sent events; the last but the end tells the usage where the prompt's tokens are given."""
        last = first
        yield event(reply.body(first[0], first=True))
        try:
            async for last in texts:
                if last[0]:
                    yield event(reply.body(last[0]))
        except ApiError as error:  # the answer had begun: nothing but its end can be told
            yield event(error.body())
            return
        yield event(reply.body("", last[1]))
        if prompt is not None:
            yield event(reply.frame | {"choices": [], "usage": api.usage(prompt, last[2])})
        yield "data: [DONE]\n\n"


async def nothing(*_: object) -> Response:
    raise ApiError("There is nothing here; see /v1/models.", "not_found", status=404)


def event(value: dict) -> str:
    return f"data: {json.dumps(value)}\n\n"


async def read_json(request: Request) -> object:
    try:
        async with asyncio.timeout(SILENCE_SECONDS):
            return await request.json()
    except TimeoutError:
        raise ApiError(f"The body did not come within {SILENCE_SECONDS} s.", "timeout", status=408) from None
    except (ValueError, RecursionError):
        raise ApiError("The body is not JSON.", "invalid_json") from None


def page(_: Request) -> Response:
    nonce = secrets.token_urlsafe()
    html = PAGE.read_text(encoding="utf-8").replace("NONCE", nonce)
    return HTMLResponse(html, headers={"Content-Security-Policy": ALLOWED.replace("NONCE", nonce)})


class Connection(H11Protocol):
    """Lets a client go that sends no whole request head: uvicorn itself waits for ever."""

    def connection_made(self, transport: object) -> None:
        super().connection_made(transport)
        self.wait()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.cycle is None or (self.cycle.response_complete and self.timeout_keep_alive_task is None):
            self.wait()

    def wait(self) -> None:
        self._unset_keepalive_if_required()
        self.timeout_keep_alive_task = self.loop.call_later(SILENCE_SECONDS, self.transport.close)


class Server:
    """An engine's answers on a port, 0 for a free one. Raises ConfigError for an address that cannot be listened on."""

    def __init__(self, engine: Engine, policy: Policy, port: int, log: Callable[[str], None]) -> None:
        self.engine, self.policy, six = engine, policy, ":" in policy.host
        family = socket.AF_INET6 if six else socket.AF_INET
        try:
            self.socket = socket.create_server((policy.host, port), family=family, backlog=128)
        except OSError as error:
            told = f"{policy.host}:{port} cannot be listened on ({error.strerror}); choose another --port."
            raise ConfigError(told) from None
        self.address = self.socket.getsockname()[:2]
        self.url = f"http://{f'[{policy.host}]' if six else policy.host}:{self.address[1]}"
        app = Answers(engine, policy, log).app()
        self.uvicorn = uvicorn.Server(uvicorn.Config(app, http=Connection, **HOW))

    def run(self) -> None:
        self.uvicorn.run(sockets=[self.socket])

    def close(self) -> None:
        self.uvicorn.should_exit = True
