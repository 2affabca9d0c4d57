"""Several processes that take each optimiser step together, through MLX's own `mx.distributed`.

Every collective is one sum, in a thread of its own: where a peer is gone and nothing says so (JACCL, a pulled cable),
the main thread is still free to save what there is. `ONE` is a process alone: nothing is exchanged or copied.
"""

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from operator import itemgetter
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten, tree_unflatten

from mlx_hybrid.errors import INTERRUPTED, ConfigError, MlxHybridError
from mlx_hybrid.records.template import Example
from mlx_hybrid.training.batches import Batch

LayOut = Callable[[list[Example]], Batch]

TIMEOUT = "MLX_HYBRID_RANK_TIMEOUT"
LONGEST_WAIT = 600.0  # seconds that a step of another rank may take longer than one's own
GRACE = 60.0  # as long once a stop was asked for
LOOK = 0.5  # seconds between looks at whether one was
AT_ONCE = 1 << 24  # numbers summed in one exchange: 64 MiB beside the arrays themselves
FAREWELL = 10.0  # seconds for telling the others that there is nothing to do


class RankLost(MlxHybridError):
    """Another rank went away, or did not answer in time."""


class Ranks:
    """One rank; what several do otherwise is in `Several`."""

    rank, size, leads = 0, 1, True

    def __enter__(self) -> "Ranks":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def heed(self, stop: Callable[[], bool]) -> None:
        """Wait less long for others once `stop` says so."""

    def gather(self, value: Any) -> list[Any]:
        """What each rank gave, by rank: plain values, as JSON has them."""
        return [value]

    def any(self, flag: bool) -> bool:
        """Whether it holds on any rank: the same answer on all."""
        return flag

    def total(self, tree: Any) -> Any:
        """Σ over ranks of every leaf."""
        return tree

    def of_first(self, arrays: list[mx.array]) -> list[mx.array]:
        """The first rank's arrays, bit for bit."""
        return arrays

    def split(self, lay_out: LayOut) -> LayOut:
        """`lay_out` whose batches also hold this rank's part: every size-th record from its own number on."""
        return lay_out


ONE = Ranks()


class Several(Ranks):
    """One of several ranks; the first leads: it alone reads data, writes and talks.

    `waiting` says that the others still wait for the first word of what is to be done.
    """

    def __init__(self, group: mx.distributed.Group):
        self.group, self.rank, self.size = group, group.rank(), group.size()
        self.leads = self.rank == 0
        self.pool = ThreadPoolExecutor(1)
        self.stop: Callable[[], bool] = lambda: False
        self.limit = float("inf")
        self.waiting, self.stuck = True, False

    def heed(self, stop: Callable[[], bool]) -> None:
        self.stop = stop

    def hurry(self) -> None:
        """From now on the others are in step: none may be much longer over it than this one."""
        self.waiting = False
        self.limit = float(os.environ.get(TIMEOUT, LONGEST_WAIT))

    def __exit__(self, kind: type | None, error: BaseException | None, trace: object) -> None:
        if self.leads and self.waiting and not self.stuck:
            self.limit = FAREWELL
            with suppress(RankLost):
                self.exchange(b"")
        if self.stuck:
            leave(error)

    def sum(self, x: mx.array) -> mx.array:
        """Σ over ranks. Raises RankLost where one is gone or silent."""
        mx.eval(x)
        if self.stuck:
            raise RankLost(f"Rank {self.rank} of {self.size}: an earlier exchange has not ended.")
        future = self.pool.submit(self.collective, x)
        self.stuck = True
        total = self.wait(future)
        self.stuck = False
        return total

    def collective(self, x: mx.array) -> mx.array:
        total = mx.distributed.all_sum(
            x, group=self.group, stream=mx.cpu
        )  # as every backend for Macs wants it
        mx.eval(total)
        return total

    def wait(self, future: Future) -> mx.array:
        begun = time.monotonic()
        while True:
            try:
                return future.result(LOOK)
            except TimeoutError:
                limit = min(self.limit, GRACE) if self.stop() else self.limit
                if time.monotonic() - begun > limit:
                    raise RankLost(
                        f"Rank {self.rank} of {self.size}: another one did not answer in {limit:.0f} s ({TIMEOUT})."
                    ) from None
            except RuntimeError as error:
                self.stuck = False
                raise RankLost(f"Rank {self.rank} of {self.size}: another one is gone ({error}).") from None

    def exchange(self, payload: bytes) -> list[bytes]:
        """What each rank gave, by rank."""
        sizes = np.zeros(self.size, dtype=np.int64)
        sizes[self.rank] = len(payload)
        sizes = np.array(self.sum(mx.array(sizes)))
        ends = np.cumsum(sizes)
        if not ends[-1]:
            return [b""] * self.size
        room = np.zeros(ends[-1], dtype=np.uint8)
        room[ends[self.rank] - len(payload) : ends[self.rank]] = np.frombuffer(payload, dtype=np.uint8)
        filled = np.array(self.sum(mx.array(room))).tobytes()
        return [filled[end - size : end] for end, size in zip(ends.tolist(), sizes.tolist(), strict=True)]

    def gather(self, value: Any) -> list[Any]:
        return [json.loads(part) if part else None for part in self.exchange(json.dumps(value).encode())]

    def any(self, flag: bool) -> bool:
        return self.sum(mx.array([int(flag)])).item() > 0

    def total(self, tree: Any) -> Any:
        """By name, in an order that no rank's past can change."""
        names, leaves = zip(*sorted(tree_flatten(tree), key=itemgetter(0)), strict=True)
        flat = [leaf.astype(mx.float32).reshape(-1) for leaf in leaves]
        summed = [
            part.reshape(leaf.shape).astype(leaf.dtype)
            for part, leaf in zip(self.sum_all(flat), leaves, strict=True)
        ]
        return tree_unflatten(list(zip(names, summed, strict=True)))

    def of_first(self, arrays: list[mx.array]) -> list[mx.array]:
        """Bits of the first rank and zeros of the others, added as integers."""
        words = [as_words(x) if self.leads else mx.zeros_like(as_words(x)) for x in arrays]
        return [from_words(bits, x) for bits, x in zip(self.sum_all(words), arrays, strict=True)]

    def sum_all(self, flat: list[mx.array]) -> list[mx.array]:
        """Sums of arrays (n,) of one type, a part of them at a time: each exchange has a delay of its own."""
        sums, begin = [], 0
        while begin < len(flat):
            end, size = begin + 1, flat[begin].size
            while end < len(flat) and size + flat[end].size <= AT_ONCE:
                size += flat[end].size
                end += 1
            bounds = np.cumsum([x.size for x in flat[begin:end]])[:-1].tolist()
            sums += mx.split(self.sum(mx.concatenate(flat[begin:end])), bounds)
            begin = end
        return sums

    def split(self, lay_out: LayOut) -> LayOut:
        def with_part(examples: list[Example]) -> Batch:
            own = examples[self.rank :: self.size]
            part = lay_out(own) if own else untrained(lay_out(examples[:1]))
            return replace(lay_out(examples), part=part)

        return with_part


