"""One thread generates for many clients, their answers side by side, with a bounded queue before them."""

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from mlx_hybrid.models.generate import Batch, Piece, Sampling, Turns, batch_of
from mlx_hybrid.models.pair import Pair
from mlx_hybrid.serve.api import ApiError


@dataclass(eq=False)
class Job:
    """One answer to make. `deliver` gets its pieces, or the error that ended it; `cancelled`, nobody wants the rest."""

    model: str
    tokens: list[int]
    sampling: Sampling
    deliver: Callable[[Piece | Exception], None]
    cancelled: threading.Event = field(default_factory=threading.Event)


class Engine:
    """Answers jobs for a pair of models. `run` is the only place that computes, so it belongs in the thread that
    loaded the weights."""

    def __init__(self, pair: Pair, *, active: int = 16, waiting: int = 64) -> None:
        self.pair, self.most_active, self.most_waiting = pair, active, waiting
        self.models = named_models(pair)
        self.batches: dict[str, Batch | Turns] = {}
        self.waiting: deque[Job] = deque()
        self.active: dict[tuple[str, int], Job] = {}
        self.changed = threading.Condition()
        self.closed = False

    def submit(self, job: Job) -> None:
        """Queue a job. Raises ApiError when the queue is full, and when the server is going down."""
        with self.changed:
            if self.closed:
                raise closing()
            if len(self.waiting) >= self.most_waiting:
                told = f"{len(self.waiting)} requests are waiting already; try again in a moment."
                raise ApiError(429, told, "overloaded")
            self.waiting.append(job)
            self.changed.notify()

    def run(self) -> None:
        """Work until `close`."""
        while self.admit():
            for place in [place for place, job in self.active.items() if job.cancelled.is_set()]:
                self.batches[place[0]].drop(place[1])
                del self.active[place]
            for name in {name for name, _ in self.active}:
                self.advance(name)

    def admit(self) -> bool:
        """Start waiting jobs while there is room; sleeps with nothing to do. False once closed."""
        with self.changed:
            while not self.closed and not self.waiting and not self.active:
                self.changed.wait()
            while not self.closed and self.waiting and len(self.active) < self.most_active:
                job = self.waiting.popleft()
                if not job.cancelled.is_set():
                    self.start(job)
            return not self.closed

    def start(self, job: Job) -> None:
        try:
            if job.model not in self.batches:
                model, rows = self.models[job.model], self.most_active
                self.batches[job.model] = batch_of(model, self.pair.tokenizer, rows=rows)
            number = self.batches[job.model].add(job.tokens, job.sampling)
        except Exception as error:  # whatever a model raises must not stop the others
            job.deliver(error)
        else:
            self.active[job.model, number] = job

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
                job.deliver(closing())
            self.waiting.clear()
            self.changed.notify_all()


def closing() -> ApiError:
    return ApiError(503, "The server is going down.", "closing")


def named_models(pair: Pair) -> dict[str, Any]:
    """Models by the id that clients use, the adapted one first; ids are names, never paths."""
    base = pair.base_name
    if not pair.adapted:
        return {base: pair.model}
    adapted = pair.name if pair.name != base else f"{base}-adapted"
    return {adapted: pair.model, base: pair.base()}
