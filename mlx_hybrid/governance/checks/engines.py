"""Language identification engines: texts in, a probability (texts, `codes`) for each ISO 639-3 code out.

`py3langid` is embedded: naive Bayes over byte n-grams found by an automaton (Lui and Baldwin 2012). `fasttext` reads
any fastText model, by path, preset or Hub id.
"""

import unicodedata
from collections.abc import Sequence
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from mlx_hybrid.errors import ConfigError
from mlx_hybrid.records.languages import SCRIPTS, SEEN_AS, parse_language

MAX_LETTERS = 400  # engines are at their ceiling well before this (docs/governance.md)
SECOND_SCRIPTS = {("srp", "Latn"), ("uzn", "Cyrl"), ("crh", "Cyrl")}
"""Beside the usual script of each language, those that py3langid was trained on, by the weights of its n-grams."""


class Py3langid:
    """The model of `py3langid`, its automaton walked for a whole batch at once, one byte position a step.

    That is several times faster than its own loop and gives the same scores (tests/governance/test_language.py).
    """

    def __init__(self) -> None:
        from py3langid.langid import LanguageIdentifier

        model = LanguageIdentifier.from_model_file("data/model.npz.xz", norm_probs=True)
        self.moves = np.frombuffer(model.tk_nextmove, np.dtype(model.tk_nextmove.typecode))
        self.rows = np.frombuffer(model.tk_row, np.dtype(model.tk_row.typecode)).astype(np.int64) << 8
        self.output = np.asarray(model.tk_output, np.int32)
        self.weights, self.prior = model.nb_ptc.astype(np.float32), model.nb_pc
        labels = ["zxx" if label == "zxx" else parse_language(label).code for label in model.nb_classes]
        self.codes = list(dict.fromkeys(labels))
        self.columns = [self.codes.index(label) for label in labels]
        self.reference = model

    def knows(self, code: str, script: str) -> bool:
        """Whether the engine was trained on this language in this script."""
        usual = SCRIPTS.get(code, ["Zyyy"])[0]
        own = script in SEEN_AS.get(usual, [usual]) or (code, script) in SECOND_SCRIPTS
        return own and code in self.codes

    def predict(self, texts: Sequence[str]) -> np.ndarray:
        from scipy.sparse import coo_array

        clean = [unicodedata.normalize("NFC", text[:MAX_LETTERS]) for text in texts]
        encoded = [text.encode("utf-8", "replace") for text in clean]
        lengths = np.array([len(item) for item in encoded], np.int64)
        owners, features = self.walk(encoded, lengths)
        ones = np.ones(len(owners), np.float32)
        counts = coo_array((ones, (owners, features)), (len(texts), len(self.weights))).tocsr()
        known = np.diff(counts.indptr) > 0
        scores = counts.log1p() @ self.weights
        scores[known] += self.prior
        scores /= np.sqrt(np.maximum(lengths, 1))[:, None]
        scores = np.exp(scores - scores.max(axis=1, keepdims=True))
        scores /= scores.sum(axis=1, keepdims=True)
        merged = np.zeros((len(texts), len(self.codes)), np.float32)
        for column, target in enumerate(self.columns):
            merged[:, target] += scores[:, column]
        merged[lengths == 0] = 0
        return merged

    def walk(self, encoded: list[bytes], lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The features that the automaton meets, as (text, feature) pairs."""
        order = np.argsort(-lengths, kind="stable")
        padded = np.zeros((int(lengths.max(initial=0)), len(encoded)), np.uint8)
        for column, text in enumerate(order):
            padded[: lengths[text], column] = np.frombuffer(encoded[text], np.uint8)
        alive = np.searchsorted(-lengths[order], -np.arange(len(padded)), side="left")
        state = np.zeros(len(encoded), np.int64)
        owners, features = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
        for position, count in enumerate(alive):
            state = self.moves[self.rows[state[:count]] + padded[position, :count]].astype(np.int64)
            feature = self.output[state]
            hit = np.flatnonzero(feature >= 0)
            owners.append(order[hit])
            features.append(feature[hit])
        return np.concatenate(owners), np.concatenate(features)

    def describe(self) -> dict[str, Any]:
        return {"engine": "py3langid", "version": version("py3langid"), "licence": "BSD-3-Clause"}


@lru_cache(2)
def load_engine(name: str = "py3langid") -> Any:
    """`py3langid`, `fasttext:PATH`, `fasttext:PRESET` or `fasttext:OWNER/REPO[/FILE]`.

    Raises ConfigError for a name that is none of these, and for a model that cannot be found or read.
    """
    from mlx_hybrid.governance.checks.fasttext import FastText, fetch_model

    kind, _, model = name.partition(":")
    if name == "py3langid":
        return Py3langid()
    if kind != "fasttext" or not model:
        raise ConfigError(
            f'engine "{name}": write py3langid, or fasttext:MODEL with a path, a preset or a Hub id.'
        )
    if Path(model).is_file():
        return FastText(Path(model), {"licence": "not stated"})
    return FastText(*fetch_model(model))
