"""What a run measured, as rows for its model card: one for each set, language and metric, with intervals."""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlx_hybrid.errors import ConfigError
from mlx_hybrid.evaluation.metrics.intervals import LEVEL
from mlx_hybrid.evaluation.results import ALL, DIFFERENCE, Results, Row, read_results
from mlx_hybrid.records.languages import card_code

NAMES = {
    "loss": "loss, nats per token",
    "accuracy": "accuracy",
    "macro_f1": "macro-F1",
    "bits_per_byte": "bits per byte",
    "chrf": "chrF++",
    "ece": "expected calibration error",
    "nll": "negative log-likelihood, nats",
    "brier": "Brier score",
}
BY_LANGUAGE = ("accuracy", "bits_per_byte", "chrf")

CLASSIFICATION = ("accuracy", "macro_f1", "ece", "brier")


@dataclass(frozen=True)
class Measured:
    """One figure of the adapted model on one set, beside the base's and what the adapter changed, where known."""

    task: str
    adapted: Row
    base: Row | None = None
    difference: Row | None = None

    @property
    def is_open(self) -> bool:
        """Whether there is a difference whose interval holds zero."""
        return self.difference is not None and not self.difference.settled

    @property
    def metric(self) -> str:
        return self.adapted.metric

    @property
    def language(self) -> str:
        return self.adapted.language

    @property
    def of_language(self) -> bool:
        """Whether it is of one language, neither of the whole nor of a direction."""
        return self.language != ALL and ">" not in self.language


def measured(folder: Path) -> list[Measured]:
    """Every figure that a card shows, from the results files of an evaluation folder."""
    found: list[Measured] = []
    for path in sorted(folder.glob("*.json")):
        with suppress(ConfigError):
            results = read_results(path)
            found += shown(results) if "harness" not in results.facts and results.models else ()
    return found


def shown(results: Results) -> Iterator[Measured]:
    """The figures of the last model, the whole of a set before its languages."""
    *before, adapted = results.models
    for metric in NAMES:
        languages = results.languages(metric) if metric in BY_LANGUAGE else []
        for language in (ALL, *languages):
            if own := results.get(metric, adapted, language):
                old = results.get(metric, before[0], language) if before else None
                change = results.get(metric, DIFFERENCE, language)
                yield Measured(results.facts["task"], own, old, change)


def eval_results(rows: list[Measured]) -> list[Any]:
    """Rows as the Hub's EvalResults; the interval and the base stand in `metric_args`.

    https://github.com/huggingface/hub-docs/blob/main/modelcard.md
    """
    from huggingface_hub import EvalResult

    return [
        EvalResult(
            task_type="text-classification" if row.metric in CLASSIFICATION else "text-generation",
            dataset_type=row.task.replace(" ", "-"),
            dataset_name=row.task,
            dataset_config=None if row.language == ALL else row.language,
            dataset_args={"language": card_code(row.language)} if row.of_language else None,
            metric_type=row.metric,
            metric_name=NAMES[row.metric],
            metric_value=round(row.adapted.value, 6),
            metric_args=arguments(row),
        )
        for row in rows
    ]


def arguments(row: Measured) -> dict:
    values: dict[str, Any] = {"records": row.adapted.n}
    values |= {"level": LEVEL, **bounds(row.adapted)} if row.adapted.low is not None else {}
    if row.base:
        values["base"] = round(row.base.value, 6)
    if row.difference:
        values["difference"] = {"value": round(row.difference.value, 6), **bounds(row.difference)}
    return values


def bounds(row: Row) -> dict[str, float]:
    return {} if row.low is None else {"low": round(row.low, 6), "high": round(row.high, 6)}
