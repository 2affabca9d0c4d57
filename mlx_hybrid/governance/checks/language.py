"""The language stage: verify what a record declares, turn by turn and as a whole, label what declares nothing."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import regex

from mlx_hybrid.governance.checks.characters import HAN, SCRIPT_CODES, batch_of, letters_only
from mlx_hybrid.governance.checks.material import Judged, turns_of
from mlx_hybrid.governance.rules import ASKED_FOR, RULES, WORDS, Finding, in_force
from mlx_hybrid.records import languages
from mlx_hybrid.records.languages import Language, UnknownLanguage, parse_language, relatives_of, scripts_of

ENOUGH_LETTERS, SOME_LETTERS, LEAST_LETTERS = 40, 15, 3
CONFIDENT, HALF = 0.5, 0.5
SURE = 0.9  # romanised text reaches it in 0.5 % of sentences, whole sentences of another language in 97 %
LIKE_ROMANISED = ("hau", "som", "kab")  # what romanised Hindi and Arabic look like; these must be at 0.99
MAX_PARTS = 8  # lines of a text in another language that are looked at
CHECKED = 4_000  # letters of a text; engines are shown 400 of them
UNDETERMINED = Language("und", "Zyyy")
# Of a rule that is switched off the limit that no text breaks.
NO_LIMITS = {"lang_mismatch": 0.0, "script_mismatch": 0.0, "script_mixed": 1.0, "gibberish": 2.0}
# Languages that a text is surely in where the engine says so at 0.95; words.tsv names those that only look so.
BIG = ("eng", "fra", "spa", "por", "deu", "rus", "arb", "zho", "hin", "amh")
# Letters that Amharic hardly has, as Tigrinya does, and Arabic ones with a vowel each, as in languages of Africa.
OF_OTHERS = {
    "amh": regex.compile("[ኣቐ-ቝዀኸ]"),
    "arb": regex.compile(r"(?:[\u064B-\u065F]+[^\u064B-\u065F]{1,4}){5}"),
}
ROWS = ((row[5:], names) for row, names in WORDS.items() if row.startswith("name "))
NAMED = {name.replace("_", " "): code for code, names in ROWS for name in names}


def one_of(words: Collection[str]) -> str:
    return "|".join(map(regex.escape, sorted(words, key=lambda word: (-len(word), word))))


# What says that a text be translated, as far as into what can follow, and a language into which.
TRANSLATES = regex.compile(rf"(?:{one_of(WORDS['translate'])})[^:：\n\"“„«]{{0,60}}")
INTO = regex.compile(
    rf"\b(?:{one_of(WORDS['into'])}) (?:bahasa |the )?({one_of(NAMED)})(?:e[nrs]?|[^\x00-\x7f]\w*)?\b"
)


class Verdict(NamedTuple):
    """The language a record is filed under, why it is rejected (or None), its flags, and what it looks like."""

    language: Language
    reject: Finding | None = None
    flags: tuple[Finding, ...] = ()
    looks: str = ""

    @property
    def reason(self) -> str:
        return self.reject.reason if self.reject else ""

    def is_meant(self, record: Judged) -> bool:
        """Whether words in another language are asked for: by its name, or by a word for translating where that is not
        into the declared one alone."""
        if self.reason not in ("lang_mismatch", "script_mismatch"):
            return False
        asked = "\n".join(turn.asked or "" for turn in record.turns).lower()
        if any(code == self.looks and name in asked for name, code in NAMED.items()):
            return True
        told = TRANSLATES.findall(asked)
        into = {NAMED[name] for part in told for name in INTO.findall(part)}
        return bool(told) and into != {self.language.code}


class Evidence(NamedTuple):
    """A text: letters, shares of scripts, the engine's probabilities, the likeliest of both, whether it is sure."""

    text: str
    letters: float
    scripts: list[float]
    probabilities: np.ndarray
    script: str
    top: str
    top_p: float
    is_clear: bool


def gather_evidence(texts: Sequence[str], engine: Any) -> Iterator[Evidence]:
    batch = batch_of(tuple(texts))
    counts = batch.script_counts[:, 1:].astype(np.float64)
    counts[:, HAN - 1] *= 3
    letters = counts.sum(axis=1)
    shares = counts / np.maximum(letters[:, None], 1)
    found = engine.predict(letters_only(batch))
    told = (letters, shares, shares.argmax(1), found.argmax(1), found.max(1))
    for text, row, count, scripts, script, top, p in zip(texts, found, *(each.tolist() for each in told)):
        is_clear = count >= SOME_LETTERS and p >= CONFIDENT
        yield Evidence(text, count, scripts, row, SCRIPT_CODES[1 + script], engine.codes[top], p, is_clear)