def as_words(x: mx.array) -> mx.array:
    """The bits of an array as integers of 32, or its bytes as one each where they do not fill those."""
    flat = x.reshape(-1)
    return flat.view(mx.uint32) if x.nbytes % 4 == 0 else flat.view(mx.uint8).astype(mx.uint32)


def from_words(words: mx.array, like: mx.array) -> mx.array:
    bits = words if like.nbytes % 4 == 0 else words.astype(mx.uint8)
    return bits.view(like.dtype).reshape(like.shape)


def check_divisible(batch_size: int, ranks: Ranks) -> None:
    """Raise ConfigError for a batch that the ranks cannot share evenly."""
    if batch_size % ranks.size:
        near = max(1, round(batch_size / ranks.size)) * ranks.size
        raise ConfigError(
            f"train.batch_size is {batch_size}, the records of all ranks together, and {ranks.size} ranks cannot share "
            f"that evenly; use {near}."
        )


def untrained(batch: Batch) -> Batch:
    """A batch that adds nothing, for a rank that the last records of an epoch do not reach."""
    return replace(batch, weights=np.zeros_like(batch.weights), owners=batch.owners[:0])


def launched() -> bool:
    """Whether `mlx.launch` or `mpirun` started this process as one of several, or may have."""
    hosts = os.environ.get("MLX_HOSTFILE")
    if hosts and Path(hosts).is_file() and not Path(hosts).read_text().strip():
        return False  # mlx.launch -n 1
    counts = (os.environ.get(name, "1") for name in ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE"))
    return "MLX_RANK" in os.environ or any(count.isdigit() and int(count) > 1 for count in counts)


def join() -> Ranks:
    """The ranks that this process was started among. Raises ConfigError where they do not find each other."""
    if not launched():
        return ONE
    try:
        with interruptible():
            group = mx.distributed.init(strict=True)
    except RuntimeError as error:
        raise ConfigError(
            f"This process was started as one of several, which did not find each other ({error})."
        ) from None
    if group.size() > 1:
        return Several(group)
    if os.environ.get("MLX_RANK", "0") != "0":
        raise ConfigError("This process has a rank (MLX_RANK) and no others to train with; use mlx.launch.")
    return ONE


@contextmanager
def interruptible() -> Iterator[None]:
    """Let Ctrl-C end the process itself: Python would not hear it while MLX waits for the others to connect."""
    old = signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, old)


def leave(error: BaseException | None) -> None:
    """End the process without waiting for an exchange that will never end."""
    code = getattr(error, "code", getattr(error, "exit_code", 1)) if error else 0
    if isinstance(error, Exception):
        print(f"Error: {error}", file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(INTERRUPTED if isinstance(error, KeyboardInterrupt) else code)
