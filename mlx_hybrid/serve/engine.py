"""One thread generates for many clients, their answers side by side, with a bounded queue before them."""

import asyncio
import threading
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field

from mlx_hybrid.models.adapted import Pair
from mlx_hybrid.models.generate import Batch, Piece, Sampling, Turns, batch_of
from mlx_hybrid.serve.api import ApiError, need

CLOSING = ("The server is going down.", "closing", None, 503)


@dataclass(eq=False)
class Job:
    """One answer to make, for a client that waits in the current event loop; `cancelled`, nobody wants the rest."""

    model: str
    tokens: list[int]
    sampling: Sampling
    cancelled: threading.Event = field(default_factory=threading.Event)
    pieces: asyncio.Queue[Piece | Exception] = field(default_factory=asyncio.Queue)
    loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.get_running_loop)

    def deliver(self, piece: Piece | Exception) -> None:
        """The next piece, or the error that ended the answer, from any thread."""
        with suppress(RuntimeError):  # the loop is closed, and the client with it
            self.loop.call_soon_threadsafe(self.pieces.put_nowait, piece)


class Engine:
    """Answers jobs for a pair of models, by the ids that clients use; `run` belongs in the thread that loaded them."""

    def __init__(self, pair: Pair, *, active: int = 16, waiting: int = 64) -> None:
        self.pair, self.most_active, self.most_waiting = pair, active, waiting
        base, self.models = pair.base_name, {pair.base_name: pair.base}
        if pair.adapted:
            name = pair.name if pair.name != base else f"{base}-adapted"
            self.models = {name: pair.model, **self.models}
        self.batches: dict[str, Batch | Turns] = {}
        self.waiting: deque[Job] = deque()
        self.active: dict[tuple[str, int], Job] = {}
        self.changed, self.closed = threading.Condition(), False

    def submit(self, job: Job) -> None:
        """Queue a job. Raises ApiError when the queue is full, and when the server is going down."""
        with self.changed:
            if self.closed:
                raise ApiError(*CLOSING)
            told, queued = "requests are waiting already; try again in a moment.", len(self.waiting)
            need(queued < self.most_waiting, str(queued), told, "overloaded", 429)
            self.waiting.append(job)
            self.changed.notify_all()

    def run(self) -> None:
        while self.admit():
            for place in [place for place, job in self.active.items() if job.cancelled.is_set()]:
                self.batches[place[0]].drop(place[1])
                del self.active[place]
            for name in {name for name, _ in self.active}:
                self.advance(name)

    def admit(self) -> bool:
        """Start waiting jobs while there is room; sleeps with nothing to do. False once closed."""
        with self.changed:
            self.changed.wait_for(lambda: self.closed or self.waiting or self.active)
            while not self.closed and self.waiting and len(self.active) < self.most_active:
                job = self.waiting.popleft()
                try:
                    if not job.cancelled.is_set():
                        self.active[job.model, self.batch(job.model).add(job.tokens, job.sampling)] = job
                except Exception as error:  # whatever a model raises must not stop the others
                    job.deliver(error)
            return not self.closed

    def batch(self, name: str) -> Batch | Turns:
        if name not in self.batches:
            self.batches[name] = batch_of(self.models[name], self.pair.tokenizer, rows=self.most_active)
        return self.batches[name]

    def advance(self, name: str) -> None:
        """One more token of each answer of a model; an error ends those of this model alone."""
        try:
            for number, piece in self.batches[name].step():
                job = self.active[name, number] if piece.finish is None else self.active.pop((name, number))
                job.deliver(piece)
        except Exception as error:
            for place in [place for place in self.active if place[0] == name]:
                self.active.pop(place).deliver(error)
            self.batches.pop(name).close()

    def close(self) -> None:
        """End `run` after the current token; jobs that were not done are told so."""
        with self.changed:
            self.closed = True
            for job in [*self.waiting, *self.active.values()]:
                job.deliver(ApiError(*CLOSING))
            self.waiting.clear()
            self.changed.notify_all()
