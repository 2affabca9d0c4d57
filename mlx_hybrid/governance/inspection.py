"""What is decided on records: by itself (`Inspector`, spread over processes) and beside the others (`Ledger`)."""

import sys
from collections import Counter, defaultdict
from collections.abc import Container, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from mlx_hybrid.config import GovernanceConfig
from mlx_hybrid.governance.checks import grams, personal, quality
from mlx_hybrid.governance.checks.characters import Batch, batch_of, find_mojibake
from mlx_hybrid.governance.checks.engines import load_engine
from mlx_hybrid.governance.checks.language import UNDETERMINED, check_records
from mlx_hybrid.governance.checks.material import Judged, judged, turns_of
from mlx_hybrid.governance.checks.near import Said, find_near_duplicates
from mlx_hybrid.governance.rules import ASKED_FOR, RULES, STAGES, Decision, Finding, active_stages, in_force
from mlx_hybrid.records.fields import calls_and_tools
from mlx_hybrid.records.languages import UnknownLanguage, parse_language
from mlx_hybrid.records.lines import Fault, as_source, path_and_line
from mlx_hybrid.records.record import Record, load_records

LEAST_REPEATED = 12  # characters: who says hello is greeted
FEWEST = 5  # losses below this are told, not stopped for: a share of three records says nothing


@dataclass(slots=True)
class Inspection:
    """All that later stages need of one record, which is let go; `keep` is the name by which it is asked to be kept."""

    path: str
    line: int
    kind: str = ""
    language: str = str(UNDETERMINED)
    licence: str = ""
    shape: str = ""
    decision: Decision | None = None
    flags: tuple[Finding, ...] = ()
    exact: bytes = b""
    said: bytes = b""
    sketch: bytes = b""
    pair: quality.Pair | None = None
    keep: str = ""
    as_is: bool = False  # it was read as it is written

    where = path_and_line

    def reject(self, rules: Container[str], stage: str, *findings: Finding | None) -> None:
        """The first stage of which a rule in force objects decides; all its findings are told."""
        found = [finding for finding in findings if finding and finding.reason in rules]
        if found and self.decision is None:
            more = (f"{finding.reason}: {finding.detail}" for finding in found[1:])
            self.decide(Decision(stage, found[0].reason, "; ".join([found[0].detail, *more])))

    def decide(self, decision: Decision) -> None:
        """Set the record aside, or where it is asked to be kept flag it with what was found."""
        if self.keep:
            self.flags += (Finding("kept_anyway", f"{decision.reason}: {decision.detail}"),)
        else:
            self.decision = decision


