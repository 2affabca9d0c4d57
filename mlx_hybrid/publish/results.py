"""What a run measured, as rows for its model card: one for each set, language and metric, with intervals."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlx_hybrid.evaluation.metrics.intervals import LEVEL
from mlx_hybrid.files import read_json

NAMES = {
    "accuracy": "accuracy", "macro_f1": "macro-F1", "loss": "loss, nats per token", "bits_per_byte": "bits per byte",
    "chrf": "chrF++", "ece": "expected calibration error", "nll": "negative log-likelihood, nats",
    "brier": "Brier score",
}  # fmt: skip

CLASSIFICATION = ("accuracy", "macro_f1", "ece", "brier")


@dataclass(frozen=True)
class Measured:
    """One metric on one set. `base`, `adapted` and `difference` (adapted − base) hold value, low and high, or a value
    alone; a language of "" is the whole set."""

    task: str
    language: str
    metric: str
    adapted: dict
    base: dict | None = None
    difference: dict | None = None
    records: int = 0

    @property
    def is_open(self) -> bool:
        """Whether there is a difference whose interval holds zero."""
        low, high = (self.difference or {}).get("low", 0), (self.difference or {}).get("high", 0)
        return bool(self.difference) and not (low > 0 or high < 0)


def measured(folder: Path, name: str) -> list[Measured]:
    """Every row from the JSON files of an evaluation folder; `name` is the adapted model in those with several."""
    rows: list[Measured] = []
    for path in sorted(folder.glob("*.json")):
        tree = read_json(path)
        if "accuracy_by_language" in tree or "loss_nats_per_token" in tree:
            rows += held_out(tree)
        elif isinstance(tree.get("models"), dict) and tree["models"]:
            rows += task_rows(tree, name)
    return rows


def held_out(tree: dict) -> Iterator[Measured]:
    """Rows of `held-out.json` (evaluation/held_out.py)."""
    task = "held-out records"
    if loss := tree.get("loss_nats_per_token"):
        base, adapted = ({"value": loss[side]} for side in ("base", "adapted"))
        yield Measured(task, "", "loss", adapted, base, loss["difference"], tree["records"])
    if "accuracy" in tree:
        own = tree["accuracy"]
        yield Measured(task, "", "accuracy", own["adapted"], own["base"], own["gain"], tree["questions"])
    for language, own in tree.get("accuracy_by_language", {}).items():
        count = own.get("questions", own["adapted"].get("count", 0))
        yield Measured(task, language, "accuracy", own["adapted"], own["base"], own["gain"], count)


def task_rows(tree: dict, name: str) -> Iterator[Measured]:
    """Rows of a benchmark (evaluation/evaluate.py): the base is the first model; the adapted one is named, or last."""
    names = list(tree["models"])
    adapted = name if name in names else names[-1]
    base = names[0] if names[0] != adapted else None
    after, before = tree["models"][adapted], tree["models"].get(base, {})
    change = tree.get("differences", {}).get(f"{adapted} - {base}", {})
    for metric in ("accuracy", "macro_f1", "bits_per_byte"):
        if metric in after:
            yield Measured(
                tree["task"],
                "",
                metric,
                after[metric],
                before.get(metric),
                change.get(metric),
                after.get("count", 0),
            )
    for language, own in after.get("languages", {}).items():
        for metric in ("accuracy", "bits_per_byte"):
            if metric in own:
                yield Measured(
                    tree["task"], language, metric, own[metric], dig(before, "languages", language, metric),
                    dig(change, "languages", language, metric), own.get("count", 0),
                )  # fmt: skip
    for direction, own in after.get("directions", {}).items():
        old = dig(before, "directions", direction, "chrf")
        yield Measured(tree["task"], direction, "chrf", own["chrf"], old, None, own.get("count", 0))
    yield from calibration_rows(tree, after, before)


def calibration_rows(tree: dict, after: dict, before: dict) -> Iterator[Measured]:
    """Calibration as the models are, without a fitted temperature."""
    for metric, key in (("ece", "ece_width"), ("nll", "nll_nats"), ("brier", "brier")):
        own = dig(after, "calibration", "before", key)
        if own:
            old = dig(before, "calibration", "before", key)
            yield Measured(tree["task"], "", metric, own, old, None, after.get("count", 0))


def dig(tree: Any, *keys: str) -> Any:
    for key in keys:
        tree = tree.get(key) if isinstance(tree, dict) else None
    return tree


def results_table(rows: list[Measured]) -> list[str]:
    """Rows as a Markdown table."""
    lines = [
        "| set | language | metric | base | this model | difference [95 % interval] | records |",
        "|---|---|---|--:|--:|--:|--:|",
    ]
    for row in rows:
        difference = show(row.difference, signed=True) if row.difference else "–"
        cells = (
            row.task, row.language or "all", NAMES.get(row.metric, row.metric), show(row.base), show(row.adapted),
            difference, str(row.records),
        )  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def show(value: dict | None, *, signed: bool = False) -> str:
    """A value with its interval where it has one."""
    if value is None:
        return "–"
    number = f"{value['value']:+.3f}" if signed else f"{value['value']:.3f}"
    if "low" not in value:
        return number
    sign = "+" if signed else ""
    return f"{number} [{value['low']:{sign}.3f}, {value['high']:{sign}.3f}]"


def eval_results(rows: list[Measured]) -> list[Any]:
    """Rows as the Hub's EvalResults; the interval and the base stand in `metric_args`.

    https://github.com/huggingface/hub-docs/blob/main/modelcard.md
    """
    from huggingface_hub import EvalResult

    from mlx_hybrid.governance.folder.card import card_code

    return [
        EvalResult(
            task_type="text-classification" if row.metric in CLASSIFICATION else "text-generation",
            dataset_type=row.task.replace(" ", "-"), dataset_name=row.task,
            dataset_config=row.language or None,
            dataset_args={"language": card_code(row.language)} if row.language and ">" not in row.language else None,
            metric_type=row.metric, metric_name=NAMES.get(row.metric, row.metric),
            metric_value=round(row.adapted["value"], 6), metric_args=arguments(row),
        )
        for row in rows
    ]  # fmt: skip


def arguments(row: Measured) -> dict:
    values: dict[str, Any] = {"records": row.records}
    if "low" in row.adapted:
        values |= {"level": LEVEL, "low": round(row.adapted["low"], 6), "high": round(row.adapted["high"], 6)}
    if row.base:
        values["base"] = round(row.base["value"], 6)
    if row.difference:
        values["difference"] = {
            k: round(row.difference[k], 6) for k in ("value", "low", "high") if k in row.difference
        }
    return values


CHANGES = {
    "trained_base": "leaving the base that was trained on", "truncation": "truncating the rank",
    "rounding": "rounding the weights",
}  # fmt: skip


def measured_on(export: dict) -> str:
    """Which model the results are of, where the files of an export are not quite it; nothing where they are."""
    checks = export.get("checks", {})
    changes = [
        f"{name} {checks[key]['kl_nats_per_token']:.2g}" for key, name in CHANGES.items() if checks.get(key)
    ]
    text = "Measured with the adapter on the base it was trained on."
    text += f" These files differ from that, KL in nats a token: {', '.join(changes)}." if changes else ""
    text += f" **Their own check failed**: {'; '.join(export['faults'][:3])}." if export.get("faults") else ""
    return text if changes or export.get("faults") else ""
