"""What a record is made of: its trained turns, and what of each is prose, code, notation, markup, data or a table."""

import json
from collections.abc import Sequence
from contextlib import suppress
from itertools import groupby
from operator import itemgetter
from typing import NamedTuple

import regex

from mlx_hybrid.governance.rules import MAY_BE, for_short, patterns
from mlx_hybrid.records.record import Record

MATERIAL = patterns("material")
MAX_CHECKED = 20_000  # characters of a text that the rules look at
SOME, MOSTLY = 0.3, 0.6  # shares of lines that are code from which the short ones beside it are, and all
LETTERS = regex.compile(r"\p{L}+")
BRACKETS = {")": "(", "]": "[", "}": "{"}


class Made(NamedTuple):
    """`prose` is the words alone, tags still in them; `kinds` names the materials that there are."""

    prose: str
    kinds: frozenset[str] = frozenset({"prose"})

    @property
    def words(self) -> str:
        """The prose without its tags."""
        return MATERIAL.tag.sub(" ", self.prose) if "<" in self.prose or "&" in self.prose else self.prose


class Turn(NamedTuple):
    """What is trained, its materials, and, of an answer, all that stood before it."""

    text: str
    made: Made
    asked: str | None = None

    def asks(self, pattern: regex.Pattern) -> bool:
        return self.asked is not None and bool(pattern.search(self.asked))

    @property
    def is_code(self) -> bool:
        return bool(self.made.kinds & {"code", "data"})

    @property
    def bare(self) -> frozenset[str]:
        """The materials that stand in it without a fence."""
        rest = MATERIAL.fenced.sub(" ", self.text)
        known = rest == self.text == MATERIAL.thought.sub("", self.text)  # `made` is of the same words
        return (self.made if known else made_of(rest)).kinds


class Judged(NamedTuple):
    """A record as the rules see it: its trained turns, the words before them, all that was said but by tools, whose
    results are no prose and are not trained (`text`), the languages that it says the question and the answers are in,
    and whether it says that it is a translation (`declares`)."""

    turns: tuple[Turn, ...]
    asked: str
    text: str
    languages: tuple[str | None, str | None]
    declares: bool


def judged(record: Record) -> Judged:
    fields, own = record.fields, record.fields.get("language") or None
    each, source = fields.get("languages"), fields.get("source_language")
    languages = (source if isinstance(source, str) else own), own
    if isinstance(each, dict):
        languages = each.get("prompt") or own, each.get("answer") or own
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
    declares = languages[0] != languages[1] or isinstance(source, str)
    return Judged(tuple(turns), "\n".join(words), "\n".join(said)[:MAX_CHECKED], languages, declares)


def turns_of(records: Sequence[Judged]) -> list[tuple[int, Turn]]:
    """Every turn with the place of its record."""
    return [(place, turn) for place, record in enumerate(records) for turn in record.turns]


@for_short
def made_of(text: str) -> Made:
    """Split a text into its materials; most prose is told by the signs that it has not."""
    if not MAY_BE.signed.search(text) and not MATERIAL.starts.match(text):
        return Made(text)
    if is_data(text):
        return Made("", frozenset({"data"}))
    kinds = set()

    def take(kind: str, prose: str, name: str) -> str:
        found = getattr(MAY_BE, name).search(prose)
        left, count = getattr(MATERIAL, name).subn(" ", prose) if found else (prose, 0)
        kinds.update([kind] if count and kind else [])
        return left

    prose = take("code", text, "fenced")
    formed = is_formed(prose)
    prose = take("", take("notation", prose, "formula") if formed else prose, "link")
    if formed:
        prose = take("notation", "\n".join(prose_lines(prose.split("\n"), kinds)), "expression")
    prose = take("list", prose, "bullet")
    kinds |= {"markup"} if MATERIAL.tag.search(prose) else set()
    kinds |= {"prose"} if LETTERS.search(prose) else set()
    return Made(prose, frozenset(kinds))


