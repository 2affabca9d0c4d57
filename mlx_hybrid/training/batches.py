"""Batches of similar length, few shapes, and an order that a seed and a step fix."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from mlx_hybrid.config import TrainConfig
from mlx_hybrid.records.template import Example

POOL = 64
"""Batches' worth of shuffled records that are sorted by length together: padding stays small, order stays random."""
LARGEST_CHUNK, SMALLEST_CHUNK = 1024, 64
CHUNK_BYTES = 1 << 26


@dataclass(frozen=True)
class Batch:
    """Token ids (n, t), padded on the right, and where the trained targets stand.

    `positions` (p,) index the flattened (n·t) hidden states that predict `targets` (p,); `weights` (p,) is 1 for an
    answer's target, less for a prompt's, and 0 for padding. `owners` says which example each real target belongs to;
    `where` and `languages` are the examples'. Of several machines (distributed.py), `part` holds this one's records.
    """

    tokens: np.ndarray
    positions: np.ndarray
    targets: np.ndarray
    weights: np.ndarray
    where: tuple[str, ...]
    languages: tuple[str, ...]
    owners: np.ndarray
    part: "Batch | None" = None

    @property
    def trained(self) -> int:
        return len(self.owners)

    @property
    def answers(self) -> int:
        """Targets that are an answer's."""
        return int(np.sum(self.weights == 1))