def check_languages(
    texts: Sequence[str],
    declared: Sequence[str | None],
    engine: Any,
    allowed: Collection[str] = (),
    limits: Mapping[str, float] = in_force({}),
) -> list[Verdict]:
    """A verdict for each text. `allowed` holds ISO 639-3 codes; empty allows all.

    With p = the probability of the declared language and its close relatives and n letters (a Han letter counts three):
    n ≥ 40 and p < 0.2 rejects; 15 ≤ n < 40 also needs another language at 0.5; below 15 only the script is looked at.
    A text of which any line is in the declared language is kept, and flagged."""
    asked = [(text[:CHECKED], code) for text, code in zip(texts, declared)]
    judge, rows = Judge(engine, allowed, limits), [*dict.fromkeys(asked)]  # labels come again
    found = gather_evidence([text for text, _ in rows], engine)
    verdicts = {row: judge.check(item, row[1]) for row, item in zip(rows, found)}
    for (text, code), verdict in verdicts.items():
        if verdict.reason == "lang_mismatch" and "\n" in text:
            parts = [part for part in text.split("\n") if len(part) >= SOME_LETTERS][:MAX_PARTS]
            checked = (judge.check(item, code) for item in gather_evidence(parts, engine))
            if any(not part.reject and not part.flags for part in checked):
                mixed = (Finding("lang_mixed", verdict.reject.detail),)
                verdicts[text, code] = Verdict(verdict.language, flags=mixed)
    return [verdicts[row] for row in asked]


def check_records(records: Sequence[Judged], *how: Any) -> list[Verdict]:
    """A verdict for each record: of a text on its words; of a conversation on each answer, then on all that was said. A
    question in another language is told; an answer in another goes, unless a translation was asked for. `how` says by
    which engine, allowed languages and limits."""
    turns = turns_of(records)
    words = [turn.made.words for _, turn in turns]
    codes = [records[place].languages[1] for place, _ in turns]
    answers: list[list[tuple[Verdict, str]]] = [[] for _ in records]
    for (place, _), *answer in zip(turns, check_languages(words, codes, *how), words):
        answers[place].append(tuple(answer))
    asking, texts = [i for i, record in enumerate(records) if record.asked or not record.turns], []
    for i in asking:  # a question in a language of its own is judged alone
        said = () if records[i].declares else (text for _, text in answers[i])
        texts.append("\n".join((records[i].asked, *said)))
    codes = [records[place].languages[0] for place in asking]
    wholes = dict(zip(asking, check_languages(texts, codes, *how)))
    rows = enumerate(zip(records, answers))
    return [combine(*row, wholes[i]) if i in wholes else row[1][0][0] for i, row in rows]


def combine(record: Judged, answers: list[tuple[Verdict, str]], asked: Verdict) -> Verdict:
    """What is said of each answer, with its words, then of the record; an answer of a few words is only told of."""
    determined = [verdict for verdict, _ in answers if verdict.language != UNDETERMINED]
    language = determined[0].language if determined else asked.language
    if not any(v.reject or v.flags for v in (asked, *(v for v, _ in answers))):
        return Verdict(language)
    long = [v for v, text in answers if v.reason == "gibberish" or is_long(text)]
    excluded = next((v.reject for v in (asked, *determined) if v.reason in ASKED_FOR), None)
    fault = next((v.reject for v, _ in answers if v.reject), asked.reject)
    flags = tuple(dict.fromkeys(flag for verdict in (asked, *long) for flag in verdict.flags))
    if excluded or fault is None:
        return Verdict(language, excluded, flags)
    wrong = next((v.reject for v in long if v.reject and (record.declares or not v.is_meant(record))), None)
    if wrong:
        return Verdict(language, wrong._replace(detail=f"an answer: {wrong.detail}"))
    meant = record.declares or asked.is_meant(record)
    if asked.reject and not meant and all(v.reject or v.flags for v in long):
        return Verdict(language, asked.reject)
    return Verdict(language, None, (*flags, Finding("lang_mixed", fault.detail)))


def is_long(text: str) -> bool:
    return sum(3 if "\u2e80" < c < "\uac00" else c.isalpha() for c in text[:400]) >= ENOUGH_LETTERS


