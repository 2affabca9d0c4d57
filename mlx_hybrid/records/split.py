"""Records to training, validation and test sets that share no group."""

import random
from collections import Counter
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

from mlx_hybrid.config import DataConfig
from mlx_hybrid.errors import DataError
from mlx_hybrid.records.record import Record


class Split(NamedTuple):
    """Records, or files of them, by their use."""

    train: Sequence[Any] = ()
    valid: Sequence[Any] = ()
    test: Sequence[Any] = ()

    def without(self, places: Collection[str]) -> "Split":
        """The split without the records that stand at some places."""
        return Split(*([record for record in part if record.where not in places] for part in self))


def split_records(
    records: list[Record], valid: list[Record], test: list[Record], config: DataConfig, seed: int
) -> Split:
    """Hold back whole groups for validation and test where no files were named for them: records that share a value
    under `data.group` (translations of a sentence, one premise), so that none has its twin in training."""
    sizes = Counter(group_of(record, config.group) for record in records)
    order = sorted(sizes)
    random.Random(seed).shuffle(order)
    held_valid = set() if valid else take(order, sizes, config.valid_share * len(records))
    held_test = set() if test else take(order, sizes, config.test_share * len(records))

    names = (set(order), held_valid, held_test)
    parts = [[record for record in records if group_of(record, config.group) in own] for own in names]
    if not parts[0]:
        all_held = f"all {len(records)} are held back; lower data.valid_share"
        raise DataError(f"No record is left to train on: {all_held}.")
    return Split(parts[0], valid or parts[1], test or parts[2])


def group_of(record: Record, key: str) -> str:
    """What is held back and resampled together: records of one value under `key`; one without a value is alone."""
    value = record.fields.get(key)
    return record.where if value is None else f"{key}={value}"


def group_key(records: Sequence[Record], key: str) -> str:
    """`data.group` where some record has a value under it, else `group`: benchmarks know no key of one's own."""
    return key if any(record.fields.get(key) is not None for record in records) else "group"


def take(order: list[str], sizes: dict[str, int], wanted: float) -> set[str]:
    """Remove groups from the end of `order` until they hold `wanted` records, leaving at least one."""
    taken, count = set(), 0
    while count < wanted and len(order) > 1:
        group = order.pop()
        taken.add(group)
        count += sizes[group]
    return taken
