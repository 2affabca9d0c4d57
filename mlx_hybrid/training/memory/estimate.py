"""Peak memory of a run before its weights are loaded, what makes it up, and the smallest change that fits.

The sizes follow from the shapes; how many arrays of each size are alive at the peak was measured (docs/performance.md):

    peak = base + adapter + optimiser + max(backward, update)
    backward = kept + max(logits, layer)
"""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import islice

from mlx_hybrid.config import Config
from mlx_hybrid.records.template import Example, cut
from mlx_hybrid.training.batches import (
    LONGEST_ROW,
    chunk_size,
    length_bucket,
    start_batches,
    target_bucket,
    training_batches,
)
from mlx_hybrid.training.memory.shape import ModelShape

STREAM = 4.4  # arrays (tokens, width) that a layer keeps for its backward pass
MLP = 2.74  # arrays (tokens, outputs of the MLP's products) that it keeps
SCORES = 1.0  # attention matrices (batch, heads, tokens, tokens) that it keeps
LAYER_MLP = 5.0  # more of the MLP's alive while one layer's backward pass runs
LAYER_SCORES = 1.07  # more attention matrices meanwhile
LOGITS = 3.2  # arrays (targets, vocabulary) alive at once: logits, their exponentials, gradient
CHUNKS = 2.6  # of targets, that MLX makes room for ahead; one fewer where each also unpacks the head
WHOLE = 2.0  # logits of every token and their gradient, where a model does not split
HEAD_GRADIENTS = 2.0  # of a head that trains, beside the one that stays, while chunks add up
HEAD = 3.6  # whole heads dequantised at once
SKETCH = 3.0  # the probes of the gradient start, their gradients and what they are projected on
UPDATE = 3.0  # new leaves and moments beside the old ones, in trainable sizes
CACHE_SHARE = 0.25  # of what is freed again, kept by MLX for reuse
USABLE = 0.9  # of the memory: a machine needs some of it for itself


@dataclass(frozen=True)
class Load:
    """A batch: rows (one record each, unless they are packed), tokens of the longest, and trained targets of all."""

    rows: int
    tokens: int
    targets: int


@dataclass(frozen=True)
class Estimate:
    """Bytes by item, the peak they make, and the headroom for MLX's cache of freed buffers beside it."""

    items: dict[str, int]
    peak: int
    cache: int

    @property
    def needed(self) -> int:
        return self.peak + self.cache


def largest_load(shape: ModelShape, examples: list[Example], config: Config) -> Load:
    """The batch that takes most: the longest records with the most targets that as many have, or of packed rows the
    one of all that the run makes. Records over `train.max_tokens` count as cut."""
    limit, size = config.train.max_tokens, config.train.batch_size
    if any(len(e.tokens) > limit for e in examples):
        examples = [cut(e, limit) for e in examples]
    if packs(shape, config):
        return max(packed_loads(examples, config), key=lambda load: estimate(shape, load, config).peak)
    targets = sum(sorted((e.trained_count for e in examples), reverse=True)[:size])
    return Load(min(size, len(examples)), max(len(e.tokens) for e in examples) - 1, targets)


def packs(shape: ModelShape, config: Config) -> bool:
    return config.train.packing == "auto" and shape.packs


def packed_loads(examples: list[Example], config: Config) -> set[Load]:
    """The rows of every batch that the trainer makes, and the records of those that a start from the gradient takes."""
    from mlx_hybrid.training.loop import total_steps
    from mlx_hybrid.training.packing import choose_rows

    def packed(group: list[Example]) -> Load:
        rows, width = choose_rows([len(e.tokens) - 1 for e in group])
        return Load(len(rows), width, sum(e.trained_count for e in group))

    train = config.train
    batches = training_batches(
        examples, batch_size=train.batch_size, seed=config.seed, temperature=config.data.temperature, pool=1,
        lay_out=packed,
    )  # fmt: skip
    loads = set(islice(batches, train.accumulate * total_steps(train, len(examples))))
    if config.adapter.from_gradient:
        count = config.adapter.start_records
        for group in start_batches(examples, count=count, batch_size=train.batch_size, seed=config.seed):
            longest = max(len(e.tokens) for e in group) - 1
            loads.add(Load(len(group), longest, sum(e.trained_count for e in group)))
    return loads


