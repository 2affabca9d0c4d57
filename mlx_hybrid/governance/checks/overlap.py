"""Training records that hold an evaluation text: character 13-gram containment, which Jaccard in long records misses.

containment = |grams(evaluation text) ∩ grams(record)| / |grams(evaluation text)|, on normalised text.
"""

from collections.abc import Iterable, Sequence

import numpy as np

from mlx_hybrid.governance.duplicates.minhash import gram_hashes, normalise
from mlx_hybrid.governance.stages import Decision
from mlx_hybrid.records.record import Record

NGRAM = 13
LEAST_CHARACTERS = 25  # below this an evaluation text must be the whole record
TEMPLATE_SHARE, TEMPLATE_COUNT = 0.1, 20  # grams in more evaluation texts than this are their template
FEW_SHARE, FEW_COUNT = 0.5, 3  # or, of few texts, in more than half; three may share a premise


class EvaluationIndex:
    """The 13-grams of evaluation texts, and which texts each belongs to."""

    def __init__(self, records: Iterable[Record], threshold: float) -> None:
        self.threshold = threshold
        self.names: list[str] = []
        self.whole: dict[str, int] = {}
        texts: list[str] = []
        for record in records:
            for text in parts_of(record):
                self.whole.setdefault(text, len(texts))
                texts.append(text)
                self.names.append(record.where)
        grams, owners = distinct_grams(texts)
        order = np.lexsort((owners, grams))
        grams, owners = grams[order], owners[order]
        self.grams, counts = np.unique(grams, return_counts=True)
        few = max(FEW_COUNT, FEW_SHARE * len(texts))
        common = counts > max(min(TEMPLATE_COUNT, few), TEMPLATE_SHARE * len(texts))
        keep = np.repeat(~common, counts)
        self.grams, self.counts = self.grams[~common], counts[~common]
        self.owners = owners[keep]
        self.first = np.concatenate([[0], np.cumsum(self.counts)[:-1]]).astype(np.int64)
        self.sizes = np.bincount(self.owners, minlength=len(texts)) if len(texts) else np.zeros(0, np.int64)

    def find(self, texts: Sequence[str]) -> list[Decision | None]:
        """For each text the evaluation text it holds, or None."""
        if not texts or not self.names:
            return [None] * len(texts)
        plain = [normalise(text) for text in texts]
        grams, holders = distinct_grams(plain)
        places = np.minimum(np.searchsorted(self.grams, grams), max(len(self.grams) - 1, 0))
        hits = np.flatnonzero(self.grams[places] == grams) if len(self.grams) else np.zeros(0, np.int64)
        best = self.best(holders[hits], places[hits])
        return [self.decide(text, *best.get(row, (0, 0.0))) for row, text in enumerate(plain)]

    def best(self, holders: np.ndarray, places: np.ndarray) -> dict[int, tuple[int, float]]:
        """For each row with a hit, the evaluation text it holds most of, and how much."""
        counts = self.counts[places]
        offsets = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        owners = self.owners[np.repeat(self.first[places], counts) + offsets]
        pairs, shared = np.unique(np.repeat(holders, counts) * len(self.names) + owners, return_counts=True)
        held, owner = np.divmod(pairs, len(self.names))
        shares = shared / self.sizes[owner]
        order = np.lexsort((owner, -shares, held))
        first = np.unique(held[order], return_index=True)[1]
        return {int(held[i]): (int(owner[i]), float(shares[i])) for i in order[first]}

    def decide(self, text: str, owner: int, share: float) -> Decision | None:
        if text in self.whole:
            owner, share = self.whole[text], 1.0
        if share < self.threshold:
            return None
        name = self.names[owner]
        return Decision("overlap", "eval_leak", f"holds {share:.2f} of {name}", name)


def parts_of(record: Record) -> list[str]:
    """What of an evaluation record must not be trained on: its question and its answer, each on its own."""
    parts = [normalise(part) for part in (record.prompt(), record.completion())]
    long = [part for part in parts if len(part) >= LEAST_CHARACTERS]
    return long or [normalise(record.content())]


def distinct_grams(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """The distinct 13-grams of each text as (hash, row) pairs; texts under 25 characters give none."""
    rows = [i for i, text in enumerate(texts) if len(text) >= LEAST_CHARACTERS]
    if not rows:
        return np.zeros(0, np.uint32), np.zeros(0, np.int64)
    grams, starts = gram_hashes([texts[i] for i in rows], NGRAM)
    owners = np.repeat(np.array(rows, np.int64), np.diff(starts))
    keys = np.unique((owners.astype(np.uint64) << np.uint64(32)) | grams)
    return (keys & np.uint64(0xFFFFFFFF)).astype(np.uint32), (keys >> np.uint64(32)).astype(np.int64)
