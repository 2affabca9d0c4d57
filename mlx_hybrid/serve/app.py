"""The routes of `serve`: a page, the models, and answers as one body or as a stream of events."""

import asyncio
import base64
import dataclasses
import hashlib
import json
import re
import time
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from pathlib import Path

from markdown_it import MarkdownIt
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from mlx_hybrid.errors import ConfigError, DataError
from mlx_hybrid.models.generate import Piece
from mlx_hybrid.serve.api import ApiError, Asked, Reply, StopText, parse, parse_model, real_text, usage
from mlx_hybrid.serve.engine import Engine, Job
from mlx_hybrid.serve.guard import SILENCE_SECONDS, Guard, Policy

PAGE = Path(__file__).with_name("page.html")
CHAT = "/v1/chat/completions"
MARKDOWN = MarkdownIt("js-default", {"html": False}).disable("image")
LOOK_SECONDS = 0.5  # so often it is seen whether the client still waits

Text = tuple[str, str | None, int]
"""Text to send, the reason for the end in the last one, and the tokens so far."""


def make_app(engine: Engine, policy: Policy, log: Callable[[str], None]) -> Starlette:
    """The application: the routes, and what every request passes before one is looked up."""
    answers = Answers(engine, policy, log)
    routes = [
        Route("/", answers.page),
        Route("/health", answers.health),
        Route("/v1/models", answers.models),
        Route("/v1/models/{name:path}", answers.model),
        Route(CHAT, answers.complete, methods=["POST"]),
        Route("/v1/completions", answers.complete, methods=["POST"]),
        Route("/v1/markdown", answers.markdown, methods=["POST"]),
    ]
    passed = [Middleware(Guard, policy, log)]
    app = Starlette(routes=routes, middleware=passed, exception_handlers={HTTPException: nothing_here})
    app.router.redirect_slashes = False
    return app


async def nothing_here(*_: object) -> Response:
    raise ApiError(404, "There is nothing here; see /v1/models.", "not_found")


