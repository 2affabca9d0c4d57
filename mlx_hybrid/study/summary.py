"""Cells to means over seeds, intervals and differences: everything that a comparison's tables and figures show."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from mlx_hybrid.config import Config
from mlx_hybrid.records.files import Sources
from mlx_hybrid.run import Run
from mlx_hybrid.study.data import FILES
from mlx_hybrid.study.differences import Column, compare_with, errors_of, plain
from mlx_hybrid.study.figures import figures, footprint
from mlx_hybrid.study.plan import Cell, Plan
from mlx_hybrid.study.seeds import mean_over_seeds
from mlx_hybrid.training.recording import mixing

FORMAT = 1
BASE = "base"
SUMMARY_FILE = "summary.json"


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
        "notes": notes([base, *results.values()]),
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
        for metric in (m for m in tables[0] if all(m in table for table in tables)):
            own = [table[metric] for table in tables]
            mean = mean_over_seeds([f.value for f in own], errors_of(own))
            rows.append({"method": column[0], "governance": column[1], "metric": metric, **plain(mean)})
            rows[-1]["values"] = [f.value for f in own]
    return rows


def notes(results: Sequence[dict]) -> list[str]:
    """What a figure is missing for, each told once."""
    models = [r["models"]["model"] for r in results]
    return list(dict.fromkeys(model["spbleu_missing"] for model in models if "spbleu_missing" in model))


def governed_counts(config: Config, data: Path) -> dict[str, int]:
    """What a cell's governance keeps of the training records, and of those the planted ones."""
    from mlx_hybrid.records.record import as_source, load_records
    from mlx_hybrid.training.data import apart_from_held_out, governed

    train, valid, test = (as_source(data / name) for name in FILES)
    records = load_records(train)
    kept, _ = governed(apart_from_held_out(config, Sources((train,), (valid,), (test,))), (train,))
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
