"""What of a record is judged: each turn that is trained by itself, and the record's words as a whole."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import regex

from mlx_hybrid.governance.checks.language import ENOUGH_LETTERS, UNDETERMINED, Verdict, check_languages
from mlx_hybrid.governance.checks.material import MATERIAL, made_of
from mlx_hybrid.governance.checks.quality import MAX_CHECKED, Turn
from mlx_hybrid.governance.rules import ASKED_FOR, Finding
from mlx_hybrid.governance.tables import WORDS
from mlx_hybrid.records.record import Record

TRANSLATES = regex.compile("|".join(map(regex.escape, sorted(WORDS["translate"]))), regex.IGNORECASE)
Answer = tuple[Verdict, str]
"""What the language rules say of a turn that is trained, and its words."""


class Judged(NamedTuple):
    """A record as the rules see it: its trained turns, the words before them, and the languages it says they are in.

    `text` is all that was said but by tools, whose results are no prose and are not trained. `languages` are of what
    was asked and of the answers; `declares` tells a record that says it is a translation.
    """

    turns: tuple[Turn, ...]
    asked: str
    text: str
    languages: tuple[str | None, str | None]
    declares: bool

    def is_meant(self, verdict: Verdict) -> bool:
        """Whether words in another language are asked for, by a word for translating or by the language's name."""
        if verdict.reject.reason not in ("lang_mismatch", "script_mismatch"):
            return False
        names = WORDS.get(f"name {verdict.looks}", ())
        asked = "\n".join(turn.asked or "" for turn in self.turns).lower()
        return bool(TRANSLATES.search(asked)) or any(name.replace("_", " ") in asked for name in names)


def judged(record: Record) -> Judged:
    """Read a record for the rules."""
    languages = languages_of(record.fields)
    if record.kind == "text":
        text = record.content()[:MAX_CHECKED]
        return Judged((Turn(text, made_of(text)),), "", text, languages, False)
    turns, asked, words, said = [], [], [], []
    for turn in record.turns():
        role, whole = turn["role"], turn.get("content") or ""
        content = whole[:MAX_CHECKED]
        if role == "assistant" and content.strip():
            made = made_of(MATERIAL.thought.sub("", content) or content)
            turns.append(Turn(content, made, "\n".join(asked)))
        words += [made_of(content).words] if role == "user" else []
        said += [whole] if role not in ("system", "tool") else []
        asked.append(content)
    declares = languages[0] != languages[1] or isinstance(record.fields.get("source_language"), str)
    return Judged(tuple(turns), "\n".join(words), "\n".join(said)[:MAX_CHECKED], languages, declares)


def languages_of(fields: dict[str, Any]) -> tuple[str | None, str | None]:
    """What a record declares of its questions and of its answers."""
    each, source = fields.get("languages"), fields.get("source_language")
    own = fields.get("language") or None
    if not isinstance(each, dict):
        return (source if isinstance(source, str) else own), own
    return each.get("prompt") or own, each.get("answer") or own


def flat(records: Sequence[Judged]) -> list[tuple[int, Turn]]:
    """Every turn with the place of its record."""
    return [(place, turn) for place, record in enumerate(records) for turn in record.turns]


def check_records(
    records: Sequence[Judged], engine: Any, allowed: Collection[str], limits: Mapping[str, float]
) -> list[Verdict]:
    """A verdict for each record: of a text on its words; of a conversation on each answer, then on all that was said.

    A question in another language is told; an answer in another goes, unless a translation was asked for.
    """
    turns = flat(records)
    words = [turn.made.words for _, turn in turns]
    codes = [records[place].languages[1] for place, _ in turns]
    answers: list[list[Answer]] = [[] for _ in records]
    for (place, _), *answer in zip(turns, check_languages(words, codes, engine, allowed, limits), words):
        answers[place].append(tuple(answer))
    asking, texts = [i for i, record in enumerate(records) if record.asked or not record.turns], []
    for i in asking:  # a question in a language of its own is judged alone
        said = () if records[i].declares else (text for _, text in answers[i])
        texts.append("\n".join((records[i].asked, *said)))
    codes = [records[place].languages[0] for place in asking]
    wholes = dict(zip(asking, check_languages(texts, codes, engine, allowed, limits)))
    return [
        combine(record, own, wholes[i]) if i in wholes else own[0][0]
        for i, (record, own) in enumerate(zip(records, answers))
    ]


def combine(record: Judged, answers: list[Answer], asked: Verdict) -> Verdict:
    """What the answers say, then what the record says; an answer of a few words is only told of."""
    determined = [verdict for verdict, _ in answers if verdict.language != UNDETERMINED]
    language = determined[0].language if determined else asked.language
    long = [v for v, text in answers if count_letters(text) >= ENOUGH_LETTERS or reason_of(v) == "gibberish"]
    excluded = next((v.reject for v in (asked, *determined) if reason_of(v) in ASKED_FOR), None)
    fault = next((v.reject for v, _ in answers if v.reject), asked.reject)
    flags = tuple(dict.fromkeys((*asked.flags, *(flag for verdict in long for flag in verdict.flags))))
    if excluded or fault is None:
        return Verdict(language, excluded, flags)
    wrong = next((v.reject for v in long if v.reject and (record.declares or not record.is_meant(v))), None)
    if wrong:
        return Verdict(language, wrong._replace(detail=f"an answer: {wrong.detail}"))
    meant = record.declares or (asked.reject and record.is_meant(asked))
    if asked.reject and not meant and all(v.reject or v.flags for v in long):
        return Verdict(language, asked.reject)
    return Verdict(language, None, (*flags, Finding("lang_mixed", fault.detail)))


def reason_of(verdict: Verdict) -> str:
    return verdict.reject.reason if verdict.reject else ""


def count_letters(text: str) -> int:
    return sum(3 if "\u2e80" < c < "\uac00" else c.isalpha() for c in text[:400])
