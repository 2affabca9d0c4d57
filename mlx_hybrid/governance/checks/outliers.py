"""Text unlike the rest of its language, by character 4-grams learnt from the records themselves.

score = mean over a text's 4-grams of −log₂((count without this text + α) / (total + α·V)), leave-one-out; robust z
within the language. Catches shuffled letters and random words, which no rule on one text sees.
"""

from collections.abc import Sequence

import numpy as np

from mlx_hybrid.governance.checks.language import Finding
from mlx_hybrid.governance.duplicates.minhash import gram_hashes

NGRAM = 4
LEAST_RECORDS = 200
FAR = 3.5
ALPHA = 0.1
SLOTS = 1 << 22
MAX_CHARACTERS = 400
BLOCK = 4096


def outlier_scores(texts: Sequence[str]) -> np.ndarray:
    """Robust z of each normalised text among `texts`; positive is unlike the others. Two passes, linear."""
    counts = np.zeros(SLOTS, np.float64)
    for start in range(0, len(texts), BLOCK):
        grams, _ = slots(texts[start : start + BLOCK])
        counts += np.bincount(grams, minlength=SLOTS)
    total, kinds = counts.sum(), int((counts > 0).sum())
    scores = np.zeros(len(texts))
    for start in range(0, len(texts), BLOCK):
        grams, starts = slots(texts[start : start + BLOCK])
        rows = np.repeat(np.arange(len(starts) - 1), np.diff(starts))
        key = rows * SLOTS + grams
        _, inverse, own = np.unique(key, return_inverse=True, return_counts=True)
        others = counts[grams] - own[inverse]
        cost = -np.log2((others + ALPHA) / (total + ALPHA * kinds))
        scores[start : start + BLOCK] = np.add.reduceat(cost, starts[:-1]) / np.diff(starts)
    middle = np.median(scores)
    spread = np.median(np.abs(scores - middle)) or 1.0
    return 0.6745 * (scores - middle) / spread


def slots(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    hashes, starts = gram_hashes([f" {text[:MAX_CHARACTERS]} " for text in texts], NGRAM)
    return (hashes >> np.uint32(10)).astype(np.int64), starts


def check_outliers(texts: Sequence[str]) -> list[Finding | None]:
    """A finding for each text beyond 3.5; none at all among fewer than 200 texts, which do not make a model."""
    if len(texts) < LEAST_RECORDS:
        return [None] * len(texts)
    return [Finding("gibberish", f"z {z:.1f}") if z > FAR else None for z in outlier_scores(texts)]