def length_bucket(length: int) -> int:
    """The next of 16, 24, …, 128, 144, …, 256, 288, …: eight shapes an octave, an eighth of it padding at most."""
    step = max(8, 1 << (length.bit_length() - 4)) if length > 16 else 16
    return max(1, -(-length // step)) * step


def own_width(length: int) -> int:
    """The length itself: for steps that are not compiled, where a new shape costs nothing."""
    return length


def make_batch(examples: list[Example], bucket: Callable[[int], int] = length_bucket) -> Batch:
    """Right-padded tokens of some examples, as wide as `bucket` makes the longest; a pad is never a target."""
    length = bucket(max(len(e.tokens) for e in examples) - 1)
    tokens = np.zeros((len(examples), length), dtype=np.int32)
    positions, targets, owners, weights = [], [], [], []
    for row, example in enumerate(examples):
        tokens[row, : len(example.tokens) - 1] = example.tokens[:-1]
        own = np.array(example.weights or example.trained, dtype=np.float32)[1:]
        (index,) = own.nonzero()
        positions.append(row * length + index)
        targets.append(np.array(example.tokens)[index + 1])
        weights.append(own[index])
        owners.append(np.full(len(index), row))
    count = sum(map(len, owners))

    def joined(parts: list[np.ndarray], dtype: type, room: int) -> np.ndarray:
        return np.pad(np.concatenate(parts).astype(dtype), (0, room - count))

    room = target_bucket(count)
    return Batch(
        tokens,
        joined(positions, np.int32, room),
        joined(targets, np.int32, room),
        joined(weights, np.float32, room),
        tuple(e.where for e in examples),
        tuple(e.language for e in examples),
        joined(owners, np.int32, count),
    )


@dataclass(frozen=True)
class PromptLoss:
    """A small loss that holds the model to the text it knows: that of a random `share` of the tokens that are no target
    counts `weight` times a target's."""

    weight: float = 0.0
    share: float = 0.0

    @classmethod
    def of(cls, config: TrainConfig) -> "PromptLoss":
        """As the settings say; a negative weight asks for the divergence from the base (loss.py)."""
        return cls(-config.prompt_kl or config.prompt_weight, config.prompt_share)

    def on(self, example: Example, draw: tuple[int, ...]) -> Example:
        """The example with the weights of its tokens, drawn anew for each `draw`."""
        if not self.weight or all(example.trained[1:]):
            return example
        picked = np.random.default_rng(draw).random(len(example.tokens)) < self.share
        weights = np.where(example.trained, 1.0, np.where(picked, self.weight, 0.0))
        return replace(example, weights=tuple(weights.tolist()))


def target_bucket(count: int) -> int:
    """Room for `count` targets: the next of 16, 32, 48, 64, 96, 128, 192, 256, 384, …"""
    size = 16
    while size < count:
        size += size // 2 if size & (size - 1) == 0 and size > 16 else 16 if size < 64 else size // 3
    return size


def chunk_size(vocabulary: int) -> int:
    """Targets whose logits are alive at once: 1,024, fewer where that many would be over 64 MB in float32."""
    size = LARGEST_CHUNK
    while size > SMALLEST_CHUNK and 4 * size * vocabulary > CHUNK_BYTES:
        size //= 2
    return size


def epoch_order(
    lengths: np.ndarray, batch_size: int, seed: int, epoch: int, records: np.ndarray | None = None
) -> list[np.ndarray]:
    """Indices of each batch of one epoch: shuffled, sorted by length within pools, batches shuffled again.

    Every record comes as often as it stands in `records`, or once; the last batch may be smaller.
    """
    rng = np.random.default_rng((seed, epoch))
    order = rng.permutation(len(lengths) if records is None else records)
    batches = []
    for begin in range(0, len(order), batch_size * POOL):
        near = order[begin : begin + batch_size * POOL]
        near = near[np.argsort(lengths[near], kind="stable")]
        batches += [near[i : i + batch_size] for i in range(0, len(near), batch_size)]
    return [batches[i] for i in rng.permutation(len(batches))]


def training_batches(
    examples: list[Example],
    *,
    batch_size: int,
    seed: int,
    begin: int = 0,
    temperature: float = 1.0,
    prompt: PromptLoss = PromptLoss(),
    lay_out: Callable[[list[Example]], Batch] = make_batch,
) -> Iterator[Batch]:
    """Batches without end, epoch after epoch; `begin` skips as many, so that a resumed run goes on where it was.

    `temperature` over 1 lifts small languages (`language_quotas`); an epoch holds as many records as ever.
    """
    lengths = np.array([len(e.tokens) for e in examples])
    languages = [e.language for e in examples]
    per_epoch = -(-len(epoch_records(languages, temperature, seed, 0)) // batch_size)
    epoch, skip = divmod(begin, per_epoch)
    while True:
        records = epoch_records(languages, temperature, seed, epoch)
        for picked in epoch_order(lengths, batch_size, seed, epoch, records)[skip:]:
            yield lay_out([prompt.on(examples[i], (seed, epoch, int(i))) for i in picked])
        epoch, skip = epoch + 1, 0


def language_quotas(counts: dict[str, int], temperature: float, total: int = 0) -> dict[str, int]:
    """Of each language n^(1/T) / Σ n^(1/T) of a total, or of all records, by largest remainders, at least one."""
    total = total or sum(counts.values())
    names = sorted(counts)
    weights = np.array([counts[name] for name in names], dtype=np.float64) ** (1 / temperature)
    exact = total * weights / weights.sum()
    quotas = np.maximum(np.floor(exact).astype(int), 1)
    order = np.argsort(-(exact - np.floor(exact)), kind="stable")
    for index in order[: max(0, total - int(quotas.sum()))]:
        quotas[index] += 1
    return dict(zip(names, quotas.tolist(), strict=True))


def epoch_records(languages: Sequence[str], temperature: float, seed: int, epoch: int) -> np.ndarray:
    """Indices of one epoch's records: every record once at T = 1, else each language's quota of its own.

    A language's records are walked round in one shuffled order from epoch to epoch, so that each comes equally often.
    """
    if temperature == 1:
        return np.arange(len(languages))
    names = np.array(languages)
    members = {name: np.flatnonzero(names == name) for name in sorted(set(languages))}
    quotas = language_quotas({name: len(own) for name, own in members.items()}, temperature)
    picked = []
    for number, (name, own) in enumerate(members.items()):
        walk = np.random.default_rng((seed, number)).permutation(own)
        begin = epoch * quotas[name]
        picked.append(walk[np.arange(begin, begin + quotas[name]) % len(own)])
    return np.concatenate(picked)


def start_batches(examples: list[Example], *, count: int, batch_size: int, seed: int) -> list[list[Example]]:
    """`count` records drawn by the seed, in batches of like length, that a start from the gradient is taken from."""
    picked = np.random.default_rng(seed).permutation(len(examples))[:count]
    picked = sorted(picked, key=lambda i: len(examples[i].tokens))
    return [[examples[i] for i in picked[k : k + batch_size]] for k in range(0, len(picked), batch_size)]


def validation_batches(examples: list[Example], *, batch_size: int) -> Iterator[tuple[np.ndarray, Batch]]:
    """Every example once, shortest first: where they stand among the examples, and their batch."""
    order = np.argsort([len(example.tokens) for example in examples], kind="stable")
    for begin in range(0, len(order), batch_size):
        places = order[begin : begin + batch_size]
        yield places, make_batch([examples[i] for i in places])
