"""What of a record is judged: each turn that is trained by itself, and the record's words as a whole."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import regex

from mlx_hybrid.governance.checks.language import ENOUGH_LETTERS, UNDETERMINED, Verdict, check_languages
from mlx_hybrid.governance.checks.material import THOUGHT, made_of
from mlx_hybrid.governance.checks.quality import MAX_CHECKED, Turn
from mlx_hybrid.governance.stages import ASKED_FOR, Finding
from mlx_hybrid.governance.words import WORDS
from mlx_hybrid.records.record import Record

MISMATCHES = ("lang_mismatch", "script_mismatch")
TRANSLATES = regex.compile("|".join(map(regex.escape, sorted(WORDS["translate"]))), regex.IGNORECASE)


class Judged(NamedTuple):
    """A record as the rules see it: its trained turns, the words before them, and the languages it says they are in.

    `text` is all that was said but by tools, whose results are no prose and are not trained.
    """

    turns: tuple[Turn, ...]
    asked: str
    text: str
    languages: tuple[str | None, str | None]
    """Of what was asked and of the answers; the same unless the record says otherwise."""
    declares: bool
    """Whether the record says that it is a translation."""

    def asks_for(self, language: str) -> bool:
        """Whether an answer in `language` is asked for, by a word for translating or by its name."""
        names = WORDS.get(f"name {language}", ())
        asked = "\n".join(turn.asked or "" for turn in self.turns).lower()
        return bool(TRANSLATES.search(asked)) or any(name.replace("_", " ") in asked for name in names)


def judged(record: Record) -> Judged:
    """Read a record for the rules."""
    languages = languages_of(record.fields)
    if record.kind == "text":
        text = record.content()[:MAX_CHECKED]
        return Judged((Turn(text, made_of(text)),), "", text, languages, False)
    turns, asked, words = [], [], []
    for turn in record.turns():
        content = (turn.get("content") or "")[:MAX_CHECKED]
        if turn["role"] == "assistant" and content.strip():
            turns.append(Turn(content, made_of(THOUGHT.sub("", content) or content), "\n".join(asked)))
        elif turn["role"] == "user":
            words.append(made_of(content).words)
        asked.append(content)
    said = (turn.get("content") or "" for turn in record.turns() if turn["role"] not in ("system", "tool"))
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
    each: list[list[tuple[Verdict, str]]] = [[] for _ in records]
    for (place, _), verdict, text in zip(
        turns, check_languages(words, codes, engine, allowed, limits), words
    ):
        each[place].append((verdict, text))
    asking = [place for place, record in enumerate(records) if record.asked or not record.turns]
    texts = [whole(records[place], each[place]) for place in asking]
    codes = [records[place].languages[0] for place in asking]
    wholes = dict(zip(asking, check_languages(texts, codes, engine, allowed, limits)))
    return [combine(record, each[i], wholes.get(i)) for i, record in enumerate(records)]


def whole(record: Judged, answers: list[tuple[Verdict, str]]) -> str:
    """All words of a record; the question alone where it is in a language of its own."""
    return record.asked if record.declares else "\n".join((record.asked, *(text for _, text in answers)))


def combine(record: Judged, answers: list[tuple[Verdict, str]], asked: Verdict | None) -> Verdict:
    """What the answers say, then what the record says; an answer of a few words is only told of."""
    if asked is None:
        return answers[0][0]
    determined = [verdict for verdict, _ in answers if verdict.language != UNDETERMINED]
    language = determined[0].language if determined else asked.language
    long = [v for v, text in answers if count_letters(text) >= ENOUGH_LETTERS or is_gibberish(v)]
    excluded = next(
        (v.reject for v in (asked, *determined) if v.reject and v.reject.reason in ASKED_FOR), None
    )
    flags = tuple(dict.fromkeys((*asked.flags, *(flag for verdict in long for flag in verdict.flags))))
    fault = next((v.reject for v, _ in answers if v.reject), asked.reject)
    if excluded or fault is None:
        return Verdict(language, excluded, flags)
    wrong = next((v.reject for v in long if v.reject and (record.declares or not is_meant(record, v))), None)
    if wrong:
        return Verdict(language, wrong._replace(detail=f"an answer: {wrong.detail}"))
    meant = record.declares or (asked.reject and is_meant(record, asked))
    if asked.reject and not meant and all(v.reject or v.flags for v in long):
        return Verdict(language, asked.reject)
    return Verdict(language, None, (*flags, Finding("lang_mixed", fault.detail)))


def is_gibberish(verdict: Verdict) -> bool:
    return verdict.reject is not None and verdict.reject.reason == "gibberish"


def is_meant(record: Judged, verdict: Verdict) -> bool:
    """Whether words in another language are what the record asks for."""
    return verdict.reject.reason in MISMATCHES and record.asks_for(verdict.looks)


def count_letters(text: str) -> int:
    return sum(3 if "\u2e80" < c < "\uac00" else c.isalpha() for c in text[:400])
