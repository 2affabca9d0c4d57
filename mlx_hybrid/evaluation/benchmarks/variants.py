"""The same text as another keyboard, habit or file would have spelt it: meaning stays, spelling moves.

Each variant belongs to a script or a language. `tatweel` and `keyboard` draw their places from a seed and the text
itself, so that an example has one variant whatever stands around it. Two real variants are sets of their own:
traditional Chinese and romanised Arabic (REAL_VARIANTS).
"""

import re
import unicodedata
from collections.abc import Callable, Collection
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np

from mlx_hybrid.errors import ConfigError, nearest

REAL_VARIANTS = {"zho_Hans": {"traditional": "zho_Hant"}, "arb_Arab": {"romanised": "arb_Latn"}}

CASED = "Latn Cyrl Grek"
NUKTA = "\u093c"
TATWEEL = "\u0640"
TONOS = "\u0301"
TURKIC = "tur azj"
ARABIC = "arb ary arz"
SINGLE = dict(zip("đĐłŁøØħĦɓƁɗƊƙƘƴƳ", "dDlLoOhHbBdDkKyY", strict=True))
UMLAUTS = {"ä": "ae", "ö": "oe", "ü": "ue", "Ä": "Ae", "Ö": "Oe", "Ü": "Ue", "ß": "ss"}
ALEF = dict.fromkeys("أإآٱ", "ا")
HARAKAT = dict.fromkeys(map(chr, [*range(0x064B, 0x0653), 0x0670]), "")
JOINING = frozenset("بتثجحخسشصضطظعغفقكلمنهيپچکگی")  # letters that join the next one
WIDE = {chr(code): chr(code + 0xFEE0) for code in range(0x21, 0x7F)}
TONES = {"vie": frozenset("\u0300\u0301\u0303\u0309\u0323"), "yor": frozenset("\u0300\u0301\u0304")}
TONE = f"[{''.join(sorted(TONES['vie']))}]?"
OPEN_SYLLABLE = re.compile(
    rf"(?<!q)(o(?={TONE}[ae])|u(?={TONE}y))({TONE})([aey])({TONE})(?![\w\u0300-\u036f])", re.IGNORECASE
)
"""oa, oe and uy at the end of a syllable, whose tone mark has an old and a new place: hòa, hoà."""
Rewrite = Callable[[str, np.random.Generator, str], str]  # of a text, by chance, in a language
KEYS = ("qwertyuiop", "asdfghjkl", "zxcvbnm")
NEIGHBOUR = {row[i]: row[i - 1] + row[min(i + 1, len(row) - 1)] for row in KEYS for i in range(1, len(row))}
NOISY_WORDS = 0.05  # share of words with one slip
STRETCHED_WORDS = 0.1  # share of words with a tatweel


@dataclass(frozen=True)
class Variant:
    """A rewriting, for the scripts and the ISO 639-3 languages it means something in; empty means any."""

    rewrite: Rewrite
    scripts: str = ""
    languages: str = ""

    def applies_to(self, language: str) -> bool:
        code, _, script = language.partition("_")
        return all(
            not own or part in own.split() for part, own in ((script, self.scripts), (code, self.languages))
        )


def apply_variant(name: str, text: str, language: str, *, seed: int = 0) -> str:
    """`text` of `language` (`tur_Latn`) as the variant `name` spells it; unchanged where it has nothing to change.

    Raises ConfigError on an unknown name or a variant of another script.
    """
    if name not in VARIANTS:
        raise ConfigError(f'Unknown variant "{name}"; {nearest(name, VARIANTS)}')
    variant = VARIANTS[name]
    if not variant.applies_to(language):
        raise ConfigError(
            f"Variant {name} does not apply to {language}; {', '.join(variants_for(language))} do."
        )
    digest = blake2b(f"{name}\0{text}".encode(), digest_size=8).digest()
    return variant.rewrite(text, np.random.default_rng([seed, int.from_bytes(digest, "little")]), language)


def variants_for(language: str) -> list[str]:
    """Names of the variants that apply to a language code such as `vie_Latn`."""
    return [name for name, variant in VARIANTS.items() if variant.applies_to(language)]


def _plain(rewrite: Callable[[str], str], form: str = "NFC") -> Rewrite:
    """A rule without chance, the same in every language, on a text in one Unicode form."""
    return lambda text, rng, language: unicodedata.normalize(
        "NFC", rewrite(unicodedata.normalize(form, text))
    )


