"""One thread generates for many clients: a token for each answer in turn, a bounded queue before them."""

import threading
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from mlx_hybrid.models.generate import Piece, Sampling, stream
from mlx_hybrid.models.pair import Pair
from mlx_hybrid.serve.api import ApiError

KEPT_PROMPTS = 8


@dataclass(eq=False)
class Job:
    """One answer to make. `deliver` gets its pieces, or the error that ended it."""

    model: str
    tokens: list[int]
    sampling: Sampling
    deliver: Callable[[Piece | Exception], None]
    cancelled: threading.Event = field(default_factory=threading.Event)
    """Nobody wants the rest."""


class SharedPrompts:
    """What one model has read for any client, looked up by the longest common beginning."""

    def __init__(self, store: Any, name: str, model: Any) -> None:
        self.store, self.name, self.model = store, name, model

    def take(self, tokens: list[int]) -> tuple[list[Any], list[int]]:
        """A copy of the best cache, and the tokens still to read, of which there is at least one."""
        from mlx_lm.models.cache import make_prompt_cache

        layers, rest = self.store.fetch_nearest_cache(self.name, tokens[:-1])
        if layers is None:
            return make_prompt_cache(self.model), tokens
        return layers, [*rest, tokens[-1]]

    def keep(self, layers: list[Any], tokens: list[int]) -> None:
        self.store.insert_cache(self.name, tokens, layers)


class Engine:
    """Answers jobs for a pair of models. `run` is the only place that computes, so it belongs in the thread that
    loaded the weights."""

    def __init__(self, pair: Pair, *, active: int = 4, waiting: int = 16) -> None:
        from mlx_lm.models.cache import LRUPromptCache

        self.pair, self.most_active, self.most_waiting = pair, active, waiting
        self.models = named_models(pair)
        self.prompts = LRUPromptCache(max_size=KEPT_PROMPTS)
        self.waiting: deque[Job] = deque()
        self.active: list[tuple[Job, Iterator[Piece]]] = []
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
        from mlx_lm.generate import wired_limit

        with wired_limit(self.pair.model):
            while self.admit():
                self.active = [entry for entry in self.active if self.advance(*entry)]

    def admit(self) -> bool:
        """Start waiting jobs while there is room; sleeps with nothing to do. False once closed."""
        with self.changed:
            while not self.closed and not self.waiting and not self.active:
                self.changed.wait()
            if self.closed:
                return False
            while self.waiting and len(self.active) < self.most_active:
                job = self.waiting.popleft()
                if not job.cancelled.is_set():
                    self.active.append((job, self.pieces(job)))
        return True

    def pieces(self, job: Job) -> Iterator[Piece]:
        model, stopped = self.models[job.model], job.cancelled.is_set
        cache = SharedPrompts(self.prompts, job.model, model)
        return stream(model, self.pair.tokenizer, job.tokens, job.sampling, cache=cache, stopped=stopped)

    def advance(self, job: Job, pieces: Iterator[Piece]) -> bool:
        """One more token of a job; whether there is more to come. An error ends this job alone."""
        try:
            piece = next(pieces)
        except Exception as error:  # whatever a model raises must not stop the others
            job.deliver(error)
            return False
        job.deliver(piece)
        return piece.finish is None

    def close(self) -> None:
        """End `run` after the current token; jobs that were not done are told so."""
        with self.changed:
            self.closed = True
            for job in [*self.waiting, *(job for job, _ in self.active)]:
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
