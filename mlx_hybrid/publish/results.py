"""What a run measured, as rows for its model card: one for each set, language and metric, with intervals."""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from mlx_hybrid.errors import ConfigError
from mlx_hybrid.evaluation.metrics.intervals import LEVEL
from mlx_hybrid.evaluation.results import ALL, DIFFERENCE, RETENTION, Results, Row, read_results
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
OTHER, OTHER_TEXT = "text outside the task", ("bits_per_byte", ALL, RETENTION)
CLASSIFICATION = ("accuracy", "macro_f1", "ece", "brier")


class Measured(NamedTuple):
    """One figure of the adapted model on one set, beside the base's and what the adapter changed, where known."""

    task: str
    adapted: Row
    base: Row | None = None
    difference: Row | None = None

    @property
    def of_language(self) -> bool:
        """Whether it is of one language, neither of the whole nor of a direction."""
        return self.adapted.language != ALL and ">" not in self.adapted.language


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
    places = [(metric, ALL, "") for metric in NAMES]
    places += [(metric, language, "") for metric in BY_LANGUAGE for language in results.languages(metric)]
    for metric, *place in [*sorted(places, key=lambda own: list(NAMES).index(own[0])), OTHER_TEXT]:
        if own := results.get(metric, adapted, *place):
            old = results.get(metric, before[0], *place) if before else None
            task = OTHER if own.variant else results.facts["task"]
            yield Measured(task, own, old, results.get(metric, DIFFERENCE, *place))


def eval_result(row: Measured) -> Any:
    """A row as the Hub's EvalResult; the interval and the base stand in `metric_args`.

    https://github.com/huggingface/hub-docs/blob/main/modelcard.md
    """
    from huggingface_hub import EvalResult

    own, language = row.adapted, row.adapted.language
    known: dict[str, Any] = {"records": own.n} | ({"level": LEVEL, **bounds(own)} if bounds(own) else {})
    if row.base:
        known["base"] = round(row.base.value, 6)
    if row.difference:
        known["difference"] = {"value": round(row.difference.value, 6), **bounds(row.difference)}
    return EvalResult(
        task_type="text-classification" if own.metric in CLASSIFICATION else "text-generation",
        dataset_type=row.task.replace(" ", "-"),
        dataset_name=row.task,
        dataset_config=None if language == ALL else language,
        dataset_args={"language": card_code(language)} if row.of_language else None,
        metric_type=own.metric,
        metric_name=NAMES[own.metric],
        metric_value=round(own.value, 6),
        metric_args=known,
    )


def bounds(row: Row) -> dict[str, float]:
    return {} if row.low is None else {"low": round(row.low, 6), "high": round(row.high, 6)}
