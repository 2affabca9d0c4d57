"""Batches of similar length, few shapes, and an order that a seed and a step fix."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from mlx_hybrid.records.examples import Example

POOL = 64  # batches' worth of shuffled records sorted by length together: little padding, and a random order
LARGEST_CHUNK, SMALLEST_CHUNK = 1024, 64
CHUNK_BYTES = 1 << 26
HELD_RECORDS = 4  # one of so many, where prompts are held to the base
MOST_TARGETS = 64  # that one token of a prompt counts for
FEWEST_PLACES = 128  # of held targets, in compiled steps: fewer shapes


@dataclass(frozen=True)
class Batch:
    """Token ids (n, t), padded on the right, and where the trained targets stand.

    `positions` (p,) index the flattened (n·t) hidden states that predict `targets` (p,); `weights` (p,) is below 0 for
    a prompt's target, which come first, 1 for an answer's, and 0 for padding. `owners` says which example each real
    target belongs to; `where` is the examples'. `held` (m,) are the rows with a prompt's targets, and `places` (h,)
    where those stand in the flattened (m·t) states of these rows. Of several machines (distributed.py), `part` holds
    this one's records.
    """

    tokens: np.ndarray
    positions: np.ndarray
    targets: np.ndarray
    weights: np.ndarray
    where: tuple[str, ...]
    owners: np.ndarray
    held: np.ndarray
    places: np.ndarray
    part: "Batch | None" = None

    @property
    def answers(self) -> int:
        """Targets that are an answer's."""
        return int(np.sum(self.weights == 1))


LayOut = Callable[[list[Example]], Batch]


