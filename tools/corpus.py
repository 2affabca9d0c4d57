"""Where the text for the bundled base comes from, and how much of each language is drawn.

Only `text/`, TICO-19 and NTREX lines 1–500 are read: the rest of NTREX is kept for the study, and XNLI, FLORES
and SIB-200 never enter the base.
"""

import lzma
import os
from collections.abc import Iterator
from pathlib import Path

LANGUAGES = [
    "en", "es", "fr", "de", "ru", "ar", "hi", "zh", "sw", "tr", "vi", "th", "bg", "el", "ur", "id", "yo", "ha", "am",
]  # fmt: skip
LOW_RESOURCE = ("yo", "ha", "am")
"""Kept nearly unseen: the study adapts to them, so no parallel text of theirs is used."""

FLORES_CODE = {
    "en": "eng_Latn", "es": "spa_Latn", "fr": "fra_Latn", "de": "deu_Latn", "ru": "rus_Cyrl",
    "ar": "arb_Arab", "hi": "hin_Deva", "zh": "zho_Hans", "sw": "swh_Latn", "tr": "tur_Latn",
    "vi": "vie_Latn", "th": "tha_Thai", "bg": "bul_Cyrl", "el": "ell_Grek", "ur": "urd_Arab",
    "id": "ind_Latn", "yo": "yor_Latn", "ha": "hau_Latn", "am": "amh_Ethi",
}  # fmt: skip

NTREX_LINES = 500


def data_root() -> Path:
    """The folder of development data: `MLX_HYBRID_DATA`, else `../shared/data` beside the project."""
    default = Path(__file__).resolve().parents[2] / "shared" / "data"
    root = Path(os.environ.get("MLX_HYBRID_DATA", default))
    if not (root / "text").is_dir():
        raise SystemExit(
            f"No development data at {root}: set MLX_HYBRID_DATA to the folder that holds text/."
        )
    return root


def text_lines(root: Path, language: str) -> list[str]:
    """Monolingual lines of one language, in the order of the source."""
    with lzma.open(root / "text" / f"{language}.txt.xz", "rt", encoding="utf-8") as file:
        return [line.rstrip("\n") for line in file]


def parallel_pairs(root: Path) -> Iterator[tuple[str, str, str]]:
    """(language, English, translation) from TICO-19 and NTREX lines 1–500."""
    for path in sorted((root / "tico19").glob("en-*.tsv.xz")):
        language = path.name.removeprefix("en-").removesuffix(".tsv.xz")
        with lzma.open(path, "rt", encoding="utf-8") as file:
            for line in file:
                source, _, target = line.rstrip("\n").partition("\t")
                if source and target:
                    yield language, source, target
    english = ntrex_lines(root, "en")
    for language in LANGUAGES:
        if language != "en" and language not in LOW_RESOURCE:
            for source, target in zip(english, ntrex_lines(root, language), strict=True):
                yield language, source, target


def ntrex_lines(root: Path, language: str) -> list[str]:
    path = root / "ntrex128" / f"{FLORES_CODE[language]}.txt"
    return path.read_text(encoding="utf-8").splitlines()[:NTREX_LINES]


def flores_lines(root: Path, language: str) -> list[str]:
    """FLORES dev, for measuring only."""
    path = root / "flores200" / "dev" / f"{FLORES_CODE[language]}.txt"
    return path.read_text(encoding="utf-8").splitlines()


def temperature_shares(sizes: dict[str, float], alpha: float) -> dict[str, float]:
    """p_i ∝ n_i^α: α = 1 draws in proportion to size, α = 0 equally."""
    weights = {name: size**alpha for name, size in sizes.items()}
    total = sum(weights.values())
    return {name: weight / total for name, weight in weights.items()}