def widest_load(shape: ModelShape, config: Config) -> Load:
    """The largest batch that the settings allow, every token trained."""
    size, tokens = config.train.batch_size, config.train.max_tokens - 1
    times = min(size, LONGEST_ROW) if packs(shape, config) else 1
    return Load(-(-size // times), times * tokens, size * tokens)


def estimate(shape: ModelShape, load: Load, config: Config) -> Estimate:
    """Peak memory of training: the highest of a step and of the gradient start's passes."""
    size, tokens = shape.activation_bytes, load.rows * length_bucket(load.tokens)
    scores = load.rows * shape.heads * length_bucket(load.tokens) ** 2 * size
    kept = tokens * (STREAM * shape.width + MLP * shape.mlp_outputs) * size
    if config.adapter.magnitude:
        kept += tokens * shape.outputs / shape.layers * size  # what each magnitude scales
    layer = tokens * LAYER_MLP * shape.mlp_outputs * size + LAYER_SCORES * scores
    logits = logits_bytes(shape, load)
    if config.train.grad_checkpoint:
        streams = shape.layers * tokens * shape.width * size
        activations, attention, layer = streams, 0, layer + kept + SCORES * scores
    else:
        activations, attention = shape.layers * kept, shape.layers * SCORES * scores
    work = max(logits, layer)
    update = UPDATE * shape.trainable_bytes
    if config.train.accumulate > 1:
        activations += shape.trainable_bytes  # the sum so far
    static = shape.base_bytes + shape.adapter_bytes + 2 * shape.moment_bytes
    backward = activations + attention + work + gradients_alive(shape, config)
    sketch = sketch_bytes(shape, config)
    items = {
        "base": shape.base_bytes, "adapter": shape.adapter_bytes, "optimiser": 2 * shape.moment_bytes,
        "gradients": gradients_alive(shape, config), "activations": activations, "attention scores": attention,
        "logits": logits, "one layer's backward": layer, "update": update, "gradient start": sketch,
    }  # fmt: skip
    items = {name: round(value) for name, value in items.items()}
    moving = max(backward + sketch, update)
    return Estimate(items, round(static + moving), round(CACHE_SHARE * moving))


def logits_bytes(shape: ModelShape, load: Load) -> float:
    """Logits and what is made of them: of some chunks of targets, or of every token where a model does not split; the
    gradient of a head that trains, of the newest chunk and added up, beside the one that stays."""
    targets, chunk = target_bucket(load.targets), chunk_size(shape.vocabulary)
    if not shape.chunks_logits:
        tokens = load.rows * length_bucket(load.tokens)
        return shape.vocabulary * (LOGITS * targets * 4 + WHOLE * tokens * shape.activation_bytes)
    alive = min(targets, (CHUNKS - shape.unpacks_head) * chunk)
    unpacked = HEAD * shape.vocabulary * shape.width * shape.activation_bytes if shape.unpacks_head else 0
    adding = HEAD_GRADIENTS * shape.head_gradient_bytes if targets > chunk else 0
    return LOGITS * alive * shape.vocabulary * 4 + unpacked + adding


def gradients_alive(shape: ModelShape, config: Config) -> float:
    """Gradients that are there while activations still are: of one layer for adapters, of a head that trains whole."""
    if config.method == "full":
        return float(shape.head_gradient_bytes)
    return 0.2 * shape.trainable_bytes


def sketch_bytes(shape: ModelShape, config: Config) -> float:
    """The probes of the gradient start and what they gather, beyond a step's own."""
    from mlx_hybrid.adapters.start import sketch_columns

    adapter = config.adapter
    if config.method == "full" or not adapter.from_gradient:
        return 0.0
    return max(0.0, SKETCH * sketch_columns(adapter) * shape.widest * 4 - shape.trainable_bytes)


def memory_limit() -> int:
    """Bytes that a run may take here: what the GPU recommends, else the machine's memory, less a margin."""
    import mlx.core as mx

    recommended = mx.device_info().get("max_recommended_working_set_size")
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return int(USABLE * min(recommended or memory, memory))


def smaller(config: Config, longest: int) -> Iterator[tuple[str, Config]]:
    """Changes that need less, the smallest first: those that leave the result as it is, then shorter records than the
    `longest`, in tokens."""
    train = config.train
    options = [(train.grad_checkpoint, train.batch_size)]
    sizes = [train.batch_size >> n for n in range(1, train.batch_size.bit_length())]
    if not train.grad_checkpoint:
        options.append((True, train.batch_size))
    options += [(train.grad_checkpoint, n) for n in sizes] + [
        (True, n) for n in sizes if not train.grad_checkpoint
    ]
    for recompute, size in options[1:]:
        yield changed(config, recompute, size)
    for n in range(1, 5):
        if longest >> n >= 16:
            yield changed(config, True, 1, (longest >> n) + 1)


def changed(config: Config, recompute: bool, size: int, max_tokens: int = 0) -> tuple[str, Config]:
    train, said = config.train, []
    if recompute and not train.grad_checkpoint:
        said.append("train.grad_checkpoint=true")
    accumulate = train.accumulate * (train.batch_size // size)
    if size != train.batch_size:
        said += [f"train.batch_size={size}", f"train.accumulate={accumulate}"]
    if max_tokens:
        said += [f"train.max_tokens={max_tokens}", "train.too_long=truncate"]
    train = replace(
        train, grad_checkpoint=recompute, batch_size=size, accumulate=accumulate,
        max_tokens=max_tokens or train.max_tokens,
    )  # fmt: skip
    return " ".join(said), replace(config, train=train)


def as_options(change: str) -> str:
    """What `way_out` found, to be typed; or what else there is to do."""
    return f"--set {' --set '.join(change.split())}" if change else "a smaller base, or one of 4 bits"


def way_out(shape: ModelShape, load_of: Callable[[Config], Load], config: Config, limit: int) -> str:
    """The smallest change of settings that fits, as `--set` takes it; empty when none does. `load_of` gives the
    largest batch under some settings."""
    alone = replace(config, train=replace(config.train, batch_size=1))
    for words, settings in smaller(config, load_of(alone).tokens):
        if estimate(shape, load_of(settings), settings).needed <= limit:
            return words
    return ""
