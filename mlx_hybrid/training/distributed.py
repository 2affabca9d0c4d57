"""Several machines that take each optimiser step together, through MLX's `mx.distributed`: they exchange sums."""

import os
import signal
import zlib
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_map

from mlx_hybrid.errors import ConfigError, MlxHybridError
from mlx_hybrid.records.examples import Example
from mlx_hybrid.training.batches import Batch, LayOut


class MachineLost(MlxHybridError):
    """Another machine went away."""


class World:
    """The machines that train together, as one of them sees them; without a `group`, this one alone."""

    def __init__(self, group: mx.distributed.Group | None = None):
        self.group = group
        self.index, self.size = (group.rank(), group.size()) if group else (0, 1)
        self.first = self.index == 0

    def exchange(self, collective: Callable[[Any], Any], values: Any) -> Any:
        """collective(values), evaluated. Raises MachineLost where MLX notices that a machine is gone."""
        mx.eval(values)  # an error here is this machine's own
        try:
            result = collective(values)
            mx.eval(result)
        except RuntimeError as error:
            told = f"Machine {self.index + 1} of {self.size}: another one is gone ({error})."
            raise MachineLost(told) from None
        return result

    def sum(self, x: mx.array) -> mx.array:
        """Σ over machines."""
        return x if self.size == 1 else self.exchange(partial(mx.distributed.all_sum, group=self.group), x)

    def any(self, flag: bool) -> bool:
        """Whether it holds on any machine: the same answer on all."""
        return flag if self.size == 1 else self.sum(mx.array([int(flag)])).item() > 0

    def mean_gradients(self, gradients: dict) -> dict:
        """(Σ over machines) / machines of every leaf, added up in float32."""
        if self.size == 1:
            return gradients
        gradients = tree_map(lambda leaf: leaf.astype(mx.float32), gradients)
        return self.exchange(partial(nn.average_gradients, group=self.group), gradients)

    def of_first(self, arrays: dict[str, mx.array]) -> dict[str, mx.array]:
        """The first machine's arrays; all others add zeros to them."""
        own = {name: value if self.first else mx.zeros_like(value) for name, value in sorted(arrays.items())}
        kinds = {name: mx.int32 if value.dtype == mx.bool_ else value.dtype for name, value in own.items()}
        return {name: self.sum(value.astype(kinds[name])).astype(value.dtype) for name, value in own.items()}

    def check_alike(self, facts: dict[str, Any]) -> None:
        """Raise ConfigError, on every machine, where one differs from the first in a fact."""
        table = np.zeros((self.size, len(facts)), dtype=np.int32)
        table[self.index] = [zlib.crc32(repr(fact).encode()) >> 1 for fact in facts.values()]
        first, *others = np.array(self.sum(mx.array(table))).tolist()
        for number, row in enumerate(others, 2):
            if different := ", ".join(name for name, a, b in zip(facts, first, row, strict=True) if a != b):
                raise ConfigError(f"Machine {number} differs from the first one in its {different}.")

    def share(self, lay_out: LayOut) -> LayOut:
        """`lay_out` whose batches also hold this machine's part: every size-th record from its own number on."""
        if self.size == 1:
            return lay_out

        def with_part(examples: list[Example]) -> Batch:
            own = examples[self.index :: self.size]
            part = lay_out(own or examples[:1])
            if not own:  # the last records of an epoch do not reach this machine: it adds nothing
                part = replace(part, weights=np.zeros_like(part.weights), owners=part.owners[:0])
            return replace(lay_out(examples), part=part)

        return with_part


ALONE = World()


def check_divisible(batch_size: int, machines: int) -> None:
    """Raise ConfigError for a batch that the machines cannot share evenly."""
    if batch_size % machines:
        near = max(1, round(batch_size / machines)) * machines
        told = f"train.batch_size is {batch_size}, the records of all machines together"
        raise ConfigError(f"{told}, and {machines} machines cannot share that evenly; use {near}.")


def launched() -> bool:
    """Whether `mlx.launch` or `mpirun` started this process as one of several, or may have."""
    hosts = os.environ.get("MLX_HOSTFILE")
    if hosts and Path(hosts).is_file() and not Path(hosts).read_text().strip():
        return False  # mlx.launch -n 1
    counts = (os.environ.get(name, "1") for name in ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE"))
    return "MLX_RANK" in os.environ or any(count.isdigit() and int(count) > 1 for count in counts)


def join() -> World:
    """The machines that this process was started among. Raises ConfigError where they do not find each other."""
    if not launched():
        return ALONE
    # Python would not hear Ctrl-C while MLX waits for the others
    old = signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        group = mx.distributed.init(strict=True)
    except RuntimeError as error:
        told = "This process was started as one of several, which did not find each other"
        raise ConfigError(f"{told} ({error}).") from None
    finally:
        signal.signal(signal.SIGINT, old)
    if group.size() == 1 and os.environ.get("MLX_RANK", "0") != "0":
        raise ConfigError("This process has a rank (MLX_RANK) and no others to train with; use mlx.launch.")
    return World(group) if group.size() > 1 else ALONE
