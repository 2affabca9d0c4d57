"""Peak memory of a run before its weights are loaded, what makes it up, and the smallest change that fits.

The sizes follow from the shapes; how many arrays of each size are alive at the peak was measured (docs/performance.md):

    peak = base + adapter + optimiser + max(backward, update)
    backward = kept + max(logits, layer)
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace

from mlx_hybrid.config import Config
from mlx_hybrid.training.batches import chunk_size, length_bucket, target_bucket
from mlx_hybrid.training.examples import Example
from mlx_hybrid.training.model_shape import ModelShape

STREAM = 4.4  # arrays (tokens, width) that a layer keeps for its backward pass
MLP = 2.74  # arrays (tokens, outputs of the MLP's products) that it keeps
SCORES = 1.0  # attention matrices (batch, heads, tokens, tokens) that it keeps
LAYER_MLP = 5.0  # more of the MLP's alive while one layer's backward pass runs
LAYER_SCORES = 1.07  # more attention matrices meanwhile
LOGITS = 4.6  # arrays (targets, vocabulary) alive at once: logits, their exponentials, gradient
HEAD = 2.4  # whole heads dequantised at once
SKETCH = 3.0  # the probes of the gradient start, their gradients and what they are projected on
UPDATE = 3.0  # new leaves and moments beside the old ones, in trainable sizes
CACHE_SHARE = 0.25  # of what is freed again, kept by MLX for reuse
USABLE = 0.9  # of the memory: a machine needs some of it for itself


@dataclass(frozen=True)
class Load:
    """The largest batch: records, tokens of the longest, and trained targets of all."""

    records: int
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


def largest_load(examples: list[Example], config: Config) -> Load:
    """The batch of the longest records, with the most targets that as many records have."""
    size = config.train.batch_size
    longest = max(len(e.tokens) for e in examples)
    targets = sum(sorted((e.trained_count for e in examples), reverse=True)[:size])
    return Load(min(size, len(examples)), longest - 1, targets)


def widest_load(config: Config) -> Load:
    """The largest batch that the settings allow, every token trained."""
    size, tokens = config.train.batch_size, config.train.max_tokens
    return Load(size, tokens - 1, size * (tokens - 1))


def estimate(shape: ModelShape, load: Load, config: Config) -> Estimate:
    """Peak memory of training: the highest of a step and of the gradient start's passes."""
    size, tokens = shape.activation_bytes, load.records * length_bucket(load.tokens)
    scores = load.records * shape.heads * length_bucket(load.tokens) ** 2 * size
    kept = tokens * (STREAM * shape.width + MLP * shape.mlp_outputs) * size
    if config.adapter.magnitude:
        kept += tokens * shape.outputs / shape.layers * size  # what each magnitude scales
    layer = tokens * LAYER_MLP * shape.mlp_outputs * size + LAYER_SCORES * scores
    logits = LOGITS * min(target_bucket(load.targets), chunk_size(shape.vocabulary)) * shape.vocabulary * 4
    logits += HEAD * shape.vocabulary * shape.width * size if shape.unpacks_head else 0
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


def gradients_alive(shape: ModelShape, config: Config) -> float:
    """Gradients that are there while activations still are: of one layer for adapters, of a head that trains whole."""
    if config.method == "full":
        return shape.vocabulary * shape.width * 4.0
    return 0.2 * shape.trainable_bytes


def sketch_bytes(shape: ModelShape, config: Config) -> float:
    """The probes of the gradient start and what they gather, beyond a step's own."""
    from mlx_hybrid.adapters.gradient_start import sketch_columns

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


def smaller(config: Config, load: Load) -> Iterator[tuple[str, Config, Load]]:
    """Changes that need less, the smallest first: those that leave the result as it is, then shorter records."""
    train = config.train
    options = [(train.grad_checkpoint, train.batch_size)]
    sizes = [train.batch_size >> n for n in range(1, train.batch_size.bit_length())]
    if not train.grad_checkpoint:
        options.append((True, train.batch_size))
    options += [(train.grad_checkpoint, n) for n in sizes] + [
        (True, n) for n in sizes if not train.grad_checkpoint
    ]
    for recompute, size in options[1:]:
        yield changed(config, load, recompute, size, load.tokens)
    for n in range(1, 5):
        if load.tokens >> n >= 16:
            yield changed(config, load, True, 1, load.tokens >> n)


def changed(config: Config, load: Load, recompute: bool, size: int, tokens: int) -> tuple[str, Config, Load]:
    train, said = config.train, []
    if recompute and not train.grad_checkpoint:
        said.append("train.grad_checkpoint=true")
    accumulate = train.accumulate * (train.batch_size // size)
    if size != train.batch_size:
        said += [f"train.batch_size={size}", f"train.accumulate={accumulate}"]
    if tokens != load.tokens:
        said += [f"train.max_tokens={tokens + 1}", "train.too_long=truncate"]
    train = replace(train, grad_checkpoint=recompute, batch_size=size, accumulate=accumulate)
    share = min(size, load.records) / load.records * tokens / load.tokens
    smaller_load = Load(min(size, load.records), tokens, max(1, round(load.targets * share)))
    return " ".join(said), replace(config, train=train), smaller_load


def as_options(change: str) -> str:
    """What `way_out` found, to be typed; or what else there is to do."""
    return f"--set {' --set '.join(change.split())}" if change else "a smaller base, or one of 4 bits"


def way_out(shape: ModelShape, load: Load, config: Config, limit: int) -> str:
    """The smallest change of settings that fits, as `--set` takes it; empty when none does."""
    for words, settings, less in smaller(config, load):
        if estimate(shape, less, settings).needed <= limit:
            return words
    return ""
