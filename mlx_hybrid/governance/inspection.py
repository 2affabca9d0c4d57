"""What can be said of a record without looking at the others: the part of the work that is spread over processes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mlx_hybrid.config import GovernanceConfig
from mlx_hybrid.governance.checks import personal, quality
from mlx_hybrid.governance.checks.characters import Batch
from mlx_hybrid.governance.checks.engines import Engine, load_engine
from mlx_hybrid.governance.checks.language import UNDETERMINED, Finding, check_languages
from mlx_hybrid.governance.checks.overlap import EvaluationIndex
from mlx_hybrid.governance.checks.translations import Pair, read_pair
from mlx_hybrid.governance.duplicates.minhash import (
    NGRAM,
    NGRAM_UNSPACED,
    band_keys,
    exact_key,
    normalise,
    sketch,
)
from mlx_hybrid.governance.duplicates.near import Said
from mlx_hybrid.governance.stages import Decision, active_stages
from mlx_hybrid.records.fields import calls_and_tools
from mlx_hybrid.records.languages import Language, is_unspaced, parse_language
from mlx_hybrid.records.record import Fault, Record, load_records

BATCH = 1024
BATCH_CHARACTERS = 1 << 20


@dataclass(slots=True)
class Inspection:
    """Everything that the later stages need of one record; the record itself is let go."""

    kind: str
    language: str
    decision: Decision | None = None
    flags: tuple[Finding, ...] = ()
    exact: bytes = b""
    said: bytes = b""
    pair: Pair | None = None
    licence: str = ""


@dataclass(slots=True)
class Inspected:
    """Inspections of consecutive records with their MinHash band keys (records, 20) and low bytes (records, 120)."""

    items: list[Inspection]
    keys: np.ndarray
    small: np.ndarray


class Inspector:
    """The per-record stages under one config; `index` holds the evaluation texts to keep out, where some are named."""

    def __init__(self, config: GovernanceConfig) -> None:
        self.config = config
        self.stages = active_stages(config)
        held = load_records(config.against) if config.against else []
        self.index = EvaluationIndex(held, config.overlap_threshold) if held else None
        self.allowed = frozenset(parse_language(code).code for code in config.languages)
        self.engine: Engine | None = load_engine(config.engine) if "language" in self.stages else None

    def inspect(self, records: Sequence[Record | Fault]) -> Inspected:
        """Run the per-record stages. Memory: a few bytes for each character of the batch, cut at 1 M characters."""
        parts = [self.inspect_batch(batch) for batch in in_batches(records)]
        if not parts:
            return Inspected([], np.zeros((0, 20), np.uint64), np.zeros((0, 120), np.uint8))
        return Inspected(
            [item for part in parts for item in part.items],
            np.concatenate([part.keys for part in parts]),
            np.concatenate([part.small for part in parts]),
        )

    def inspect_batch(self, records: Sequence[Record | Fault]) -> Inspected:
        items = [begin(record) for record in records]
        contents = [record.content() if isinstance(record, Record) else "" for record in records]
        self.check(records, items, contents)
        alive = [i for i, item in enumerate(items) if item.decision is None]
        keys, small = np.zeros((len(items), 20), np.uint64), np.zeros((len(items), 120), np.uint8)
        for i in alive:
            remember(items[i], records[i], contents[i])
        for unspaced in (False, True):
            rows = [i for i in alive if is_unspaced(items[i].language[-4:]) is unspaced]
            if rows and "near" in self.stages:
                keys[rows], small[rows] = fingerprint([whole(items[i].said) for i in rows], unspaced)
        return Inspected(items, keys, small)

    def check(self, records: Sequence[Record | Fault], items: list[Inspection], contents: list[str]) -> None:
        """Unicode, language, quality and overlap, each on what the ones before it left."""
        alive = [i for i, item in enumerate(items) if item.decision is None]
        texts = quality.checked([contents[i] for i in alive])
        batch = Batch(texts)
        broken = quality.check_unicode(batch) if "unicode" in self.stages else [None] * len(texts)
        for i, finding in zip(alive, broken):
            reject(items[i], "unicode", finding)
        self.check_languages(records, items, alive, texts)
        if "quality" in self.stages:
            for i, findings in zip(alive, quality.check_quality(batch)):
                reject(items[i], "quality", *findings, *check_turns(records[i]))
        for i in alive:
            licence = records[i].fields.get("licence")
            if "licence" in self.stages and self.config.licences and licence not in self.config.licences:
                reject(items[i], "licence", Finding("licence_not_allowed", str(licence or "none stated")))
            if "personal" in self.stages:
                items[i].flags += personal.flags(records[i].fields)
        if self.index and "overlap" in self.stages:
            rows = [i for i in alive if items[i].decision is None]
            for i, decision in zip(rows, self.index.find([contents[i] for i in rows])):
                items[i].decision = decision
        if "parallel" in self.stages:
            for i in alive:
                items[i].pair = read_pair(records[i]) if items[i].decision is None else None

    def check_languages(self, records, items: list[Inspection], alive: list[int], texts: list[str]) -> None:
        if self.engine is None:
            for i in alive:
                items[i].language = declared_language(records[i].language)
            return
        codes = [records[i].language for i in alive]
        for i, verdict in zip(alive, check_languages(texts, codes, self.engine, self.allowed)):
            items[i].language = str(verdict.language)
            items[i].flags += verdict.flags
            reject(items[i], "language", verdict.reject)


def in_batches(records: Sequence[Record | Fault]):
    """Slices of at most 1,024 records and about a million characters."""
    batch: list[Record | Fault] = []
    size = 0
    for record in records:
        batch.append(record)
        size += min(size_of(record), quality.MAX_CHECKED)
        if len(batch) == BATCH or size >= BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def size_of(record: Record | Fault) -> int:
    return len(record.content()) if isinstance(record, Record) else 0


def begin(record: Record | Fault) -> Inspection:
    if isinstance(record, Fault):
        return Inspection("", str(UNDETERMINED), Decision("structure", record.reason, record.detail))
    return Inspection(record.kind, str(UNDETERMINED), licence=str(record.fields.get("licence") or ""))


def reject(item: Inspection, stage: str, *findings: Finding | None) -> None:
    """The first stage that objects decides; all its findings are told."""
    found = [finding for finding in findings if finding]
    if found and item.decision is None:
        more = tuple(f"{finding.reason}: {finding.detail}" for finding in found[1:])
        item.decision = Decision(stage, found[0].reason, "; ".join([found[0].detail, *more]))


def check_turns(record: Record) -> list[Finding]:
    """An answer that only repeats its question."""
    prompt = record.prompt().strip()
    return (
        [Finding("answer_is_prompt", "the answer repeats the prompt")]
        if prompt and prompt == record.completion().strip()
        else []
    )


def remember(item: Inspection, record: Record, content: str) -> None:
    """What the duplicate stages compare: an exact key within the language, and what was said, normalised.

    Tool calls and tools are part of both: as they are in the key, by digest in what was said.
    """
    label = "" if record.label is None else str(record.label)
    calls, tools = calls_and_tools(record.fields)
    item.exact = exact_key("\0".join((item.language, content, label, calls, tools)))
    prompt = "" if item.kind == "text" else normalise(record.prompt())
    completion = normalise(content if item.kind == "text" else record.completion())
    digests = (exact_key(text).hex() if text else "" for text in (calls, tools))
    item.said = "\0".join((prompt, completion, label.replace("\0", " "), *digests)).encode(
        "utf-8", "surrogatepass"
    )


def read_said(raw: bytes) -> Said:
    return Said(*raw.decode("utf-8", "surrogatepass").split("\0"))


def whole(raw: bytes) -> str:
    return read_said(raw).whole


def fingerprint(texts: list[str], unspaced: bool) -> tuple[np.ndarray, np.ndarray]:
    """Band keys and low bytes of the signatures of normalised texts."""
    signatures = sketch(texts, NGRAM_UNSPACED if unspaced else NGRAM)
    return band_keys(signatures), signatures.astype(np.uint8)


def declared_language(code: str | None) -> str:
    """The internal form of a declared code that no stage verifies."""
    if code is None:
        return str(UNDETERMINED)
    try:
        return str(parse_language(code))
    except ValueError:
        return str(Language("und", "Zyyy"))


def describe_engine(config: GovernanceConfig) -> dict[str, Any] | None:
    return load_engine(config.engine).describe() if "language" in active_stages(config) else None
