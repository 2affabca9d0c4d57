"""Text outside the task, by which forgetting is measured: the project's own in fifteen languages, code and mathematics
(retention.jsonl, written for it, CC0 1.0), or a user's."""

from collections.abc import Collection, Sequence
from pathlib import Path

from mlx_hybrid.errors import ConfigError
from mlx_hybrid.evaluation.sets import EvaluationSet, evaluation_set, from_fields, language_code
from mlx_hybrid.records.record import Record, load_records

OWN = Path(__file__).with_name("retention.jsonl")


def retention_set(name: str) -> EvaluationSet:
    """The texts of a file of records or of lines, `auto` being our own. Raises ConfigError for anything else."""
    path = OWN if name == "auto" else Path(name)
    if path.suffix.lower() == ".txt" and path.is_file():
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        records = from_fields([{"text": line} for line in lines if line.strip()], str(path))
    else:
        records = load_records([path])
    if not records or any(record.kind != "text" for record in records):
        raise ConfigError(f"--retain {path}: needs plain text, records with `text` or a .txt of lines.")
    return evaluation_set(records)


def untrained(examples: EvaluationSet, known: Sequence[Record]) -> Collection[str]:
    """The languages of the texts that no training record declares; none where training declares none."""
    trained = {language_code(record.language) for record in known}
    return set(examples.languages) - trained if trained - {"und"} else set()
