"""Language codes: whatever a record declares, one internal form, ISO 639-3 + ISO 15924 (`swh_Latn`)."""

import re
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from mlx_hybrid.errors import nearest


class Language(NamedTuple):
    """An ISO 639-3 code and a script; `declared` tells a script that was written from one that is the usual one."""

    code: str
    script: str
    declared: bool = False

    def __str__(self) -> str:
        return f"{self.code}_{self.script}"


class UnknownLanguage(ValueError):
    """A string that is no language code."""


LINES = Path(__file__).with_name("languages.tsv").read_text(encoding="utf-8").splitlines()[1:]
TABLE = [(*(cell.split() for cell in line.split("\t")), [], [], [], [])[:5] for line in LINES]
"""Of each language its ISO 639-3 code, its two-letter codes, other codes that stand for it (macrolanguages, retired
ones), the scripts it is written in, the usual one first, and the one language of those that short texts do not tell
apart."""
TWO_LETTERS = {short: code for (code,), shorts, *_ in TABLE for short in shorts}
OTHERS = {other: code for (code,), _, others, *_ in TABLE for other in others}
SCRIPTS = {code: scripts for (code,), _, _, scripts, _ in TABLE}
CLOSE = {code: close[0] for (code,), *_, close in TABLE if close}
EAST_ASIAN = ("Hans", "Hant", "Hani", "Jpan", "Hira", "Kana")
UNSPACED = frozenset({*EAST_ASIAN, "Thai", "Laoo", "Khmr", "Mymr", "Tibt", "Yiii", "Java", "Bali"})
"""Scripts that are written without spaces between words."""
SEEN_AS = {"Hans": ["Hani"], "Hant": ["Hani"], "Jpan": ["Hani", "Hira", "Kana"], "Kore": ["Hang", "Hani"]}
PARTS = r"([a-z]{2,3})(?:[-_]([a-z]{4}))?(?:[-_](?:[a-z]{2}|\d{3}))?(?:[-_][a-z0-9]+)*"
CODE = re.compile(PARTS, re.IGNORECASE)
TRADITIONAL = re.compile(r"[-_](tw|hk|mo)\b", re.IGNORECASE)


@lru_cache(4096)
def parse_language(text: str) -> Language:
    """`sw`, `swa`, `swh`, `sw-KE`, `sw_Latn`, `swh_Latn`, `zh-Hant-TW` as a Language, three letters that are not in the
    table as ISO 639-3 with an unknown script (`Zyyy`). Raises UnknownLanguage with the nearest known code."""
    if not (match := CODE.fullmatch(text.strip())):
        raise UnknownLanguage(f'"{text}" is no language code; write one as sw, swh or swh_Latn.')
    code, script = match[1].lower(), (match[2] or "").title()
    if len(code) == 2:
        if code not in TWO_LETTERS:
            raise UnknownLanguage(f'"{text}" is no language code; {nearest(code, TWO_LETTERS)}')
        code = TWO_LETTERS[code]
    code = OTHERS.get(code, code)
    if script == "Zyyy" or script in scripts_of(code) - {*SCRIPTS.get(code, [])}:
        script = ""  # what one sees of Hans, Jpan and others
    if not script and code in ("zho", "yue") and TRADITIONAL.search(text):
        script = "Hant"
    return Language(code, script or SCRIPTS.get(code, ["Zyyy"])[0], bool(script))


@lru_cache(1024)
def scripts_of(code: str) -> frozenset[str]:
    """Scripts of a language as they are seen in text (`Hani` for both Chinese ones); empty when not known."""
    return frozenset(seen for script in SCRIPTS.get(code, []) for seen in SEEN_AS.get(script, [script]))


def card_code(language: str) -> str:
    """`sw` for `swh_Latn`: the Hub wants ISO 639-1 where there is one."""
    code = language.split("_")[0]
    return next((two for two, three in TWO_LETTERS.items() if three == code), code)


@lru_cache(1024)
def relatives_of(code: str) -> frozenset[str]:
    """The language itself and those that short texts do not tell apart from it."""
    return frozenset({code, *(other for other, close in CLOSE.items() if close == CLOSE.get(code))})
