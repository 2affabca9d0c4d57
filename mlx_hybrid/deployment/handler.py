"""The routes of `serve`, and answers as one body or as a stream of events."""

import dataclasses
import queue
import select
import socket
import time
from collections.abc import Callable, Iterator
from urllib.parse import urlsplit

from mlx_hybrid.deployment.connection import Connection
from mlx_hybrid.errors import ConfigError
from mlx_hybrid.models.generate import Piece, chat_tokens, raw_tokens
from mlx_hybrid.serve.api import ApiError, Asked, Reply, StopText, parse, usage
from mlx_hybrid.serve.engine import Busy, Closed, Job

LOOK_SECONDS = 0.5  # so often it is seen whether the client still waits


class Handler(Connection):
    """One connection, and what it may ask for."""

    def do_GET(self) -> None:
        self.answer({
            "/": self.send_page, "/health": self.send_health,
            "/v1/models": self.guarded(self.send_models),
        }, models=True)  # fmt: skip

    def do_POST(self) -> None:
        self.answer({
            "/v1/chat/completions": self.guarded(lambda: self.complete(chat=True)),
            "/v1/completions": self.guarded(lambda: self.complete(chat=False)),
        })  # fmt: skip

    def do_OPTIONS(self) -> None:
        self.answer({}, otherwise=self.send_preflight)

    def answer(self, routes: dict, *, otherwise: Callable | None = None, models: bool = False) -> None:
        """Route a request; whatever goes wrong becomes an error body."""
        self.began, self.status, self.note = time.monotonic(), 0, ""
        self.body_left = self.headers.get("Content-Length", "0") != "0" or "Transfer-Encoding" in self.headers
        path = urlsplit(self.path).path
        try:
            self.check_host()
            self.check_origin()
            action = routes.get(path) or otherwise
            if action is None and models and path.startswith("/v1/models/"):
                action = self.guarded(lambda: self.send_model(path.removeprefix("/v1/models/")))
            if action is None:
                raise ApiError(404, "There is nothing here; see /v1/models.", "not_found")
            action()
        except ApiError as error:
            self.send_problem(error)
        except (ConnectionError, TimeoutError):
            self.close_connection, self.status = True, self.status or 499
        except Exception as error:  # a fault here must not look like a lost connection
            self.server.log(f"error: {type(error).__name__}: {error}")
            self.send_problem(ApiError(500, "The server failed on this request; its log says how.", "failed"))
        self.server.log(
            f"{self.command} {path!a} {self.status} {time.monotonic() - self.began:.2f} s{self.note}"
        )

    def guarded(self, action: Callable[[], None]) -> Callable[[], None]:
        """The action, for clients with the key."""

        def run() -> None:
            self.check_key()
            action()

        return run

    def complete(self, *, chat: bool) -> None:
        """Answer a conversation or continue a text."""
        engine = self.server.engine
        asked = parse(
            self.read_body(), chat=chat, models=list(engine.models), defaults=self.server.policy.defaults
        )
        job = self.start(asked)
        reply = Reply(asked.model, chat)
        try:
            (self.stream_out if asked.stream else self.send_whole)(job, asked, reply)
        finally:
            job.cancel()

    def start(self, asked: Asked) -> Job:
        """Tokenise and queue. Raises ApiError for a prompt over the context, and for a full queue."""
        pair = self.server.engine.pair
        try:
            with self.server.tokenising:
                make = raw_tokens if isinstance(asked.content, str) else chat_tokens
                tokens = make(pair.tokenizer, asked.content)
        except ConfigError as error:
            raise ApiError(400, str(error)) from None
        room = pair.context - len(tokens)
        if room < 1 or (asked.exact and room < asked.sampling.max_tokens):
            raise ApiError(
                400,
                f"The context is {pair.context} tokens; the prompt has {len(tokens)}, and the answer was to have "
                f"{asked.sampling.max_tokens if asked.exact else 'at least 1'}.",
                "context_length_exceeded",
            )
        sampling = dataclasses.replace(asked.sampling, max_tokens=min(room, asked.sampling.max_tokens))
        try:
            return self.server.engine.submit(Job(asked.model, tokens, sampling))
        except Busy as error:
            raise ApiError(429, str(error), "overloaded") from None
        except Closed as error:
            raise ApiError(503, str(error), "closing") from None

    def pieces(self, job: Job) -> Iterator[Piece]:
        """The job's pieces as they come. Raises ConnectionError when the client has left."""
        looked = time.monotonic()
        while True:
            if time.monotonic() - looked > LOOK_SECONDS:
                looked = time.monotonic()
                if self.client_left():
                    raise ConnectionResetError
            try:
                piece = job.out.get(timeout=LOOK_SECONDS)
            except queue.Empty:
                continue
            if isinstance(piece, Closed):
                raise ApiError(503, str(piece), "closing")
            if isinstance(piece, Exception):
                self.server.log(f"error: {type(piece).__name__}: {piece}")
                raise ApiError(500, "The model failed on this request; the server's log says how.", "failed")
            self.note = f" {len(job.tokens)} + {piece.count} tokens"
            yield piece
            if piece.finish:
                return

    def client_left(self) -> bool:
        readable, _, _ = select.select([self.connection], [], [], 0)
        return bool(readable) and not self.connection.recv(1, socket.MSG_PEEK)

    def texts(self, job: Job, asked: Asked) -> Iterator[tuple[str, str | None, int]]:
        """Text to send, the reason for the end in the last one, and the tokens so far."""
        until = StopText(asked.stop)
        for piece in self.pieces(job):
            text = until(piece.text)
            if until.found:
                yield text, "stop", piece.count
                return
            if piece.finish:
                yield text + until.rest(), piece.finish, piece.count
            elif text:
                yield text, None, piece.count

    def send_whole(self, job: Job, asked: Asked, reply: Reply) -> None:
        parts = list(self.texts(job, asked))
        _, finish, count = parts[-1]
        text = "".join(part for part, _, _ in parts)
        self.send_json(200, reply.whole(text, finish, usage(len(job.tokens), count)))

    def stream_out(self, job: Job, asked: Asked, reply: Reply) -> None:
        """Server-sent events; the status is sent with the first token, so that a failure before it has its own."""
        count, first = 0, True
        for text, finish, tokens in self.texts(job, asked):
            count = tokens
            if first:
                self.begin_events()
            if text or first:
                self.send_event(reply.chunk(text, first=first))
            first = False
            if finish:
                self.send_event(reply.chunk(None, finish))
        if asked.usage:
            self.send_event(reply.usage_chunk(usage(len(job.tokens), count)))
        self.write_chunk(b"data: [DONE]\n\n")
        self.write_chunk(b"")

    def send_page(self) -> None:
        self.send(
            200,
            self.server.page,
            "text/html; charset=utf-8",
            {"Content-Security-Policy": self.server.page_policy},
        )

    def send_health(self) -> None:
        self.send_json(200, {"status": "ok"})

    def send_models(self) -> None:
        self.send_json(
            200, {"object": "list", "data": [self.model_card(name) for name in self.server.engine.models]}
        )

    def send_model(self, name: str) -> None:
        if name not in self.server.engine.models:
            raise ApiError(404, f"No model {name!r} here; see /v1/models.", "model_not_found", "model")
        self.send_json(200, self.model_card(name))

    def model_card(self, name: str) -> dict:
        pair = self.server.engine.pair
        adapted = pair.adapted and self.server.engine.models[name] is pair.model
        return {
            "id": name, "object": "model", "created": self.server.started, "owned_by": "mlx-hybrid",
            "adapted_modules": pair.loaded.modules if adapted else 0, "context": pair.context,
        }  # fmt: skip

    def send_preflight(self) -> None:
        """What a browser asks before it lets a page of another origin call."""
        if not self.headers.get("Origin"):
            raise ApiError(405, "OPTIONS is for browsers that ask for another origin.", "method_not_allowed")
        self.send(204, b"", None, {
            "Access-Control-Allow-Methods": "GET, POST", "Access-Control-Max-Age": "600",
            "Access-Control-Allow-Headers": self.headers.get("Access-Control-Request-Headers", "content-type"),
        })  # fmt: skip