def _mapped(table: dict[str, str]) -> Rewrite:
    return _plain(lambda text: text.translate(str.maketrans(table)))


def _normal(form: str) -> Rewrite:
    return lambda text, rng, language: unicodedata.normalize(form, text)


def _bare(text: str) -> str:
    """Base letters alone: é → e, ọ̀ → o, đ → d; the Turkish dotted İ → I."""
    return "".join(SINGLE.get(c, c) for c in text if unicodedata.category(c) != "Mn")


def _without(marks: Collection[str]) -> Rewrite:
    return _plain(lambda text: "".join(c for c in text if c not in marks), "NFD")


def _without_tones(text: str, rng: np.random.Generator, language: str) -> str:
    return _without(TONES[language[:3]])(text, rng, language)


def _cased(change: Callable[[str], str], turkic: dict[str, str]) -> Rewrite:
    """Lower or upper case, where Turkic languages keep i and ı apart."""

    def rewrite(text: str, rng: np.random.Generator, language: str) -> str:
        text = unicodedata.normalize("NFC", text)
        return change(text.translate(str.maketrans(turkic)) if language[:3] in TURKIC.split() else text)

    return rewrite


def _tatweel(text: str, rng: np.random.Generator, language: str) -> str:
    """A stroke after one joining letter inside some words."""

    def stretch(word: str) -> str:
        places = [i + 1 for i in range(len(word) - 1) if word[i] in JOINING and word[i + 1].isalpha()]
        if not places or rng.random() >= STRETCHED_WORDS:
            return word
        place = places[rng.integers(len(places))]
        return word[:place] + TATWEEL + word[place:]

    return _by_word(text, stretch)


def _keyboard(text: str, rng: np.random.Generator, language: str) -> str:
    """One slip inside some words of four letters or more: two letters swapped, one doubled, or a neighbouring key."""

    def slip(word: str) -> str:
        clusters = _clusters(word)
        if len(clusters) < 4 or not all(c[0].isalpha() for c in clusters) or rng.random() >= NOISY_WORDS:
            return word
        place, kind = int(rng.integers(1, len(clusters) - 2)), rng.integers(3)
        letter = clusters[place]
        if kind == 0:
            clusters[place : place + 2] = clusters[place : place + 2][::-1]
        elif kind == 1 or letter not in NEIGHBOUR:
            clusters.insert(place, letter)
        else:
            clusters[place] = NEIGHBOUR[letter][rng.integers(2)]
        return "".join(clusters)

    return _by_word(text, slip)


def _clusters(word: str) -> list[str]:
    """Letters with the marks that belong to them."""
    starts = [n for n, c in enumerate(word) if not n or not unicodedata.category(c).startswith("M")]
    return [word[start:end] for start, end in zip(starts, [*starts[1:], len(word)])]


def _by_word(text: str, rewrite: Callable[[str], str]) -> str:
    return " ".join(rewrite(word) for word in text.split(" "))


VARIANTS = {
    "nfd": Variant(_normal("NFD")),
    "nfc": Variant(_normal("NFC")),
    "lower": Variant(_cased(str.lower, {"İ": "i", "I": "ı"}), CASED),
    "upper": Variant(_cased(str.upper, {"i": "İ", "ı": "I"}), CASED),
    "no-diacritics": Variant(_plain(_bare, "NFD"), "Latn"),
    "full-width": Variant(_mapped(WIDE), "Hans Hant Jpan"),
    "alef": Variant(_mapped(ALEF), "Arab", ARABIC),
    "ya": Variant(_mapped({"ى": "ي"}), "Arab", ARABIC),
    "ta-marbuta": Variant(_mapped({"ة": "ه"}), "Arab", ARABIC),
    "no-harakat": Variant(_mapped(HARAKAT), "Arab"),
    "tatweel": Variant(_tatweel, "Arab"),
    "no-nukta": Variant(_without(NUKTA), "Deva"),
    "no-tonos": Variant(_without(TONOS), "Grek"),
    "dotless-i": Variant(_mapped({"ı": "i", "İ": "I"}), "Latn", TURKIC),
    "umlaut-spelling": Variant(_mapped(UMLAUTS), "Latn", "deu"),
    "tone-place": Variant(
        _plain(lambda text: OPEN_SYLLABLE.sub(r"\1\4\3\2", text), "NFD"),
        "Latn",
        "vie",
    ),
    "no-tone": Variant(_without_tones, "Latn", "vie yor"),
    "keyboard": Variant(_keyboard, "Latn Cyrl Grek Arab Deva Ethi"),
}