class Inspector:
    """The per-record stages under one config."""

    def __init__(self, config: GovernanceConfig, renames: dict[str, str] | None = None) -> None:
        self.renames = renames or {}
        self.stages, self.rules = active_stages(config), in_force(config.rules)
        held = load_records([as_source(name, renames) for name in config.against])
        self.index = grams.EvaluationIndex(held, config.overlap_threshold) if held else None
        self.licences, self.keep = config.licences, frozenset(config.keep)
        self.allowed = frozenset(parse_language(code).code for code in config.languages)
        self.engine = load_engine(config.engine) if "language" in self.stages else None

    def inspect(self, lines: Sequence[Record | Fault]) -> list[Inspection]:
        """Run the per-record stages. Memory: some ten bytes for each character."""
        items = [self.begin(line) for line in lines]
        rows = [(item, line) for item, line in zip(items, lines) if isinstance(line, Record)]
        looks = {"unicode", "language", "quality"} & {*self.stages}
        self.check_texts(rows, [judged(record) for _, record in rows] if looks else [])
        left = [(item, record) for item, record in rows if item.decision is None]
        leaks = self.index.find([record.content() for _, record in left]) if self.index else ()
        for (item, _), leak in zip(left, leaks):
            if leak and leak.reason in self.rules:
                item.decide(leak)
        self.remember(left)
        for n in (3, 5) if "near" in self.stages else ():
            own = [item for item, _ in left if grams.ngram_of(item.language) == n and item.decision is None]
            for item, sketch in zip(own, grams.sketches([read_said(item.said).whole for item in own], n)):
                item.sketch = sketch
        return items

    def begin(self, line: Record | Fault) -> Inspection:
        if isinstance(line, Fault):
            return Inspection(line.path, line.line, decision=Decision("structure", line.reason, line.detail))
        licence = str(line.fields.get("licence") or "")
        name = next((name for name in (line.id, line.where) if name in self.keep), "") if self.keep else ""
        told = {"licence": licence, "shape": line.shape, "keep": name, "as_is": line.as_is}
        return Inspection(line.path, line.line, line.kind, **told)

    def check_texts(self, rows: list[tuple[Inspection, Record]], read: list[Judged]) -> None:
        """Unicode, language, quality, licence and personal data."""
        if "unicode" in self.stages:
            batch = batch_of(tuple(record.text for record in read))
            for (item, _), finding in zip(rows, quality.check_unicode(batch)):
                item.reject(self.rules, "unicode", finding)
        if self.engine:
            for (item, _), verdict in zip(rows, check_records(read, self.engine, self.allowed, self.rules)):
                item.language = str(verdict.language)
                item.flags += verdict.flags
                item.reject(self.rules, "language", verdict.reject)
        if "quality" in self.stages:
            self.check_quality(rows, read)
        for item, record in rows:
            with suppress(UnknownLanguage):
                declared = not self.engine and record.language
                item.language = str(parse_language(declared)) if declared else item.language
            if self.licences and (licence := record.fields.get("licence")) not in self.licences:
                finding = Finding("licence_not_allowed", str(licence or "none stated"))
                item.reject(self.rules, "licence", finding)
            if "personal" in self.stages and item.decision is None:
                item.flags += personal.flags(record.fields, item.language)

    def check_quality(self, rows: list[tuple[Inspection, Record]], read: list[Judged]) -> None:
        turns = turns_of(read)
        found = quality.check_quality([turn for _, turn in turns], self.rules)
        for (place, _), findings in zip(turns, found):
            rows[place][0].reject(self.rules, "quality", *findings)
        asked = Batch([record.asked for record in read])
        for (item, record), codec in zip(rows, find_mojibake(asked)):
            misread = Finding("mojibake", f"in the question: {codec}") if codec else None
            answer = record.completion().strip()
            repeats = len(answer) >= LEAST_REPEATED and answer == record.prompt().strip()
            repeated = Finding("answer_is_prompt", "the answer repeats the prompt") if repeats else None
            item.reject(self.rules, "quality", misread, repeated)

    def remember(self, rows: list[tuple[Inspection, Record]]) -> None:
        """What the later stages compare: an exact key within the language, and what was said, normalised; tool calls
        and tools are part of both, as they are in the key, by digest in what was said."""
        texts = [part for _, record in rows for part in (record.prompt(), record.completion())]
        said = grams.normalise(texts)
        for (item, record), prompt, completion in zip(rows, said[::2], said[1::2]):
            content, label = record.content(), "" if record.label is None else str(record.label)
            calls, tools = calls_and_tools(record.fields)
            item.exact = grams.exact_key("\0".join((item.language, content, label, calls, tools)))
            digests = (grams.exact_key(text).hex() if text else "" for text in (calls, tools))
            names = grams.names_in(content)
            told = "\0".join((prompt, completion, label.replace("\0", " "), *digests, names))
            item.said = told.encode("utf-8", "surrogatepass")
            if "parallel" in self.stages:
                item.pair = quality.read_pair(record)


def read_said(raw: bytes) -> Said:
    return Said(*raw.decode("utf-8", "surrogatepass").split("\0"))


