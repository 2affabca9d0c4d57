"""Texts that a language model finds unlikely, within their own language: told, never rejected.

The model comes from outside as a function from texts to bits per byte, so that nothing here imports one.
"""

from collections.abc import Callable, Sequence

import numpy as np

from mlx_hybrid.governance.checks.language import Finding
from mlx_hybrid.governance.ledger import Ledger

FAR = 3.5
LEAST_RECORDS = 30
BLOCK = 256


def flag_unlikely(
    ledger: Ledger,
    scorer: Callable[[Sequence[str]], Sequence[float]],
    texts: Callable[[Sequence[int]], Sequence[str]],
) -> dict[int, float]:
    """Bits per byte of each kept record; flags those beyond a robust z of 3.5 within their language.

    z = 0.6745 (x − median) / MAD. Tokenizers favour some languages, so that bits are never compared across them.
    """
    scores: dict[int, float] = {}
    for rows in ledger.by_language().values():
        for start in range(0, len(rows), BLOCK):
            block = rows[start : start + BLOCK]
            scores.update(zip(block, (float(score) for score in scorer(texts(block)))))
        values = np.array([scores[row] for row in rows])
        middle = float(np.median(values))
        spread = float(np.median(np.abs(values - middle))) or 1.0
        if len(rows) < LEAST_RECORDS:
            continue
        for row, value in zip(rows, values):
            z = 0.6745 * (value - middle) / spread
            if z > FAR:
                ledger.flag(
                    row, Finding("unlikely", f"{value:.2f} bits a byte, usual {middle:.2f}, z {z:.1f}")
                )
    return scores
