"""Cells to means over seeds, intervals and differences: everything that a comparison's tables and figures show."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from mlx_hybrid.config import Config
from mlx_hybrid.evaluation.compare_metrics import Figure, figures, footprint, mixing
from mlx_hybrid.evaluation.compare_plan import Cell, Plan
from mlx_hybrid.evaluation.intervals import bootstrap_mean, bootstrap_ratio
from mlx_hybrid.evaluation.seeds import SeedMean, difference_over_seeds, example_error, holm, mean_over_seeds
from mlx_hybrid.training.run import Run

FORMAT = 1
PAIRED = {"accuracy": "right", "nll": "nll_nats"}  # metric: the column of examples it is the mean of
RESAMPLES = 2_000
BASE = "base"
Column = tuple[str, str]  # method, governance


def summarise(
    plan: Plan, base: dict, results: Mapping[Cell, dict], runs: Mapping[Cell, Run], *, grid: list[dict],
    chosen: dict[str, float], sizes: dict, configs: Mapping[str, Config], data: Path,
) -> dict:  # fmt: skip
    """One row a method, governance setting and metric, and what the figures need."""
    columns: dict[Column, list[Cell]] = {}
    for cell in results:
        columns.setdefault((cell.method, cell.governance), []).append(cell)
    tables = {column: [results[cell] for cell in cells] for column, cells in columns.items()}
    rows = base_rows(base)
    for column, own in tables.items():
        rows += metric_rows(column, [figures(r) for r in own], [footprint(runs[c]) for c in columns[column]])
    compare_with(rows, tables, base, plan)
    return {
        "format": FORMAT, "task": base["task"], "version": base["version"], "kind": base["kind"],
        "records": base["records"], "languages": base["languages"], "pivot": plan.pivot, "limit": plan.limit,
        "methods": list(plan.methods), "governance": list(plan.governance), "reference": plan.reference,
        "seeds": list(plan.seed_numbers()), "budget": plan.budget, "noise": plan.noise, "variants": list(plan.variants),
        "grid": grid, "chosen": chosen, "sizes": sizes, "rows": rows,
        "governed": {g: governed_counts(own, data) for g, own in configs.items() if plan.noise or len(configs) > 1},
        "mixing": {m: row for m in plan.methods if (row := mean_mixing(own_runs(columns, runs, m, plan)))},
        "curves": {m: curves(own_runs(columns, runs, m, plan)) for m in plan.methods},
        "reliability": reliability(plan, tables, base),
    }  # fmt: skip


def own_runs(
    columns: Mapping[Column, list[Cell]], runs: Mapping[Cell, Run], method: str, plan: Plan
) -> list[Run]:
    return [runs[cell] for cell in columns[method, plan.governance[0]]]


def base_rows(base: dict) -> list[dict]:
    """The base as it is: it has no seed, so its interval is over examples alone."""
    rows = []
    for metric, own in figures(base).items():
        low, high = (own.value, own.value) if own.low is None else (own.low, own.high)
        rows.append(
            {
                "method": BASE,
                "governance": "",
                "metric": metric,
                "seeds": 0,
                "value": own.value,
                "low": low,
                "high": high,
            }
        )
    return rows


def metric_rows(column: Column, measured: Sequence[dict], prints: Sequence[dict]) -> list[dict]:
    rows = []
    for tables in (measured, prints):
        for metric in tables[0]:
            own = [table[metric] for table in tables if metric in table]
            mean = mean_over_seeds([f.value for f in own], errors_of(own))
            rows.append({"method": column[0], "governance": column[1], "metric": metric, **plain(mean)})
            rows[-1]["values"] = [f.value for f in own]
    return rows


def errors_of(own: Sequence[Figure]) -> list[float]:
    return [example_error(f.low, f.high) for f in own if f.low is not None]


def plain(mean: SeedMean) -> dict[str, Any]:
    row = asdict(mean)
    if row["p"] is None:
        del row["p"]
    return row


def compare_with(rows: list[dict], tables: Mapping[Column, list[dict]], base: dict, plan: Plan) -> None:
    """Add to each row its difference from the reference method, from the base, and from the first governance setting.

    p is adjusted over the methods that one metric compares (Holm).
    """
    measured = {column: [figures(r) for r in own] for column, own in tables.items()}
    index = {(row["method"], row["governance"], row["metric"]): row for row in rows}
    plain_base = figures(base)
    for column, own in tables.items():
        method, governance = column
        for metric in measured[column][0]:
            row = index[method, governance, metric]
            others = {"difference": (plan.reference, governance), "governed": (method, plan.governance[0])}
            for key, other in others.items():
                if other != column:
                    row[key] = difference(metric, measured[other], measured[column], tables[other], own)
            if metric in plain_base:
                count = len(own)
                row["from_base"] = difference(
                    metric, [plain_base] * count, measured[column], [base] * count, own
                )
    for key in ("difference", "governed", "from_base"):
        adjust(rows, key)


def adjust(rows: list[dict], key: str) -> None:
    families: dict[tuple, list[dict]] = {}
    for row in rows:
        if key in row:
            family = row["metric"], (row["method"] if key == "governed" else row["governance"])
            families.setdefault(family, []).append(row)
    for family in families.values():
        adjusted = holm({str(number): row[key]["p"] for number, row in enumerate(family)})
        for number, row in enumerate(family):
            row[key]["p_holm"] = adjusted[str(number)]


def difference(
    metric: str, before: Sequence[dict], after: Sequence[dict], old: Sequence[dict], new: Sequence[dict]
) -> dict:
    """After minus before over the seeds both have. Where a metric is a mean of examples these are paired; for others
    the errors of both sides add, which is wider than need be."""
    count = min(len(before), len(after))
    values = [[table[metric].value for table in side[:count]] for side in (before, after)]
    name, _, language = metric.partition("@")
    if name in PAIRED and PAIRED[name] in old[0]["examples"]:
        error = paired_error(old[:count], new[:count], PAIRED[name], language)
    elif name == "bits_per_byte":
        error = paired_error(old[:count], new[:count], "nats", language)
    else:
        sides = [
            np.mean(np.square(errors_of([t[metric] for t in side[:count]]) or [0.0]))
            for side in (before, after)
        ]
        error = float(np.sqrt(sum(sides)))
    return plain(difference_over_seeds(*values, error))


def paired_error(old: Sequence[dict], new: Sequence[dict], column: str, language: str) -> float:
    """Standard error over resampled groups of the mean difference, each example's averaged over seeds first."""
    examples = new[0]["examples"]
    inside = [n for n, name in enumerate(examples["language"]) if language in ("", name)]
    change = np.mean([r["examples"][column] for r in new], 0) - np.mean(
        [r["examples"][column] for r in old], 0
    )
    groups = [examples["group"][n] for n in inside]
    if column == "nats":
        sizes = np.array(examples["bytes"], float)[inside]
        interval = bootstrap_ratio(
            change[inside] / np.log(2), sizes, seed=0, samples=RESAMPLES, groups=groups
        )
    else:
        interval = bootstrap_mean(change[inside], seed=0, samples=RESAMPLES, groups=groups)
    return example_error(interval.low, interval.high)


