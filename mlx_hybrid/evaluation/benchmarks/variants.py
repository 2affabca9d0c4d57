"""The same text as another keyboard, habit or file would have spelt it: meaning stays, spelling moves."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import blake2b
from unicodedata import category, normalize

import numpy as np

CASED = "Latn Cyrl Grek"
ARABIC = "arb ary arz"
TURKIC = "tur azj"
LOWER, UPPER = {"İ": "i", "I": "ı"}, {"i": "İ", "ı": "I"}  # of Turkic languages, which keep i and ı apart
SINGLE = str.maketrans("đĐłŁøØħĦɓƁɗƊƙƘƴƳ", "dDlLoOhHbBdDkKyY")
UMLAUTS = {"ä": "ae", "ö": "oe", "ü": "ue", "Ä": "Ae", "Ö": "Oe", "Ü": "Ue", "ß": "ss"}
ALEF = dict.fromkeys("أإآٱ", "ا")
HARAKAT = dict.fromkeys(map(chr, [*range(0x064B, 0x0653), 0x0670]), "")
WIDE = {chr(code): chr(code + 0xFEE0) for code in range(0x21, 0x7F)}
NUKTA, TATWEEL, TONOS = "\u093c", "\u0640", "\u0301"
JOINING = frozenset("بتثجحخسشصضطظعغفقكلمنهيپچکگی")  # letters that join the next one
TONES = {"vie": "\u0300\u0301\u0303\u0309\u0323", "yor": "\u0300\u0301\u0304"}
TONE = f"[{TONES['vie']}]?"
OPEN_SYLLABLE = re.compile(
    rf"(?<!q)(o(?={TONE}[ae])|u(?={TONE}y))({TONE})([aey])({TONE})(?![\w\u0300-\u036f])", re.IGNORECASE
)
"""oa, oe and uy at the end of a syllable, whose tone mark has an old and a new place: hòa, hoà."""
KEYS = ("qwertyuiop", "asdfghjkl", "zxcvbnm")
NEIGHBOUR = {row[i]: row[i - 1] + row[min(i + 1, len(row) - 1)] for row in KEYS for i in range(1, len(row))}
NOISY_WORDS = 0.05  # share of words with one slip
STRETCHED_WORDS = 0.1  # share of words with a tatweel

Rewrite = Callable[[str, np.random.Generator, str], str]  # of a text, by chance, in a language


@dataclass(frozen=True)
class Variant:
    """A rewriting, for the scripts and the ISO 639-3 languages it means something in; empty means any."""

    rewrite: Rewrite
    scripts: str = ""
    languages: str = ""

    def applies_to(self, language: str) -> bool:
        code, _, script = language.partition("_")
        wanted = ((script, self.scripts), (code, self.languages))
        return all(not own or part in own.split() for part, own in wanted)


def apply_variant(name: str, text: str, language: str, *, seed: int = 0) -> str:
    """`text` of `language` (`tur_Latn`) as the variant `name` spells it, by chance of the seed and the text itself."""
    digest = blake2b(f"{name}\0{text}".encode(), digest_size=8).digest()
    rng = np.random.default_rng([seed, int.from_bytes(digest, "little")])
    return VARIANTS[name].rewrite(text, rng, language)


def _rule(change: Callable[[str], str], form: str = "NFC") -> Rewrite:
    """A rule without chance, the same in every language, on a text in one Unicode form."""
    return lambda text, rng, language: normalize("NFC", change(normalize(form, text)))


def _mapped(table: dict[str, str], form: str = "NFC") -> Rewrite:
    return _rule(lambda text: text.translate(str.maketrans(table)), form)


def _without_tones(text: str, rng: np.random.Generator, language: str) -> str:
    return _mapped(dict.fromkeys(TONES[language[:3]], ""), "NFD")(text, rng, language)


def _bare(text: str) -> str:
    """Base letters alone: é → e, ọ̀ → o, đ → d; the Turkish dotted İ → I."""
    return "".join(c for c in text.translate(SINGLE) if category(c) != "Mn")


def _cased(change: Callable[[str], str], turkic: dict[str, str]) -> Rewrite:
    def rewrite(text: str, rng: np.random.Generator, language: str) -> str:
        own = str.maketrans(turkic if language[:3] in TURKIC.split() else {})
        return change(normalize("NFC", text).translate(own))

    return rewrite


def _by_word(change: Callable[[str, np.random.Generator], str]) -> Rewrite:
    return lambda text, rng, language: " ".join(change(word, rng) for word in text.split(" "))


def _stretch(word: str, rng: np.random.Generator) -> str:
    """A stroke after one joining letter inside some words."""
    places = [i + 1 for i in range(len(word) - 1) if word[i] in JOINING and word[i + 1].isalpha()]
    if not places or rng.random() >= STRETCHED_WORDS:
        return word
    place = places[rng.integers(len(places))]
    return word[:place] + TATWEEL + word[place:]


def _slip(word: str, rng: np.random.Generator) -> str:
    """One slip inside some words of four letters or more: two letters swapped, one doubled, or a neighbouring key."""
    starts = [n for n, c in enumerate(word) if not n or not category(c).startswith("M")]
    letters = [word[start:end] for start, end in zip(starts, [*starts[1:], len(word)])]  # each with its marks
    if len(letters) < 4 or not all(c[0].isalpha() for c in letters) or rng.random() >= NOISY_WORDS:
        return word
    place, kind = int(rng.integers(1, len(letters) - 2)), rng.integers(3)
    letter = letters[place]
    if kind == 0:
        letters[place : place + 2] = letters[place : place + 2][::-1]
    elif kind == 1 or letter not in NEIGHBOUR:
        letters.insert(place, letter)
    else:
        letters[place] = NEIGHBOUR[letter][rng.integers(2)]
    return "".join(letters)


VARIANTS = {
    "nfd": Variant(lambda text, rng, language: normalize("NFD", text)),
    "nfc": Variant(_rule(str)),
    "lower": Variant(_cased(str.lower, LOWER), CASED),
    "upper": Variant(_cased(str.upper, UPPER), CASED),
    "no-diacritics": Variant(_rule(_bare, "NFD"), "Latn"),
    "full-width": Variant(_mapped(WIDE), "Hans Hant Jpan"),
    "alef": Variant(_mapped(ALEF), "Arab", ARABIC),
    "ya": Variant(_mapped({"ى": "ي"}), "Arab", ARABIC),
    "ta-marbuta": Variant(_mapped({"ة": "ه"}), "Arab", ARABIC),
    "no-harakat": Variant(_mapped(HARAKAT), "Arab"),
    "tatweel": Variant(_by_word(_stretch), "Arab"),
    "no-nukta": Variant(_mapped({NUKTA: ""}, "NFD"), "Deva"),
    "no-tonos": Variant(_mapped({TONOS: ""}, "NFD"), "Grek"),
    "dotless-i": Variant(_mapped({"ı": "i", "İ": "I"}), "Latn", TURKIC),
    "umlaut-spelling": Variant(_mapped(UMLAUTS), "Latn", "deu"),
    "tone-place": Variant(_rule(lambda text: OPEN_SYLLABLE.sub(r"\1\4\3\2", text), "NFD"), "Latn", "vie"),
    "no-tone": Variant(_without_tones, "Latn", "vie yor"),
    "keyboard": Variant(_by_word(_slip), "Latn Cyrl Grek Arab Deva Ethi"),
}