class Answers:
    """What each address answers, from one engine."""

    def __init__(self, engine: Engine, policy: Policy, log: Callable[[str], None]) -> None:
        self.engine, self.pair, self.policy, self.log = engine, engine.pair, policy, log
        self.html, self.html_policy = read_page()
        self.started, self.tokenising = int(time.time()), asyncio.Lock()

    async def page(self, request: Request) -> Response:
        return HTMLResponse(self.html, headers={"Content-Security-Policy": self.html_policy})

    async def health(self, request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def markdown(self, request: Request) -> Response:
        """An answer's Markdown as HTML for the page: no HTML of its own, no images, no scripts behind links."""
        body = await read_json(request)
        text = real_text(body.get("text") if isinstance(body, dict) else None, "text", "a string")
        return JSONResponse({"html": MARKDOWN.render(text)})

    async def models(self, request: Request) -> Response:
        cards = [self.model_card(name) for name in self.engine.models]
        return JSONResponse({"object": "list", "data": cards})

    async def model(self, request: Request) -> Response:
        name = parse_model(request.path_params["name"], list(self.engine.models))
        return JSONResponse(self.model_card(name))

    def model_card(self, name: str) -> dict:
        adapted = self.pair.adapted and self.engine.models[name] is self.pair.model
        return {
            "id": name,
            "object": "model",
            "created": self.started,
            "owned_by": "mlx-hybrid",
            "adapted_modules": self.pair.modules if adapted else 0,
            "context": self.pair.context,
        }

    async def complete(self, request: Request) -> Response:
        """Answer a conversation or continue a text.

        The status waits for the first token, so that a failure before it has its own.
        """
        chat = request.url.path == CHAT
        body, models = await read_json(request), list(self.engine.models)
        asked = parse(body, chat=chat, models=models, defaults=self.policy.defaults)
        tokens = await self.tokens(asked)
        sampling = dataclasses.replace(asked.sampling, max_tokens=self.room(asked, len(tokens)))
        pieces: asyncio.Queue[Piece | Exception] = asyncio.Queue()
        job = request.state.job = Job(asked.model, tokens, sampling, deliver_to(pieces))
        self.engine.submit(job)
        texts = self.texts(job, asked, pieces, request)
        reply = Reply(asked.model, chat=chat, streamed=asked.stream)
        if not asked.stream:
            parts = [part async for part in texts]
            text, (_, finish, count) = "".join(part for part, _, _ in parts), parts[-1]
            return JSONResponse(reply.whole(text, finish, usage(len(tokens), count)))
        events = self.events(await anext(texts), texts, reply, len(tokens) if asked.usage else None)
        unkept = {"Cache-Control": "no-store"}
        return StreamingResponse(events, media_type="text/event-stream", headers=unkept)

    async def tokens(self, asked: Asked) -> list[int]:
        tokenizer, content = self.pair.tokenizer, asked.content
        try:
            async with self.tokenising:  # tokenizers are not made for several threads
                if isinstance(content, str):
                    return await asyncio.to_thread(tokenizer.continued, content)
                return await asyncio.to_thread(tokenizer.ask, content, options=asked.template)
        except (ConfigError, DataError) as error:
            raise ApiError(400, str(error)) from None

    def room(self, asked: Asked, prompt: int) -> int:
        """Tokens that the answer may have. Raises ApiError for a prompt that leaves too few."""
        context, most = self.pair.context, asked.sampling.max_tokens
        room, wanted = context - prompt, most if asked.exact else "at least 1"
        if room < 1 or (asked.exact and room < most):
            told = f"The context is {context} tokens; the prompt has {prompt}, and the answer was to have {wanted}."
            raise ApiError(400, told, "context_length_exceeded")
        return min(room, most)

    async def texts(
        self, job: Job, asked: Asked, queue: asyncio.Queue, request: Request
    ) -> AsyncIterator[Text]:
        """The job's texts as they come. Raises ClientDisconnect when the client has left."""
        until, looked, piece = StopText(asked.stop), time.monotonic(), None
        while piece is None or not piece.finish:
            if time.monotonic() - looked > LOOK_SECONDS:
                looked = time.monotonic()
                if await request.is_disconnected():
                    raise ClientDisconnect
            try:
                piece = await asyncio.wait_for(queue.get(), LOOK_SECONDS)
            except TimeoutError:
                continue
            if isinstance(piece, ApiError):
                raise piece
            if isinstance(piece, Exception):
                self.log(f"error: {type(piece).__name__}: {piece}")
                raise ApiError(500, "The model failed on this request; the server's log says how.", "failed")
            request.state.note = f" {len(job.tokens)} + {piece.count} tokens"
            text = until(piece.text)
            if until.found:
                job.cancelled.set()
                yield text, "stop", piece.count
                return
            if text or piece.finish:
                yield text + (until.held if piece.finish else ""), piece.finish, piece.count

    async def events(
        self, first: Text, texts: AsyncIterator[Text], reply: Reply, prompt: int | None
    ) -> AsyncIterator[str]:
        """Server-sent events; the last but the end tells the usage where the prompt's tokens are given."""
        last = first
        yield event(reply.chunk(first[0], first=True))
        try:
            async for last in texts:
                if last[0]:
                    yield event(reply.chunk(last[0]))
        except ApiError as error:  # the answer had begun: nothing but its end can be told
            yield event(error.body())
            return
        _, finish, count = last
        yield event(reply.chunk("", finish))
        if prompt is not None:
            yield event({**reply.frame, "choices": [], "usage": usage(prompt, count)})
        yield "data: [DONE]\n\n"


def event(value: dict) -> str:
    return f"data: {json.dumps(value)}\n\n"


async def read_json(request: Request) -> object:
    try:
        async with asyncio.timeout(SILENCE_SECONDS):
            return await request.json()
    except TimeoutError:
        raise ApiError(408, f"The body did not come within {SILENCE_SECONDS:g} s.", "timeout") from None
    except (ValueError, RecursionError):
        raise ApiError(400, "The body is not JSON.", "invalid_json") from None


def deliver_to(queue: asyncio.Queue) -> Callable[[Piece | Exception], None]:
    """What the engine's thread calls with each piece."""
    loop = asyncio.get_running_loop()

    def deliver(piece: Piece | Exception) -> None:
        with suppress(RuntimeError):  # the loop is closed, and the client with it
            loop.call_soon_threadsafe(queue.put_nowait, piece)

    return deliver


def read_page() -> tuple[str, str]:
    """The web page, and the content security policy that lets nothing run but what is in it."""
    text = PAGE.read_text(encoding="utf-8")
    allowed = {}
    for tag in ("script", "style"):
        inner = re.search(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL).group(1)
        allowed[tag] = "sha256-" + base64.b64encode(hashlib.sha256(inner.encode()).digest()).decode()
    return text, (
        f"default-src 'none'; script-src '{allowed['script']}'; style-src '{allowed['style']}'; "
        "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
