"""The language stage: verify what a record declares, label what declares nothing.

Detecting again and comparing rejects good records; asking whether the declared language is *possible* rejects almost
none. The rule, with p = the probability of the declared language and its close relatives and n letters (a Han letter
counts three): n ≥ 40 and p < 0.2 rejects; 15 ≤ n < 40 also needs another language at 0.5; below 15 only the script
is looked at.
"""

from collections.abc import Collection, Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from mlx_hybrid.governance.checks.characters import HAN, SCRIPT_CODES, Batch, letters_only
from mlx_hybrid.governance.checks.engines import Engine
from mlx_hybrid.governance.stages import Finding
from mlx_hybrid.records.languages import (
    SEEN_AS,
    Language,
    UnknownLanguage,
    parse_language,
    relatives_of,
    scripts_of,
)

ENOUGH_LETTERS = 40
SOME_LETTERS = 15
LEAST_LETTERS = 3
POSSIBLE = 0.2  # measured: 0.05–0.2 % of good sentences fall below, 98–99 % of wrong languages
CONFIDENT = 0.5
OWN_SCRIPT = 0.2  # foreign names fill half of some good sentences; a wrong language has none of its script
HALF = 0.5
MIXED_SHARE = 0.2
MAX_PARTS = 8
UNDETERMINED = Language("und", "Zyyy")


class Verdict(NamedTuple):
    """The language a record is filed under, why it is rejected (or None), and its flags."""

    language: Language
    reject: Finding | None = None
    flags: tuple[Finding, ...] = ()


class Evidence(NamedTuple):
    """One text: letters, share of each script among them, the engine's probabilities, and the likeliest of both."""

    letters: float
    scripts: np.ndarray
    probabilities: np.ndarray
    script: str
    top: str
    top_p: float

    @property
    def is_clear(self) -> bool:
        return self.letters >= SOME_LETTERS and self.top_p >= CONFIDENT


def gather_evidence(texts: Sequence[str], engine: Engine) -> Iterator[Evidence]:
    """Letters, scripts and probabilities of each text."""
    counts = Batch(texts).script_counts()[:, 1:].astype(np.float64)
    counts[:, HAN - 1] *= 3
    letters = counts.sum(axis=1)
    shares = counts / np.maximum(letters[:, None], 1)
    found = engine.predict([letters_only(text) for text in texts])
    for count, scripts, row in zip(letters.tolist(), shares, found):
        script, top = SCRIPT_CODES[1 + int(scripts.argmax())], engine.codes[int(row.argmax())]
        yield Evidence(count, scripts, row, script, top, float(row.max()))


def check_languages(
    texts: Sequence[str], declared: Sequence[str | None], engine: Engine, allowed: Collection[str] = ()
) -> list[Verdict]:
    """A verdict for each text. `allowed` holds ISO 639-3 codes; empty allows all.

    A record of several lines is kept, and flagged, when any line of 40 letters is in the declared language: chat
    records hold instructions in one language and answers in another.
    """
    short = [text[:4000] for text in texts]
    evidence = gather_evidence(short, engine)
    verdicts = [check_one(item, code, engine, allowed) for item, code in zip(evidence, declared)]
    for i, (language, reject, _) in enumerate(verdicts):
        if not reject or reject.reason != "lang_mismatch" or "\n" not in short[i]:
            continue
        parts = [part for part in short[i].split("\n") if len(part) >= SOME_LETTERS][:MAX_PARTS]
        checked = (check_one(item, declared[i], engine, allowed) for item in gather_evidence(parts, engine))
        if any(not part.reject and not part.flags for part in checked):
            verdicts[i] = Verdict(language, flags=(Finding("lang_mixed", reject.detail),))
    return verdicts


