"""What can be said of a record without looking at the others: the part of the work that is spread over processes."""

from collections.abc import Container, Sequence
from dataclasses import dataclass

from mlx_hybrid.config import GovernanceConfig
from mlx_hybrid.governance.checks import personal
from mlx_hybrid.governance.checks.characters import Batch
from mlx_hybrid.governance.checks.engines import load_engine
from mlx_hybrid.governance.checks.language import UNDETERMINED, check_records
from mlx_hybrid.governance.checks.material import Judged, judged, turns_of
from mlx_hybrid.governance.checks.mojibake import find_mojibake
from mlx_hybrid.governance.checks.overlap import EvaluationIndex
from mlx_hybrid.governance.checks.quality import check_quality, check_unicode
from mlx_hybrid.governance.checks.translations import Pair, read_pair
from mlx_hybrid.governance.duplicates.minhash import exact_key, names_in, ngram_of, normalise, sketches
from mlx_hybrid.governance.duplicates.near import Said
from mlx_hybrid.governance.rules import Decision, Finding, active_stages, in_force
from mlx_hybrid.records.fields import calls_and_tools
from mlx_hybrid.records.languages import UnknownLanguage, parse_language
from mlx_hybrid.records.lines import Fault, as_source
from mlx_hybrid.records.record import Record, load_records

LEAST_REPEATED = 12  # characters: who says hello is greeted


@dataclass(slots=True)
class Inspection:
    """Everything that the later stages need of one record; the record itself is let go.

    `keep` is the name by which it is asked to be kept.
    """

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
    pair: Pair | None = None
    keep: str = ""

    @property
    def where(self) -> str:
        return f"{self.path}:{self.line}"

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
        self.stages = active_stages(config)
        self.rules = in_force(config.rules)
        held = load_records([as_source(name, renames) for name in config.against])
        self.index = EvaluationIndex(held, config.overlap_threshold) if held else None
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
        if self.index and "eval_leak" in self.rules:
            for (item, _), leak in zip(left, self.index.find([record.content() for _, record in left])):
                if leak:
                    item.decide(leak)
        left = [(item, record) for item, record in left if item.decision is None]
        for item, record in left:
            self.remember(item, record)
        for n in (3, 5) if "near" in self.stages else ():
            own = [item for item, _ in left if ngram_of(item.language) == n]
            for item, sketch in zip(own, sketches([read_said(item.said).whole for item in own], n)):
                item.sketch = sketch
        for item, _ in rows:
            item.flags = tuple(flag for flag in item.flags if flag.reason in self.rules)
        return items

    def begin(self, line: Record | Fault) -> Inspection:
        if isinstance(line, Fault):
            return Inspection(line.path, line.line, decision=Decision("structure", line.reason, line.detail))
        licence = str(line.fields.get("licence") or "")
        name = next((name for name in (line.id, line.where) if name in self.keep), "")
        return Inspection(line.path, line.line, line.kind, licence=licence, shape=line.shape, keep=name)

    def check_texts(self, rows: list[tuple[Inspection, Record]], read: list[Judged]) -> None:
        """Unicode, language, quality, licence and personal data."""
        if "unicode" in self.stages:
            for (item, _), finding in zip(rows, check_unicode(Batch([record.text for record in read]))):
                item.reject(self.rules, "unicode", finding)
        if self.engine:
            for (item, _), verdict in zip(rows, check_records(read, self.engine, self.allowed, self.rules)):
                item.language = str(verdict.language)
                item.flags += verdict.flags
                item.reject(self.rules, "language", verdict.reject)
        if "quality" in self.stages:
            self.check_quality(rows, read)
        for item, record in rows:
            if not self.engine:
                item.language = declared_language(record.language)
            licence = record.fields.get("licence")
            if self.licences and licence not in self.licences:
                finding = Finding("licence_not_allowed", str(licence or "none stated"))
                item.reject(self.rules, "licence", finding)
            if "personal" in self.stages and item.decision is None:
                item.flags += personal.flags(record.fields, item.language)

    def check_quality(self, rows: list[tuple[Inspection, Record]], read: list[Judged]) -> None:
        turns = turns_of(read)
        for (place, _), findings in zip(turns, check_quality([turn for _, turn in turns], self.rules)):
            rows[place][0].reject(self.rules, "quality", *findings)
        for (item, record), one in zip(rows, read):
            codec = one.asked and find_mojibake(one.asked)
            misread = Finding("mojibake", f"in the question: {codec}") if codec else None
            prompt = record.prompt().strip()
            repeats = len(prompt) >= LEAST_REPEATED and prompt == record.completion().strip()
            repeated = Finding("answer_is_prompt", "the answer repeats the prompt") if repeats else None
            item.reject(self.rules, "quality", misread, repeated)

    def remember(self, item: Inspection, record: Record) -> None:
        """What the later stages compare: an exact key within the language, and what was said, normalised.

        Tool calls and tools are part of both: as they are in the key, by digest in what was said.
        """
        content, label = record.content(), "" if record.label is None else str(record.label)
        calls, tools = calls_and_tools(record.fields)
        item.exact = exact_key("\0".join((item.language, content, label, calls, tools)))
        is_text = item.kind == "text"
        prompt = "" if is_text else normalise(record.prompt())
        completion = normalise(content if is_text else record.completion())
        digests = (exact_key(text).hex() if text else "" for text in (calls, tools))
        said = "\0".join((prompt, completion, label.replace("\0", " "), *digests, names_in(content)))
        item.said = said.encode("utf-8", "surrogatepass")
        item.pair = read_pair(record) if "parallel" in self.stages else None


def read_said(raw: bytes) -> Said:
    return Said(*raw.decode("utf-8", "surrogatepass").split("\0"))


def declared_language(code: str | None) -> str:
    """The internal form of a declared code that no stage verifies."""
    try:
        return str(parse_language(code)) if code else str(UNDETERMINED)
    except UnknownLanguage:
        return str(UNDETERMINED)
