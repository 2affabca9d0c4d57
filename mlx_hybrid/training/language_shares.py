"""Which records an epoch holds when small languages are lifted."""

from collections.abc import Sequence

import numpy as np


def language_quotas(counts: dict[str, int], temperature: float) -> dict[str, int]:
    """Records of each language in one epoch: n^(1/T) / Σ n^(1/T) of the total, which stays what it is.

    Rounded by largest remainders, at least one each where there is room for it.
    """
    total = sum(counts.values())
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

    A language's records are walked round in one shuffled order from epoch to epoch, so that in the long run each of
    them comes equally often. A function of seed and epoch alone.
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
