"""Peak memory of a run before its weights are loaded, what makes it up, and the smallest change that makes it fit.

The sizes follow from the shapes; how many arrays of each size are alive at the peak was measured (docs/performance.md):

    peak = base + adapter + optimiser + max(backward, update)
    backward = kept + max(logits, layer)
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import mlx.core as mx

from mlx_hybrid.adapters.start import sketch_columns
from mlx_hybrid.config import Config
from mlx_hybrid.errors import MemoryLimitError
from mlx_hybrid.records.examples import Example, cut
from mlx_hybrid.run import memory_bytes
from mlx_hybrid.training.batches import HELD_RECORDS, chunk_size, length_bucket, target_bucket
from mlx_hybrid.training.memory.shape import ModelShape, UnknownShapeError, model_shape

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
    """A batch: rows of one record each, tokens of the longest, and trained targets of all."""

    rows: int
    tokens: int
    targets: int
    held: int = 0
    """Those among them that are held to the base, whose logits stand beside theirs."""


LoadOf = Callable[[Config], Load]
"""What gives the largest batch of some settings."""


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
    """The batch that takes most: the longest records, cut to `train.max_tokens`, with the most targets of as many."""
    limit, size = config.train.max_tokens, config.train.batch_size
    examples = [cut(e, limit) if len(e.tokens) > limit else e for e in examples]
    share = config.train.prompt_share * (HELD_RECORDS if config.held_to_base else 1)
    prompts = [len(e.tokens) - 1 - e.trained_count for e in examples]
    held = [min(n, max(round(share * n), e.trained_count)) for n, e in zip(prompts, examples, strict=True)]
    counts = [e.trained_count + n * (config.train.prompt_weight > 0) for n, e in zip(held, examples)]
    targets, beside = (sum(sorted(each, reverse=True)[:size]) for each in (counts, held))
    rows, tokens = min(size, len(examples)), max(len(e.tokens) for e in examples) - 1
    return Load(rows, tokens, targets, beside * config.held_to_base)


def widest_load(config: Config, longest: int = 1 << 30) -> Load:
    """The largest batch that the settings allow, of records of at most `longest` tokens, every token trained."""
    size, tokens = config.train.batch_size, min(longest, config.train.max_tokens) - 1
    return Load(size, tokens, size * tokens, config.held_to_base * -(-size // HELD_RECORDS) * tokens)


def estimate(shape: ModelShape, load: Load, config: Config) -> Estimate:
    """Peak memory of training: the highest of a step and of the gradient start's passes."""
    size, tokens = shape.activation_bytes, load.rows * length_bucket(load.tokens)
    scores = load.rows * shape.heads * length_bucket(load.tokens) ** 2 * size
    kept = tokens * (STREAM * shape.width + MLP * shape.mlp_outputs) * size
    if config.adapter.low_rank and config.adapter.low_rank.magnitude:
        kept += tokens * shape.outputs / shape.layers * size  # what each magnitude scales
    layer = tokens * LAYER_MLP * shape.mlp_outputs * size + LAYER_SCORES * scores
    if config.train.grad_checkpoint:
        activations, attention = shape.layers * tokens * shape.width * size, 0
        layer += kept + SCORES * scores
    else:
        activations, attention = shape.layers * kept, shape.layers * SCORES * scores
    if config.train.accumulate > 1:
        activations += shape.trainable_bytes  # the sum so far
    columns = sketch_columns(config.adapter) if config.adapter.from_gradient else 0
    probes = SKETCH * columns * shape.widest * 4
    items = {
        "base": shape.base_bytes,
        "base, unpacked": shape.unpacked_bytes,
        "adapter": shape.adapter_bytes,
        "optimiser": 2 * shape.moment_bytes,
        # there while activations still are: of one layer for adapters, of a head that trains whole
        "gradients": shape.head_gradient_bytes if config.adapter.full else 0.2 * shape.trainable_bytes,
        "activations": activations,
        "attention scores": attention,
        "logits": logits_bytes(shape, load),
        "one layer's backward": layer,
        "update": UPDATE * shape.trainable_bytes,
        "gradient start": max(0.0, probes - shape.trainable_bytes),  # beyond a step's own
    }
    backward = items["gradients"] + activations + attention + max(items["logits"], layer)
    moving = max(backward + items["gradient start"], items["update"])
    static = items["base"] + items["base, unpacked"] + items["adapter"] + items["optimiser"]
    whole = {name: round(value) for name, value in items.items()}
    return Estimate(whole, round(static + moving), round(CACHE_SHARE * moving))


