"""The language stage: verify what a record declares, label what declares nothing.

Detecting again and comparing rejects good records; asking whether the declared language is *possible* rejects almost
none. The rule, with p = the probability of the declared language and its close relatives and n letters (a Han letter
counts three): n ≥ 40 and p < 0.2 rejects; 15 ≤ n < 40 also needs another language at 0.5; below 15 only the script
is looked at.
"""

from collections.abc import Collection, Sequence
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
    reject: Finding | None
    flags: tuple[Finding, ...] = ()


class Evidence(NamedTuple):
    """One text: letters, share of each script among them, and the engine's probabilities."""

    letters: float
    scripts: np.ndarray
    probabilities: np.ndarray


def gather_evidence(texts: Sequence[str], engine: Engine) -> list[Evidence]:
    """Letters, scripts and probabilities of each text."""
    counts = Batch(texts).script_counts()[:, 1:].astype(np.float64)
    counts[:, HAN - 1] *= 3
    letters = counts.sum(axis=1)
    probabilities = engine.predict([letters_only(text) for text in texts])
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    return [Evidence(*row) for row in zip(letters.tolist(), shares, probabilities)]


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
    doubtful = [
        i
        for i, v in enumerate(verdicts)
        if v.reject and v.reject.reason == "lang_mismatch" and "\n" in short[i]
    ]
    for i in doubtful:
        parts = [part for part in short[i].split("\n") if len(part) >= SOME_LETTERS][:MAX_PARTS]
        checked = [check_one(item, declared[i], engine, allowed) for item in gather_evidence(parts, engine)]
        if any(v.reject is None and not v.flags for v in checked):
            verdicts[i] = Verdict(
                verdicts[i].language, None, (Finding("lang_mixed", verdicts[i].reject.detail),)
            )
    return verdicts


def check_one(evidence: Evidence, declared: str | None, engine: Engine, allowed: Collection[str]) -> Verdict:
    if declared is None:
        return label(evidence, engine, allowed)
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
        return Verdict(language, None, (Finding("lang_undetermined", "hardly any letters"),))
    top = engine.codes[int(evidence.probabilities.argmax())]
    top_p = float(evidence.probabilities.max())
    seen = SCRIPT_CODES[1 + int(evidence.scripts.argmax())]
    expected = frozenset(SEEN_AS.get(language.script, [language.script]))
    if not language.declared:
        expected = scripts_of(language.code)
    own = script_share(evidence.scripts, expected)
    if expected - {"Zyyy"} and own < OWN_SCRIPT:
        romanised = seen == "Latn" and not language.declared
        told = f"{1 - own:.0%} of the letters are in other scripts, most in {seen}; looks like {top}, p {top_p:.2f}"
        return other_script(evidence, language, top_p, romanised, f"declared {language}, but {told}")
    columns = columns_of(engine, language.code, expected | {seen})
    if not columns:
        return Verdict(language, None, (Finding("lang_not_checked", f"the engine does not know {language}"),))
    p = float(evidence.probabilities[list(columns)].sum())
    flags = mixed_scripts(evidence)
    if p >= POSSIBLE or own < HALF or top in relatives_of(language.code):
        return Verdict(language, None, flags)
    detail = (
        f"declared {language}, p {p:.2f}; looks like {top}, p {top_p:.2f}; {evidence.letters:.0f} letters"
    )
    if evidence.letters >= ENOUGH_LETTERS or (evidence.letters >= SOME_LETTERS and top_p >= CONFIDENT):
        return Verdict(language, Finding("lang_mismatch", detail))
    return Verdict(language, None, (Finding("lang_undetermined", detail), *flags))


@lru_cache(4096)
def columns_of(engine: Engine, code: str, scripts: frozenset[str]) -> tuple[int, ...]:
    """Where the engine's answers for a language and its relatives stand; none when it knows none in these scripts."""
    relatives = relatives_of(code)
    if not any(engine.knows(relative, script) for relative in relatives for script in scripts):
        return ()
    return tuple(i for i, known in enumerate(engine.codes) if known in relatives)


def other_script(
    evidence: Evidence, language: Language, top_p: float, romanised: bool, detail: str
) -> Verdict:
    """Wrong unless it may be the language in Latin letters, which no engine knows well."""
    if not romanised:
        return Verdict(language, Finding("script_mismatch", detail))
    if evidence.letters >= SOME_LETTERS and top_p >= CONFIDENT:
        return Verdict(language, Finding("lang_mismatch", detail))
    return Verdict(language, None, (Finding("lang_romanised", detail),))


def label(evidence: Evidence, engine: Engine, allowed: Collection[str]) -> Verdict:
    """The language of a text that declares none; undetermined rather than guessed."""
    top = int(evidence.probabilities.argmax())
    p = float(evidence.probabilities[top])
    if evidence.letters < SOME_LETTERS or p < CONFIDENT or engine.codes[top] == "zxx":
        return Verdict(UNDETERMINED, None, (Finding("lang_undetermined", f"best p {p:.2f}"),))
    language = Language(engine.codes[top], SCRIPT_CODES[1 + int(evidence.scripts.argmax())])
    if language.script == "Hani":
        language = parse_language(language.code)
    if allowed and language.code not in allowed:
        return Verdict(language, Finding("lang_not_allowed", f"looks like {language}, p {p:.2f}"))
    return Verdict(language, None, mixed_scripts(evidence))


def script_share(shares: np.ndarray, expected: frozenset[str]) -> float:
    """Share of the letters that stand in one of the expected scripts."""
    return float(sum(shares[SCRIPT_CODES.index(script) - 1] for script in expected if script in SCRIPT_CODES))


def mixed_scripts(evidence: Evidence) -> tuple[Finding, ...]:
    """A tag, not a fault: a second script with a fifth of the letters, as where two languages are mixed."""
    order = np.argsort(-evidence.scripts)
    second = float(evidence.scripts[order[1]])
    names = {SCRIPT_CODES[1 + int(i)] for i in order[:2]}
    if second < MIXED_SHARE or names <= {"Hani", "Hira", "Kana", "Hang"}:
        return ()
    return (Finding("script_mixed", f"{second:.0%} {SCRIPT_CODES[1 + int(order[1])]}"),)