def is_data(text: str) -> bool:
    """Whether all of it is JSON, or each line of it is."""
    bare = text.strip()
    looks_so = bare[:1] in ("{", "[") and bare[-1:] in ("}", "]")
    for part in ([bare], bare.split("\n")) if looks_so else ():
        with suppress(ValueError, RecursionError):
            if all(isinstance(json.loads(row), dict | list) for row in part):
                return True
    return False


def is_formed(text: str) -> bool:
    """Whether signs stand in it as somebody writes them: in lines, or the brackets close, or the letters make words."""
    if text.count("\n") >= 3:
        return True
    if len(MATERIAL.strange.findall(text)) >= 3:
        return False
    if not MAY_BE.brackets.search(text):
        return True
    letters = LETTERS.findall(text)
    if letters and sum(map(len, letters)) >= 3 * len(letters):
        return True
    opened: list[str] = []
    for sign in MATERIAL.escaped.sub("", text):
        if sign in "([{":
            opened.append(sign)
        elif sign in BRACKETS and (not opened or opened.pop() != BRACKETS[sign]):
            return False
    return not opened


def prose_lines(lines: list[str], kinds: set[str]) -> list[str]:
    """The lines with those of code, data and tables made empty."""
    left = [line for line in lines if "<" not in line or not MATERIAL.element.fullmatch(line)]
    if len(lines) - len(left) >= max(3, len(lines) / 2):
        kinds.add("code")  # a page, or a component of one
        lines = left
    told, before = [], ""
    for line, cells in zip(lines, in_columns(lines)):
        told.append(cells or kind_of(line, before))
        before = told[-1] if line.strip() else before
    kinds.update(filter(None, told))
    written = [bool(kind) for kind, line in zip(told, lines) if line.strip()]
    share = sum(written) / max(len(written), 1)
    if share > MOSTLY and len(written) > 2:
        return []
    strict = "code" in told and share > SOME
    kept = (not kind and (not strict or MATERIAL.sentence.search(line)) for kind, line in zip(told, lines))
    return [line if keep else "" for keep, line in zip(kept, lines)]


@for_short
def kind_of(line: str, before: str) -> str:
    """`code`, `data`, `table`, or nothing for prose; a line without signs goes with the code `before` it."""
    bare = line.strip()
    if not bare:
        return ""
    if MAY_BE.row.search(line) and MATERIAL.row.match(line):
        return "table"
    if MATERIAL.starts.match(line):
        return "code"
    is_word = bare[0].isalpha() and bare[0] != "π"
    if not is_word and MATERIAL.figures.fullmatch(MATERIAL.quoted.sub("0", bare.split(" #")[0])):
        return "notation"
    if bare.count(" ") >= 5 and MATERIAL.sentence.search(MATERIAL.quoted.sub("", bare)):
        return "code" if before == "code" and bare[0] in "#*" else ""
    if ":" in line and MATERIAL.pair.match(line):
        return "data"
    signed = MAY_BE.signs.search(line) and MATERIAL.signs.search(MATERIAL.tag.sub("", line))
    if signed or (bare[0] in "[{(" and bare[-1] in "]}),"):
        return "code"
    return before if before == "code" and (line[0] in " \t" or bare[0] == "#") else ""


def in_columns(lines: list[str]) -> list[str]:
    """`table` for each of three lines on end, or more, with as many short cells, `data` for those of codes, where a
    letter or a mark in one of them tells that they are."""
    cells, codes = MATERIAL.cells.fullmatch, MATERIAL.codes.fullmatch
    if len(lines) < 3:
        return [""] * len(lines)
    counts = [line.count(",") + line.count(";") for line in lines]
    counts = [n if n > 1 and cells(line) else -bool(codes(line)) for n, line in zip(counts, lines)]
    told = []
    for count, group in groupby(zip(counts, lines), itemgetter(0)):
        rows = [line for _, line in group]
        is_some = count and len(rows) >= 3 and (count > 0 or MATERIAL.coded.search("\n".join(rows)))
        told += [("table" if count > 0 else "data") if is_some else ""] * len(rows)
    return told