def logits_bytes(shape: ModelShape, load: Load) -> float:
    """Logits and what is made of them, of some chunks of targets or of every token, the base's beside them where it
    holds, and a trained head's gradient."""
    targets, held = target_bucket(load.targets), target_bucket(load.held) if load.held else 0
    chunk = chunk_size(shape.vocabulary)
    if not shape.chunks_logits:
        tokens = load.rows * length_bucket(load.tokens) * (2 if load.held else 1)
        return shape.vocabulary * (LOGITS * (targets + held) * 4 + WHOLE * tokens * shape.activation_bytes)
    alive = sum(min(count, (CHUNKS - shape.unpacks_head) * chunk) for count in (targets, held))
    unpacked = HEAD * shape.vocabulary * shape.width * shape.activation_bytes if shape.unpacks_head else 0
    adding = HEAD_GRADIENTS * shape.head_gradient_bytes if targets > chunk else 0
    return LOGITS * alive * shape.vocabulary * 4 + unpacked + adding


def memory_limit() -> int:
    """Bytes that a run may take here: what the GPU recommends, else the machine's memory, less a margin."""
    recommended = mx.device_info().get("max_recommended_working_set_size")
    return int(USABLE * min(recommended or memory_bytes(), memory_bytes()))


def check_fits(config: Config, examples: list[Example], *, machines: int = 1, force: bool = False) -> bool:
    """Whether there is room for the unpacked copy of a packed base. Raises ConfigError for an adapter that does not fit
    the model's layers, and MemoryLimitError, unless forced, when the estimate is over what the machine has to give
    without that copy too, with the change that fits."""
    try:
        shape = model_shape(config)
    except UnknownShapeError:
        return True  # an unfamiliar config.json: nothing can be said, which is no reason to refuse
    load_of, limit = partial(largest_load, examples), memory_limit()
    if needed_by_one(shape, load_of, config, machines) <= limit:
        return True
    shape = replace(shape, unpacked_bytes=0)
    needed = needed_by_one(shape, load_of, config, machines)
    if not force and needed > limit:
        told = f"Training needs about {needed / 1e9:.1f} GB and {limit / 1e9:.1f} GB may be used here"
        change = as_options(way_out(shape, load_of, config, limit, machines))
        raise MemoryLimitError(f"{told}; what fits: {change}. --force tries it all the same.")
    return False


def needed_by_one(shape: ModelShape, load_of: LoadOf, config: Config, machines: int) -> int:
    """The bytes that one of some machines needs for its part of the largest batch."""
    own = replace(config, train=replace(config.train, batch_size=config.train.batch_size // machines))
    return estimate(shape, load_of(own), own).needed


def way_out(shape: ModelShape, load_of: LoadOf, config: Config, limit: int, machines: int = 1) -> str:
    """The smallest change of settings that fits, as `--set` takes it; empty when none does."""
    alone = replace(config, train=replace(config.train, batch_size=1))
    for change in smaller(config, load_of(alone).tokens, machines):
        settings = replace(config, train=replace(config.train, **change))
        if needed_by_one(shape, load_of, settings, machines) <= limit:
            return " ".join(f"train.{key}={str(value).lower()}" for key, value in change.items())
    return ""


def as_options(change: str) -> str:
    """What `way_out` found, to be typed; or what else there is to do."""
    return f"--set {' --set '.join(change.split())}" if change else "a smaller base, or one of 4 bits"


def smaller(config: Config, longest: int, machines: int = 1) -> Iterator[dict]:
    """Changes of `train` that need less, the smallest first: those that leave the result as it is, for which smaller
    batches are accumulated to the size they had, then shorter records than the `longest`, in tokens."""
    train = config.train
    sizes = (train.batch_size >> n for n in range(1, train.batch_size.bit_length()))
    parts = [(size, train.batch_size // size) for size in sizes if size % machines == 0]
    batches = [{"batch_size": size, "accumulate": train.accumulate * part} for size, part in parts]
    recompute = {} if train.grad_checkpoint else {"grad_checkpoint": True}
    if recompute:
        yield recompute
        yield from batches
    yield from (recompute | batch for batch in batches)
    least = recompute | (batches[-1] if batches else {})
    lengths = (longest >> n for n in range(1, 5) if longest >> n >= 16)
    yield from (least | {"max_tokens": length + 1, "too_long": "truncate"} for length in lengths)