def length_bucket(length: int) -> int:
    """The next of 16, 24, …, 128, 144, …, 256, 288, …: eight shapes an octave, an eighth of it padding at most."""
    step = max(8, 1 << (length.bit_length() - 4)) if length > 16 else 16
    return max(1, -(-length // step)) * step


def target_bucket(count: int) -> int:
    """Room for `count` targets: the next of 16, 32, 48, 64, 96, 128, 192, 256, 384, …"""
    step = 1 << max(4, (count - 1).bit_length() - 2)
    return max(1, -(-count // step)) * step


def round_up(count: int) -> int:
    """The next power of two."""
    return 1 << (count - 1).bit_length()


def chunk_size(vocabulary: int) -> int:
    """Targets whose logits are alive at once: 1,024, fewer where that many would be over 64 MB in float32."""
    fitting = 1 << (CHUNK_BYTES // (4 * vocabulary)).bit_length() - 1
    return min(LARGEST_CHUNK, max(SMALLEST_CHUNK, fitting))


def make_batch(examples: list[Example], *, exact: bool = False) -> Batch:
    """Right-padded tokens of some examples, as wide as the bucket of the longest; a pad is never a target. An `exact`
    one is no wider than the longest: for steps that are not compiled, where a new shape costs nothing."""
    longest = max(len(e.tokens) for e in examples) - 1
    length = longest if exact else length_bucket(longest)
    tokens = np.zeros((len(examples), length + 1), np.int32)
    weights = np.zeros(tokens.shape, np.float32)
    for row, example in enumerate(examples):
        tokens[row, : len(example.tokens)] = example.tokens
        weights[row, : len(example.tokens)] = example.weights or example.trained
    weights = weights[:, 1:].ravel()
    (positions,) = weights.nonzero()
    positions = positions[np.argsort(weights[positions] > 0, kind="stable")]
    rows, columns = np.divmod(positions.astype(np.int32), length)
    count = int((weights < 0).sum())
    held, places = np.unique(rows[:count], return_inverse=True)
    places = places.astype(np.int32) * length + columns[:count]
    room = target_bucket(len(positions))
    if count:
        more = target_bucket(count) if exact else min(room, max(FEWEST_PLACES, round_up(count)))
        places = np.pad(places, (0, more - count))
        held = np.pad(held, (0, 0 if exact else round_up(len(held)) - len(held)), mode="edge")
    found = positions.astype(np.int32), tokens[:, 1:].ravel()[positions], weights[positions]
    spare = (0, room - len(positions))
    where = tuple(e.where for e in examples)
    return Batch(tokens[:, :-1].copy(), *(np.pad(part, spare) for part in found), where, rows, held, places)


class Hold(NamedTuple):
    """What prompts count together beside the answers of a batch, on what share of their tokens at least, and whether
    they are held to the base (loss.py) or by their own loss."""

    weight: float = 0.0
    share: float = 0.0
    to_base: bool = False


NONE_HELD = Hold()


def weigh_prompts(examples: list[Example], hold: Hold, draw: tuple[int, ...]) -> list[Example]:
    """A batch's examples with weights, below zero, on random tokens that are no target, alike and in sum `hold.weight`
    times the number of targets of the records that have such tokens. They are a share of all, or as many as there are
    targets. As the base reads what is held to it, that is all in a quarter of the records. Where these are few beside
    long answers, none counts for more than `MOST_TARGETS`."""
    rng, spare = np.random.default_rng(draw), {n: ~np.array(e.trained) for n, e in enumerate(examples)}
    able = [n for n, own in spare.items() if own[1:].any() and hold.weight]
    rows = rng.permutation(able)[: -(-len(able) // HELD_RECORDS) if hold.to_base else None]
    targets = sum(examples[n].trained_count for n in able)
    room = sum(int(spare[n][1:].sum()) for n in rows)
    part = max(hold.share * len(able) / max(1, len(rows)), targets / max(1, room))
    picked = {n: spare[n] & (rng.random(len(spare[n])) < part) for n in rows}
    total = sum(int(own[1:].sum()) for own in picked.values())
    if not total:
        return examples
    weight = hold.weight * min(targets / total, MOST_TARGETS)
    weighed = {row: np.where(own, -weight, examples[row].trained).tolist() for row, own in picked.items()}
    return [
        replace(e, weights=tuple(weighed[row])) if row in weighed else e for row, e in enumerate(examples)
    ]


def epoch_order(
    lengths: np.ndarray, batch_size: int, seed: int, epoch: int, records: np.ndarray | None = None
) -> list[np.ndarray]:
    """Indices of each batch of one epoch: shuffled, sorted by length within pools, batches shuffled again. Every record
    comes as often as it stands in `records`, or once; the last batch may be smaller."""
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
    hold: Hold = NONE_HELD,
    lay_out: LayOut = make_batch,
) -> Iterator[Batch]:
    """Batches without end, epoch after epoch; `begin` skips as many, so that a resumed run goes on where it was.
    `temperature` over 1 lifts small languages (`language_quotas`); an epoch holds as many records as ever."""
    lengths = np.array([len(e.tokens) for e in examples])
    languages = [e.language for e in examples]
    per_epoch = -(-len(epoch_records(languages, temperature, seed, 0)) // batch_size)
    epoch, skip = divmod(begin, per_epoch)
    while True:
        records = epoch_records(languages, temperature, seed, epoch)
        for picked in epoch_order(lengths, batch_size, seed, epoch, records)[skip:]:
            yield lay_out(weigh_prompts([examples[i] for i in picked], hold, (seed, epoch, int(picked[0]))))
        epoch, skip = epoch + 1, 0


def language_quotas(counts: dict[str, int], temperature: float, total: int = 0) -> dict[str, int]:
    """Of each language n^(1/T) / Σ n^(1/T) of a total, or of all records, by largest remainders, at least one."""
    total = total or sum(counts.values())
    names = sorted(counts)
    weights = np.array([counts[name] for name in names], dtype=np.float64) ** (1 / temperature)
    exact = total * weights / weights.sum()
    quotas = np.maximum(np.floor(exact).astype(int), 1)
    order = np.argsort(-(exact - np.floor(exact)), kind="stable")
    quotas[order[: max(0, total - int(quotas.sum()))]] += 1
    return dict(zip(names, quotas.tolist(), strict=True))


def epoch_records(languages: Sequence[str], temperature: float, seed: int, epoch: int) -> np.ndarray:
    """Indices of one epoch's records: every record once at T = 1, else each language's quota of its own. A language's
    records are walked round in one shuffled order from epoch to epoch, so that each comes equally often."""
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


def validation_batches(examples: list[Example], *, batch_size: int) -> Iterator[tuple[np.ndarray, Batch]]:
    """Every example once, shortest first: where they stand among the examples, and their batch."""
    order = np.argsort([len(example.tokens) for example in examples], kind="stable")
    for begin in range(0, len(order), batch_size):
        places = order[begin : begin + batch_size]
        yield places, make_batch([examples[i] for i in places])
