"""All stages over records in memory; `curate.py` does the same from files to files."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import NamedTuple

from mlx_hybrid.config import GovernanceConfig
from mlx_hybrid.errors import DataError
from mlx_hybrid.governance.checks.language import Finding
from mlx_hybrid.governance.checks.likelihood import flag_unlikely
from mlx_hybrid.governance.checks.overlap import EvaluationIndex
from mlx_hybrid.governance.checks.personal import redact_fields
from mlx_hybrid.governance.inspection import Inspector
from mlx_hybrid.governance.ledger import Counts, Ledger
from mlx_hybrid.records.record import Fault, Record, load_records

CHUNK = 1024
Scorer = Callable[[Sequence[str]], Sequence[float]]


class Rejection(NamedTuple):
    """A record or line that was set aside, and why."""

    record: Record | Fault
    language: str
    stage: str
    reason: str
    detail: str
    match: str = ""


@dataclass(frozen=True)
class Governed:
    """Every record, on one side or the other. `flags` and `languages` are in the order of `kept`."""

    kept: list[Record]
    rejected: list[Rejection]
    counts: Counts
    flags: list[tuple[Finding, ...]]
    languages: list[str]
    alarms: list[str] = field(default_factory=list)


def govern_records(
    records: Iterable[Record | Fault],
    config: GovernanceConfig,
    *,
    scorer: Scorer | None = None,
    stop: bool = True,
) -> Governed:
    """Run the stages that `config` names, in order, deterministically and in this process.

    `scorer` maps texts to bits per byte under some model; it only flags. Raises ConfigError for settings that cannot
    be, and, unless `stop` is False, DataError when a stage would take more than its share of a language.
    """
    ledger = Ledger(config)
    inspector = Inspector(config, evaluation_index(config))
    kept: list[Record | Fault] = []
    remaining = iter(records)
    while chunk := list(islice(remaining, CHUNK)):
        ledger.add(inspector.inspect(chunk))
        kept += chunk
    ledger.decide(lambda index: kept[index].where)
    if scorer:
        flag_unlikely(ledger, scorer, lambda rows: [kept[row].content() for row in rows])
    alarms = ledger.alarms()
    if alarms and stop:
        raise DataError(describe_alarms(alarms, config))
    return collect(kept, ledger, alarms)


def evaluation_index(config: GovernanceConfig) -> EvaluationIndex | None:
    """The texts of the evaluation files to keep out, or None without such files."""
    if not config.against:
        return None
    return EvaluationIndex(load_records(config.against), config.overlap_threshold)


def describe_alarms(alarms: Sequence[str], config: GovernanceConfig) -> str:
    return (
        f"Stopped to protect small languages: {'; '.join(alarms)}. Look at the records with `mlx-hybrid govern "
        f"--dry-run`; to go on all the same set governance.max_reject_share (now {config.max_reject_share:g}) to 1, "
        "or leave the stage out with governance.skip."
    )


def collect(records: list[Record | Fault], ledger: Ledger, alarms: list[str]) -> Governed:
    kept, flags, languages, rejected = [], [], [], []
    for index, (record, decision) in enumerate(zip(records, ledger.decisions)):
        if decision:
            rejected.append(Rejection(record, ledger.languages[index], *decision))
            continue
        if ledger.config.redact:
            record = Record(redact_fields(record.fields), record.path, record.line)
        kept.append(record)
        flags.append(ledger.flags.get(index, ()))
        languages.append(ledger.languages[index])
    return Governed(kept, rejected, ledger.counts(), flags, languages, alarms)
