"""What rules of quality ask of texts, counted for many at once: shares, runs, words and n-grams."""

import numpy as np

from mlx_hybrid.governance.checks import characters
from mlx_hybrid.governance.checks.characters import Batch

LEAST_VISIBLE = 16  # shares of fewer characters say nothing: “Oh, no.”
GRAM = 10
ODD = np.random.default_rng(10).integers(0, 1 << 31, GRAM, np.uint32) | np.uint32(1)
RULERS = list(map(ord, " \t\n\r-=_*#~.·•─━═│+|…"))  # what lines and tables are drawn with
PICTURES = 0x1F000  # the first of the emoji


def measure(batch: Batch) -> list[list]:
    """Of all texts the number of letters; letters and symbols as shares of what is neither space nor picture, a
    character that is drawn out counting once and a Han letter three times; the longest run, and its share."""
    starts = np.ones(len(batch.points), bool)
    starts[1:] = (batch.points[1:] != batch.points[:-1]) | (batch.owners[1:] != batch.owners[:-1])
    places = np.flatnonzero(starts)
    owners, points, kinds = batch.owners[places], batch.points[places], batch.classes[places]
    runs = np.diff(np.append(places, len(batch.points)))
    longest = np.minimum(batch.lengths, 1)
    long = np.flatnonzero(runs > 1)
    long = long[~np.isin(points[long], RULERS) & (kinds[long] != characters.DIGIT)]
    np.maximum.at(longest, owners[long], runs[long])
    pictures = (points >= PICTURES) | ((points >= 0x2600) & (points < 0x27C0))
    kinds = np.where(pictures, characters.SPACE, kinds)
    once = np.bincount(owners * 8 + kinds, minlength=len(batch.texts) * 8).reshape(-1, 8).T.astype(np.float64)
    whole, extra = batch.count(batch.classes, 8).T, 2.0 * batch.script_counts[:, characters.HAN]
    visible = np.maximum(once.sum(0) - once[characters.SPACE] + extra, 1)
    letters = once[characters.LETTER] + once[characters.MARK] + extra
    symbols = once[characters.PUNCTUATION] + once[characters.SYMBOL]
    told = batch.lengths - whole[characters.SPACE] + extra >= LEAST_VISIBLE
    shares = np.where(told, letters / visible, 1), np.where(told, symbols / visible, 0)
    count, share = whole[characters.LETTER] + whole[characters.MARK], longest / np.maximum(batch.lengths, 1)
    return [values.tolist() for values in (count, *shares, longest, share)]


def measure_words(batch: Batch) -> list[list]:
    """Of each text how long its longest word is, and how many have one character and its marks."""
    space, places = batch.classes == characters.SPACE, np.arange(len(batch.points))
    last = np.append(space[1:] | (batch.owners[1:] != batch.owners[:-1]), True)
    ends = np.flatnonzero(~space & last[: len(space)])
    before = np.maximum.accumulate(np.where(space, places, batch.starts[batch.owners] - 1))[ends]
    unmarked = np.append(0, np.cumsum(batch.classes != characters.MARK))
    single = unmarked[ends + 1] - unmarked[before + 1] == 1
    longest, owners = np.zeros(len(batch.texts), np.int64), batch.owners[ends]
    np.maximum.at(longest, owners, ends - before)
    return [longest.tolist(), np.bincount(owners[single], minlength=len(longest)).tolist()]


def measure_freshness(batch: Batch) -> list[float]:
    """The share of each text's 10-grams that are distinct, at least: two may fall on one place, of four for each; 0 of
    a text without any."""
    total = max(len(batch.points) - GRAM + 1, 0)
    hashes = sum(batch.points[place : place + total] * factor for place, factor in enumerate(ODD))
    counts = np.maximum(batch.lengths - GRAM + 1, 0)
    inside = batch.owners[:total] == batch.owners[GRAM - 1 :]
    owners, room = batch.owners[:total][inside], 4 * counts
    firsts = np.cumsum(room) - room
    places = (hashes[inside].astype(np.uint64) * room[owners].astype(np.uint64)) >> np.uint64(32)
    met = np.zeros(int(room.sum()), bool)
    met[firsts[owners] + places.astype(np.int64)] = True
    upto = np.append(0, np.cumsum(met))
    return ((upto[firsts + room] - upto[firsts]) / np.maximum(counts, 1)).tolist()
