"""Choose the text that is most like a reference: cross-entropy difference (Moore and Lewis, ACL 2010) of unigrams."""

import numpy as np

WINDOW = 128
PRIOR = 5000  # tokens of the whole text that the reference's counts are mixed with


def likeness(
    tokens: np.ndarray, starts: np.ndarray, reference: np.ndarray, vocabulary: int, ignore: int
) -> np.ndarray:
    """Mean of log p_reference(t) − log p_text(t) over the tokens after each start; the token `ignore` counts 0."""
    text = np.bincount(tokens, minlength=vocabulary) + 0.1
    text /= text.sum()
    mixed = (np.bincount(reference, minlength=vocabulary) + PRIOR * text) / (len(reference) + PRIOR)
    gain = np.log(mixed / text)
    gain[ignore] = 0
    total = np.concatenate([[0], np.cumsum(gain[tokens])])
    ends = np.minimum(starts + WINDOW, len(tokens))
    return (total[ends] - total[starts]) / (ends - starts)


def most_alike(scores: np.ndarray, lengths: np.ndarray, share: float) -> np.ndarray:
    """Indices, ascending, of the lines of highest score that hold `share` of the tokens."""
    order = np.argsort(-scores, kind="stable")
    return np.sort(order[np.cumsum(lengths[order]) <= share * lengths.sum()])
