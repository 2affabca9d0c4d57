"""Training records that hold an evaluation text: character 13-gram containment, which Jaccard misses in long ones."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from mlx_hybrid.governance.duplicates.minhash import gram_hashes, normalise
from mlx_hybrid.governance.rules import Decision
from mlx_hybrid.records.record import Record

NGRAM = 13
LEAST_CHARACTERS = 25  # below this an evaluation text must be the whole record
TEMPLATE_SHARE, TEMPLATE_COUNT = 0.1, 20  # grams in more evaluation texts than this are their template
FEW_SHARE, FEW_COUNT = 0.5, 3  # or, of few texts, in more than half; three may share a premise


class EvaluationIndex:
    """Which evaluation texts hold each 13-gram: `owners` (grams, texts), sparse; `sizes` are the grams of each text.

    containment = |grams(evaluation text) ∩ grams(record)| / |grams(evaluation text)|, on normalised text.
    """

    def __init__(self, records: Iterable[Record], threshold: float) -> None:
        self.threshold = threshold
        parts = [(text, record.where) for record in records for text in parts_of(record)]
        texts, self.names = [text for text, _ in parts], [name for _, name in parts]
        self.whole = dict(reversed(parts))
        grams, owners = long_grams(texts)
        self.grams, places, counts = np.unique(grams, return_inverse=True, return_counts=True)
        few = max(FEW_COUNT, FEW_SHARE * len(texts))
        kept = (counts <= max(min(TEMPLATE_COUNT, few), TEMPLATE_SHARE * len(texts)))[places]
        self.sizes = np.bincount(owners[kept], minlength=len(texts))
        self.owners = incidence(places[kept], owners[kept], (len(self.grams), len(texts)))

    def find(self, texts: Sequence[str]) -> list[Decision | None]:
        """For each text the evaluation text it holds, or None."""
        grams, rows = long_grams(plain := [normalise(text) for text in texts])
        places = np.searchsorted(self.grams, grams)
        known = np.searchsorted(self.grams, grams, "right") > places
        shared = (incidence(rows[known], places[known], (len(texts), len(self.grams))) @ self.owners).tocoo()
        shares = shared.data / self.sizes[shared.col]
        best: dict[int, tuple[float, str]] = {}
        for i in np.lexsort((shared.col, -shares)).tolist():
            best.setdefault(int(shared.row[i]), (float(shares[i]), self.names[shared.col[i]]))
        best |= {row: (1.0, self.whole[text]) for row, text in enumerate(plain) if text in self.whole}
        found: list[Decision | None] = [None] * len(texts)
        for row, (share, name) in best.items():
            if share >= self.threshold:
                found[row] = Decision("overlap", "eval_leak", f"holds {share:.2f} of {name}", name)
        return found


def incidence(rows: np.ndarray, columns: np.ndarray, shape: tuple[int, int]) -> Any:
    """A sparse matrix with a one at each (row, column)."""
    from scipy.sparse import csr_array

    return csr_array((np.ones(len(rows), np.int32), (rows, columns)), shape)


def parts_of(record: Record) -> list[str]:
    """What of an evaluation record must not be trained on: its question and its answer, each on its own."""
    parts = [normalise(part) for part in (record.prompt(), record.completion())]
    long = [part for part in parts if len(part) >= LEAST_CHARACTERS]
    return long or [normalise(record.content())]


def long_grams(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """The distinct 13-grams of each text as (hash, row) pairs; texts under 25 characters give none."""
    grams, starts = gram_hashes(texts, NGRAM)
    owners = np.repeat(np.arange(len(texts), dtype=np.uint64), np.diff(starts))
    # Asked for counts, `np.unique` sorts, which takes a twentieth of the time of the hashing that it does otherwise.
    keys, _ = np.unique((owners << np.uint64(32)) | grams, return_counts=True)
    rows = (keys >> np.uint64(32)).astype(np.int64)
    long = np.array([len(text) >= LEAST_CHARACTERS for text in texts], bool)[rows]
    return keys.astype(np.uint32)[long], rows[long]