class Ledger:
    """What is left of every record, in order, about 700 bytes and the normalised text for each; `sources` tells the
    files they came from, and `alarms`, once all is decided, which language would lose too much."""

    def __init__(self, config: GovernanceConfig) -> None:
        self.config, self.stages, self.rules = config, active_stages(config), in_force(config.rules)
        self.sources: list[dict[str, Any]] = []
        self.items: list[Inspection] = []
        self.alarms: list[str] = []

    def add(self, items: list[Inspection]) -> None:
        for item in items:
            for name in ("path", "language", "licence", "shape"):
                setattr(item, name, sys.intern(getattr(item, name)))
        self.items += items

    def kept(self) -> Iterator[Inspection]:
        return (item for item in self.items if item.decision is None)

    @property
    def reasons(self) -> dict[str, int]:
        """How many records were set aside for each reason, the commonest first."""
        return dict(Counter(item.decision.reason for item in self.items if item.decision).most_common())

    def decide(self) -> None:
        translations = [item for item in self.kept() if item.pair]
        for item, finding in zip(translations, quality.check_pairs([item.pair for item in translations])):
            item.reject(self.rules, "parallel", finding)
            item.flags += item.pair.flags
        first: dict[bytes, Inspection] = {}
        for item in self.kept() if "exact" in self.stages and "exact_dup" in self.rules else ():
            if (earlier := first.setdefault(item.exact, item)) is not item:
                item.decide(Decision("exact", "exact_dup", f"same as {earlier.where}", earlier.where))
        by_language = defaultdict(list)
        for item in self.kept() if "near" in self.stages else ():
            by_language[item.language].append(item)
        for language, items in by_language.items():
            if "near_dup" in self.rules:
                decide_near(items, grams.ngram_of(language), self.config.near_threshold)
            flag_conflicts([item for item in items if item.decision is None])
        for item in self.kept():
            item.flags = tuple(flag for flag in item.flags if flag.reason in self.rules)
        self.alarms = list(self.find_alarms())

    def find_alarms(self) -> Iterator[str]:
        """Languages that one stage would take too much of, each as a sentence."""
        lost: defaultdict[tuple[str, str], Counter[str]] = defaultdict(Counter)
        for (stage, language, reason), number in count(self.items).items():
            lost[stage, language][reason] = number
        structure = sum((own for (stage, _), own in lost.items() if stage == "structure"), Counter())
        if self.is_too_much(structure.total(), len(self.items)):
            yield f"structure would take {structure.total()} of {len(self.items)} records, {told(structure)}"
        for language, total in sorted(Counter(item.language for item in self.items).items()):
            left = total
            for stage in STAGES:
                reasons = lost[stage, language]
                avoidable = sum(reasons[reason] for reason in reasons if reason not in ASKED_FOR)
                if stage != "structure" and self.is_too_much(avoidable, left):
                    taken = f"{stage} would take {reasons.total()} of {left} {language} records"
                    yield f"{taken}, {told(reasons)}"
                left -= reasons.total()
            if total >= self.config.min_kept > left:
                yield f"{language} would be left with {left} of {total} records"

    def is_too_much(self, lost: int, of: int) -> bool:
        return lost >= FEWEST and lost > self.config.max_reject_share * of


def told(reasons: Counter[str]) -> str:
    """Which rule takes how many records, what it catches, and what keeps them."""
    ways = {name: f": {rule.catches}; --rule {name}=off keeps them" for name, rule in RULES.items()}
    rows = sorted(reasons.items(), key=lambda pair: (-pair[1], pair[0]))
    return "most for " + ", ".join(f"{name} ({number}{ways.get(name, '')})" for name, number in rows)


def count(items: Iterable[Inspection]) -> dict[tuple[str, str, str], int]:
    """How many records there are of each (stage, language, reason): ("kept", language, "") first, then by stage."""
    found = ((item.decision or ("kept", ""), item.language) for item in items)
    counts = Counter((decision[0], language, decision[1]) for decision, language in found)
    order = ("kept", *STAGES)
    return dict(sorted(counts.items(), key=lambda row: (order.index(row[0][0]), row[0])))


def decide_near(items: list[Inspection], n: int, threshold: float) -> None:
    """Of the records of one language take those that repeat an earlier one; flag those that a guard let stand."""
    said = lru_cache(grams.HELD)(lambda i: read_said(items[i].said))
    found = find_near_duplicates(said, [item.sketch for item in items], n, threshold)
    for i, earlier, similarity, guard in found:
        name = items[earlier].where
        if guard:
            items[i].flags += (Finding("near_dup_kept", f"{name}: {similarity}, but {guard}"),)
        else:
            items[i].decide(Decision("near", "near_dup", f"near_dup of {name}, {similarity}", name))


def flag_conflicts(items: list[Inspection]) -> None:
    """Flag records whose question, with the tools, stood before with another answer, and the first that it stood in."""
    first: dict[tuple[bytes, bytes], tuple[int, list[bytes]]] = {}
    conflicts: dict[int, int] = {}
    for index, item in enumerate(items):
        prompt, *answer, tools, _ = item.said.split(b"\0")  # the answer with label and calls
        earlier, other = first.setdefault((prompt, tools), (index, answer)) if prompt else (index, answer)
        if answer != other:
            conflicts[index] = earlier
            conflicts.setdefault(earlier, index)
    for index, other in conflicts.items():
        items[index].flags += (Finding("prompt_conflict", f"{items[other].where} answers otherwise"),)