def governed_counts(config: Config, data: Path) -> dict[str, int]:
    """What a governance setting keeps of the training records, and of those the planted ones."""
    from mlx_hybrid.governance.pipeline import govern_records
    from mlx_hybrid.governance.records import load_records

    records = load_records([data / "train.jsonl"])
    kept = govern_records(records, config.governance).kept if config.governance.enabled else records
    planted = [sum("planted" in r.fields for r in part) for part in (records, kept)]
    return {"records": len(records), "kept": len(kept), "planted": planted[0], "planted_kept": planted[1]}


def mean_mixing(runs: Sequence[Run]) -> dict[str, list] | None:
    """Mean λ over seeds by module, and its interval."""
    named = [mixing(run) for run in runs]
    if not named[0][0]:
        return None
    table = np.array([values for _, values in named])
    means = [mean_over_seeds(column) for column in table.T]
    return {
        "modules": named[0][0], "value": [m.value for m in means], "low": [m.low for m in means],
        "high": [m.high for m in means],
    }  # fmt: skip


def curves(runs: Sequence[Run]) -> dict[str, list]:
    """Validation loss by step, one line a seed."""
    lines = [
        [
            (row["step"], row["valid_loss_nats_per_token"])
            for row in run.metrics()
            if "valid_loss_nats_per_token" in row
        ]
        for run in runs
    ]
    return {"valid_loss": lines}


def reliability(plan: Plan, tables: Mapping[Column, list[dict]], base: dict) -> dict[str, list]:
    """Bins of the reliability diagram of the base and of each method's first seed."""
    if base["kind"] != "classification":
        return {}
    first = {BASE: base} | {m: tables[m, plan.governance[0]][0] for m in plan.methods}
    return {name: r["models"]["model"]["calibration"]["before"]["reliability"] for name, r in first.items()}