def check_one(evidence: Evidence, declared: str | None, engine: Engine, allowed: Collection[str]) -> Verdict:
    if declared is None:
        return label(evidence, allowed)
    try:
        language = parse_language(declared)
    except UnknownLanguage as error:
        return Verdict(UNDETERMINED, Finding("lang_unknown_code", str(error)))
    if allowed and language.code not in allowed:
        return Verdict(language, Finding("lang_not_allowed", f"declared {language}"))
    return verify(evidence, language, engine)


def verify(evidence: Evidence, language: Language, engine: Engine) -> Verdict:
    """Whether a text can be in its declared language."""
    if evidence.letters < LEAST_LETTERS:
        return Verdict(language, flags=(Finding("lang_undetermined", "hardly any letters"),))
    looks = f"looks like {evidence.top}, p {evidence.top_p:.2f}"
    expected = scripts_of(language.code)
    if language.declared:
        expected = frozenset(SEEN_AS.get(language.script, [language.script]))
    own = float(sum(evidence.scripts[SCRIPT_CODES.index(s) - 1] for s in expected if s in SCRIPT_CODES))
    if expected - {"Zyyy"} and own < OWN_SCRIPT:
        told = f"{1 - own:.0%} of the letters are in other scripts, most in {evidence.script}; {looks}"
        detail = f"declared {language}, but {told}"
        if evidence.script != "Latn" or language.declared:
            return Verdict(language, Finding("script_mismatch", detail))
        if evidence.is_clear:
            return Verdict(language, Finding("lang_mismatch", detail))
        # It may be the language in Latin letters, which no engine knows well.
        return Verdict(language, flags=(Finding("lang_romanised", detail),))
    columns = columns_of(engine, language.code, expected | {evidence.script})
    if not columns:
        return Verdict(language, flags=(Finding("lang_not_checked", f"the engine does not know {language}"),))
    p = float(evidence.probabilities[list(columns)].sum())
    flags = mixed_scripts(evidence)
    if p >= POSSIBLE or own < HALF or evidence.top in relatives_of(language.code):
        return Verdict(language, flags=flags)
    detail = f"declared {language}, p {p:.2f}; {looks}; {evidence.letters:.0f} letters"
    if evidence.letters >= ENOUGH_LETTERS or evidence.is_clear:
        return Verdict(language, Finding("lang_mismatch", detail))
    return Verdict(language, flags=(Finding("lang_undetermined", detail), *flags))


@lru_cache(4096)
def columns_of(engine: Engine, code: str, scripts: frozenset[str]) -> tuple[int, ...]:
    """Where the engine's answers for a language and its relatives stand; none when it knows none in these scripts."""
    relatives = relatives_of(code)
    if not any(engine.knows(relative, script) for relative in relatives for script in scripts):
        return ()
    return tuple(i for i, known in enumerate(engine.codes) if known in relatives)


def label(evidence: Evidence, allowed: Collection[str]) -> Verdict:
    """The language of a text that declares none; undetermined rather than guessed."""
    top, p = evidence.top, evidence.top_p
    if not evidence.is_clear or top == "zxx":
        return Verdict(UNDETERMINED, flags=(Finding("lang_undetermined", f"best p {p:.2f}"),))
    language = parse_language(top) if evidence.script == "Hani" else Language(top, evidence.script)
    if allowed and language.code not in allowed:
        return Verdict(language, Finding("lang_not_allowed", f"looks like {language}, p {p:.2f}"))
    return Verdict(language, flags=mixed_scripts(evidence))


def mixed_scripts(evidence: Evidence) -> tuple[Finding, ...]:
    """A tag, not a fault: a second script with a fifth of the letters, as where two languages are mixed."""
    first, second = np.argsort(-evidence.scripts)[:2]
    share, names = float(evidence.scripts[second]), {SCRIPT_CODES[1 + first], SCRIPT_CODES[1 + second]}
    if share < MIXED_SHARE or names <= {"Hani", "Hira", "Kana", "Hang"}:
        return ()
    return (Finding("script_mixed", f"{share:.0%} {SCRIPT_CODES[1 + second]}"),)