class Judge:
    """The rules of one pass: the engine, the languages allowed (none allows all) and the limits in force."""

    def __init__(self, engine: Any, allowed: Collection[str], limits: Mapping[str, float]) -> None:
        self.engine, self.allowed = engine, allowed
        self.limits = NO_LIMITS | dict(limits)

    def check(self, evidence: Evidence, declared: str | None) -> Verdict:
        if declared is None:
            return self.label(evidence)
        try:
            language = parse_language(declared)
        except UnknownLanguage as error:
            return Verdict(UNDETERMINED, Finding("lang_unknown_code", str(error)))
        if self.allowed and language.code not in self.allowed:
            return Verdict(language, Finding("lang_not_allowed", f"declared {language}"))
        found = self.verify(evidence, language)
        reject = next((finding for finding in found if RULES[finding.reason].rejects), None)
        return Verdict(language, reject, () if reject else found, evidence.top)

    def verify(self, evidence: Evidence, language: Language) -> tuple[Finding, ...]:
        """What is to be said of a text under its declared language."""
        if evidence.letters < LEAST_LETTERS:
            return (Finding("lang_undetermined", "hardly any letters"),)
        if nonsense := self.nonsense(evidence):
            return (nonsense,)
        looks = f"looks like {evidence.top}, p {evidence.top_p:.2f}"
        expected = scripts_of(language.code)
        if language.declared:
            expected = frozenset(languages.SEEN_AS.get(language.script, [language.script]))
        own = sum(evidence.scripts[SCRIPT_CODES.index(s) - 1] for s in expected if s in SCRIPT_CODES)
        if expected - {"Zyyy"} and own < self.limits["script_mismatch"]:
            told = f"{1 - own:.0%} of the letters are in other scripts, most in {evidence.script}; {looks}"
            reason = "script_mismatch"
            if evidence.script == "Latn" and not language.declared:
                # It may be the language in Latin letters, which no engine knows well.
                reason = "lang_mismatch" if is_sure(evidence, self.engine) else "lang_romanised"
            return (Finding(reason, f"declared {language}, but {told}"),)
        columns = columns_of(self.engine, language.code, (expected & {evidence.script}) or expected)
        if not columns:
            reason = "lang_mismatch" if is_big(evidence, language) else "lang_not_checked"
            return (Finding(reason, f"declared {language}, which the engine does not know; {looks}"),)
        p = float(evidence.probabilities[columns].sum())
        if p >= self.limits["lang_mismatch"] or own < HALF or evidence.top in relatives_of(language.code):
            return self.mixed_scripts(evidence)
        enough = evidence.letters >= ENOUGH_LETTERS or evidence.is_clear
        detail = f"declared {language}, p {p:.2f}; {looks}; {evidence.letters:.0f} letters"
        finding = Finding("lang_mismatch" if enough else "lang_undetermined", detail)
        return finding, *self.mixed_scripts(evidence)

    def label(self, evidence: Evidence) -> Verdict:
        """The language of a text that declares none; undetermined rather than guessed."""
        if nonsense := self.nonsense(evidence):
            return Verdict(UNDETERMINED, nonsense)
        top, p = evidence.top, evidence.top_p
        if not evidence.is_clear or top == "zxx":
            return Verdict(UNDETERMINED, flags=(Finding("lang_undetermined", f"best p {p:.2f}"),))
        language = parse_language(top) if evidence.script == "Hani" else Language(top, evidence.script)
        if self.allowed and language.code not in self.allowed:
            return Verdict(language, Finding("lang_not_allowed", f"looks like {language}, p {p:.2f}"))
        return Verdict(language, flags=self.mixed_scripts(evidence))

    def nonsense(self, evidence: Evidence) -> Finding | None:
        """Latin letters that are no language, as the engine has learnt of such texts (`zxx`)."""
        letters, p = evidence.letters, evidence.top_p if evidence.script == "Latn" else 0.0
        if evidence.top != "zxx" or p < self.limits["gibberish"] or letters < SOME_LETTERS:
            return None
        return Finding("gibberish", f"{letters:.0f} letters, p {p:.2f} of no language")

    def mixed_scripts(self, evidence: Evidence) -> tuple[Finding, ...]:
        """A tag, not a fault: a second script with a fifth of the letters, as where two languages are mixed."""
        share = sorted(evidence.scripts)[-2]
        two = np.argsort(-np.array(evidence.scripts))[:2] if share >= self.limits["script_mixed"] else ()
        names = [SCRIPT_CODES[1 + place] for place in two]
        mixed = {*names} - {"Hani", "Hira", "Kana", "Hang"}
        return (Finding("script_mixed", f"{share:.0%} {names[1]}"),) if mixed else ()


def is_sure(evidence: Evidence, engine: Any) -> bool:
    """Whether a text in Latin letters is sure to be in a language that is written so."""
    like = [i for i, code in enumerate(engine.codes) if code in relatives_of(evidence.top)]
    p = float(evidence.probabilities[like].sum())
    return evidence.letters >= SOME_LETTERS and p >= (0.99 if evidence.top in LIKE_ROMANISED else SURE)


def is_big(evidence: Evidence, language: Language) -> bool:
    """Whether a text under a code that the engine does not know, or not in this script, is sure to be in a big language
    instead; less sure is enough where its own usual script is another and this one was not declared."""
    top, usual = evidence.top, languages.SEEN_AS.get(language.script, [language.script])
    least = 0.95 if language.declared or evidence.script in usual else 0.75
    if top not in BIG or evidence.top_p < least or evidence.letters < 25:
        return False
    if top in OF_OTHERS and OF_OTHERS[top].search(evidence.text):
        return False
    return evidence.script in scripts_of(top) and language.code not in WORDS[top] | relatives_of(top)


@lru_cache(4096)
def columns_of(engine: Any, code: str, scripts: frozenset[str]) -> list[int]:
    """Where the engine's answers for a language and its relatives stand; none when it knows none in these scripts."""
    relatives = relatives_of(code)
    known = any(engine.knows(relative, script) for relative in relatives for script in scripts)
    return [i for i, own in enumerate(engine.codes) if known and own in relatives]
