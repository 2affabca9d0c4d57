"""Where the text for the bundled base comes from, and how much of each language is drawn.

Only `text/`, TICO-19 and NTREX lines 1–500 are read: the rest of NTREX is kept for the study, and XNLI, FLORES
and SIB-200 never enter the base.
"""

import lzma
import os
import re
import unicodedata
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
PIECE_BYTES = 300  # about 80 tokens: a window of 128 holds a whole piece and begins the next
GREEK_VOWELS = re.compile(r"[αεηιουωΑΕΗΙΟΥΩ\u0300-\u036f]+")
SENTENCE_END = re.compile(r"(?<=[.!?…।؟۔])\s+|(?<=[。！？])")


def data_root() -> Path:
    """The folder of development data: `MLX_HYBRID_DATA`, else `../shared/data` beside the project."""
    default = Path(__file__).resolve().parents[3] / "shared" / "data"
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


def training_lines(root: Path, language: str) -> list[str]:
    """The lines as the base reads them: long ones cut into pieces, Greek in today's spelling."""
    lines = text_lines(root, language)
    if language == "el":
        lines = [monotonic(line) for line in lines]
    return [piece for line in lines for piece in pieces(line)]


def monotonic(text: str) -> str:
    """Greek of before 1982 in today's spelling: one accent, none on one syllable, no breathings, no iota below."""
    marks = {0x300: 0x301, 0x342: 0x301, 0x313: None, 0x314: None, 0x345: None}
    plain = unicodedata.normalize("NFD", text).translate(marks)
    word = lambda m: m[0] if len(GREEK_VOWELS.findall(m[0])) > 1 else m[0].replace("\u0301", "")  # noqa: E731
    return unicodedata.normalize("NFC", re.sub(r"[\w\u0300-\u036f]+", word, plain))


def pieces(line: str, limit: int = PIECE_BYTES) -> list[str]:
    """A long line cut at the ends of sentences, a long sentence at spaces, into pieces of about `limit` bytes.

    A window begins at the start of a line, so what stands further in than a window's length would never be read.
    """
    if len(line.encode()) <= limit:
        return [line]
    sentences = [part for part in SENTENCE_END.split(line) if part]
    parts = [word for s in sentences for word in (s.split(" ") if len(s.encode()) > 2 * limit else [s])]
    result = [parts[0]]
    for part in parts[1:]:
        joined = result[-1] + ("" if result[-1][-1:] in "。！？" else " ") + part
        if len(joined.encode()) <= limit:
            result[-1] = joined
        else:
            result.append(part)
    return result


def parallel_pairs(root: Path, news_copies: int = 1) -> Iterator[tuple[str, str, str]]:
    """(language, English, translation) from TICO-19, and from NTREX lines 1–500 as many times as asked."""
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
                yield from [(language, source, target)] * news_copies


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
