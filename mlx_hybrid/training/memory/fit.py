"""Whether a run fits into memory, and the smallest change of settings that makes it fit."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import mlx.core as mx

from mlx_hybrid.config import Config
from mlx_hybrid.errors import ConfigError, MemoryLimitError
from mlx_hybrid.records.template import Example
from mlx_hybrid.run import memory_bytes
from mlx_hybrid.training.memory.estimate import Load, estimate, largest_load
from mlx_hybrid.training.memory.shape import ModelShape, UnknownShapeError, model_shape

USABLE = 0.9  # of the memory: a machine needs some of it for itself
SMALLER = 0.8  # of what a run was estimated to need, where that was too much after all


def memory_limit() -> int:
    """Bytes that a run may take here: what the GPU recommends, else the machine's memory, less a margin."""
    recommended = mx.device_info().get("max_recommended_working_set_size")
    return int(USABLE * min(recommended or memory_bytes(), memory_bytes()))


def check_fits(config: Config, examples: list[Example], *, machines: int = 1, force: bool = False) -> None:
    """Raise ConfigError for an adapter that does not fit the model's layers, and MemoryLimitError, unless forced, when
    the estimate is over what the machine has to give, with the change that fits."""
    try:
        needed, way = requirement(config, examples, machines=machines)
    except UnknownShapeError:
        return  # an unfamiliar config.json: nothing can be said, which is no reason to refuse
    limit = memory_limit()
    if not force and needed > limit:
        told = f"Training needs about {needed / 1e9:.1f} GB and {limit / 1e9:.1f} GB may be used here"
        raise MemoryLimitError(f"{told}; what fits: {way(limit)}. --force tries it all the same.")


def how_to_need_less(config: Config, examples: list[Example], *, machines: int = 1) -> str:
    """What to do where memory ran out for a run that was estimated to fit: something a fifth smaller."""
    try:
        needed, way = requirement(config, examples, machines=machines)
        smaller = f"start anew with what needs less: {way(SMALLER * needed)}"
    except (ConfigError, RuntimeError, MemoryError):  # nothing may be left to find out with
        smaller = "start anew with a smaller train.batch_size"
    return f"close other programs, or {smaller}."


def requirement(
    config: Config, examples: list[Example], *, machines: int = 1
) -> tuple[int, Callable[[float], str]]:
    """The bytes that a run's largest batch needs on one of `machines`, and what gives the smallest change that fits
    some limit, as options. Raises UnknownShapeError for an unfamiliar config.json."""
    own = replace(config, train=replace(config.train, batch_size=config.train.batch_size // machines))
    shape, load_of = model_shape(own), partial(largest_load, examples)

    def way(limit: float) -> str:
        change = as_options(way_out(shape, load_of, own, int(limit)))
        if machines > 1 and "batch_size" in change:
            change += f" (for one machine: give {machines} times that train.batch_size)"
        return change

    return estimate(shape, load_of(own), own).needed, way


def way_out(shape: ModelShape, load_of: Callable[[Config], Load], config: Config, limit: int) -> str:
    """The smallest change of settings that fits, as `--set` takes it; empty when none does. `load_of` gives the
    largest batch under some settings."""
    alone = replace(config, train=replace(config.train, batch_size=1))
    for change in smaller(config, load_of(alone).tokens):
        settings = replace(config, train=replace(config.train, **change))
        if estimate(shape, load_of(settings), settings).needed <= limit:
            words = {True: "true"}
            return " ".join(f"train.{key}={words.get(value, value)}" for key, value in change.items())
    return ""


def as_options(change: str) -> str:
    """What `way_out` found, to be typed; or what else there is to do."""
    return f"--set {' --set '.join(change.split())}" if change else "a smaller base, or one of 4 bits"


def smaller(config: Config, longest: int) -> Iterator[dict]:
    """Changes of `train` that need less, the smallest first: those that leave the result as it is, for which smaller
    batches are accumulated to the size they had, then shorter records than the `longest`, in tokens."""
    train = config.train
    batches = [
        {"batch_size": size, "accumulate": train.accumulate * (train.batch_size // size)}
        for size in (train.batch_size >> n for n in range(1, train.batch_size.bit_length()))
    ]
    recompute = {} if train.grad_checkpoint else {"grad_checkpoint": True}
    if recompute:
        yield recompute
        yield from batches
    yield from (recompute | batch for batch in batches)
    least = recompute | (batches[-1] if batches else {})
    for n in range(1, 5):
        if longest >> n >= 16:
            yield least | {"max_tokens": (longest >> n) + 1, "too_long": "truncate"}
