"""Peak memory of a run before its weights are loaded, and what makes it up.

The sizes follow from the shapes; how many arrays of each size are alive at the peak was measured (docs/performance.md):

    peak = base + adapter + optimiser + max(backward, update)
    backward = kept + max(logits, layer)
"""

from dataclasses import dataclass

from mlx_hybrid.config import Config
from mlx_hybrid.records.template import Example, cut
from mlx_hybrid.training.batches import chunk_size, length_bucket, target_bucket
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


@dataclass(frozen=True)
class Load:
    """A batch: rows of one record each, tokens of the longest, and trained targets of all."""

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


def largest_load(examples: list[Example], config: Config) -> Load:
    """The batch that takes most: the longest records, cut to `train.max_tokens`, with the most targets of as many."""
    limit, size = config.train.max_tokens, config.train.batch_size
    examples = [cut(e, limit) if len(e.tokens) > limit else e for e in examples]
    share = config.train.prompt_share if config.train.prompt_weight or config.train.prompt_kl else 0.0
    counts = [e.trained_count + round(share * (len(e.tokens) - 1 - e.trained_count)) for e in examples]
    targets = sum(sorted(counts, reverse=True)[:size])
    return Load(min(size, len(examples)), max(len(e.tokens) for e in examples) - 1, targets)


def widest_load(config: Config, longest: int = 1 << 30) -> Load:
    """The largest batch that the settings allow, of records of at most `longest` tokens, every token trained."""
    size, tokens = config.train.batch_size, min(longest, config.train.max_tokens) - 1
    return Load(size, tokens, size * tokens)


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
    items = {
        "base": shape.base_bytes,
        "adapter": shape.adapter_bytes,
        "optimiser": 2 * shape.moment_bytes,
        # there while activations still are: of one layer for adapters, of a head that trains whole
        "gradients": shape.head_gradient_bytes if config.adapter.full else 0.2 * shape.trainable_bytes,
        "activations": activations,
        "attention scores": attention,
        "logits": logits_bytes(shape, load) * (2 if config.train.prompt_kl else 1),  # the base's beside them
        "one layer's backward": layer,
        "update": UPDATE * shape.trainable_bytes,
        "gradient start": sketch_bytes(shape, config),
    }
    backward = items["gradients"] + activations + attention + max(items["logits"], layer)
    moving = max(backward + items["gradient start"], items["update"])
    static = items["base"] + items["adapter"] + items["optimiser"]
    whole = {name: round(value) for name, value in items.items()}
    return Estimate(whole, round(static + moving), round(CACHE_SHARE * moving))


def logits_bytes(shape: ModelShape, load: Load) -> float:
    """Logits and what is made of them, of some chunks of targets or of every token, and a trained head's gradient."""
    targets, chunk = target_bucket(load.targets), chunk_size(shape.vocabulary)
    if not shape.chunks_logits:
        tokens = load.rows * length_bucket(load.tokens)
        return shape.vocabulary * (LOGITS * targets * 4 + WHOLE * tokens * shape.activation_bytes)
    alive = min(targets, (CHUNKS - shape.unpacks_head) * chunk)
    unpacked = HEAD * shape.vocabulary * shape.width * shape.activation_bytes if shape.unpacks_head else 0
    adding = HEAD_GRADIENTS * shape.head_gradient_bytes if targets > chunk else 0
    return LOGITS * alive * shape.vocabulary * 4 + unpacked + adding


def sketch_bytes(shape: ModelShape, config: Config) -> float:
    """The probes of the gradient start and what they gather, beyond a step's own."""
    from mlx_hybrid.adapters.start import sketch_columns

    adapter = config.adapter
    if not adapter.from_gradient:
        return 0.0
    return max(0.0, SKETCH * sketch_columns(adapter) * shape.widest * 4 - shape.trainable_bytes)
