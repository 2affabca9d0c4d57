"""Cells to means over seeds, intervals and differences: everything that a comparison's tables and figures show."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from statistics import median

import numpy as np

from mlx_hybrid.adapters.layer import STATE_LEAVES
from mlx_hybrid.adapters.targets import last_part
from mlx_hybrid.config import Config
from mlx_hybrid.evaluation.results import ALL, BASE, Results, Row
from mlx_hybrid.files import read_header
from mlx_hybrid.records.files import Sources
from mlx_hybrid.records.record import as_source, load_records
from mlx_hybrid.run import Run
from mlx_hybrid.study.data import FILES
from mlx_hybrid.study.differences import Column, Key, add_differences, errors_of, figures
from mlx_hybrid.study.plan import Cell, Plan
from mlx_hybrid.study.seeds import mean_over_seeds
from mlx_hybrid.training.data import apart_from_held_out, governed
from mlx_hybrid.training.recording import mixing

FORMAT = 2
SUMMARY_FILE = "summary.json"
ASKED = ("task", "version", "kind", "records", "languages")
PLANNED = ("pivot", "limit", "methods", "governance", "reference", "noise", "variants")


def summarise(
    plan: Plan, base: Results, results: Mapping[Cell, Results], runs: Mapping[Cell, Run], **facts: object
) -> dict:
    """The plan's terms, `facts`, one row a method, governance setting and metric, and what the figures need."""
    tables: dict[Column, list[Results]] = {}
    trained: dict[Column, list[Run]] = {}
    for cell, own in results.items():
        tables.setdefault((cell.method, cell.governance), []).append(own)
        trained.setdefault((cell.method, cell.governance), []).append(runs[cell])
    rows = base_rows(base)
    for column, own in tables.items():
        rows += mean_rows(column, [figures(r) for r in own])
        rows += mean_rows(column, [footprint(run) for run in trained[column]])
    add_differences(rows, tables, base, plan)
    own_runs = {method: trained[method, plan.governance[0]] for method in plan.methods}
    answers = {BASE: base} | {method: tables[method, plan.governance[0]][0] for method in plan.methods}
    bins = {name: own.facts.get("reliability", {}).get("model") for name, own in answers.items()}
    notes = [note for own in (base, *results.values()) for note in own.facts.get("notes", [])]
    return {
        "format": FORMAT,
        **{key: base.facts[key] for key in ASKED},
        **{key: getattr(plan, key) for key in PLANNED},
        "seeds": list(range(plan.seeds)),
        **facts,
        "notes": list(dict.fromkeys(notes)),
        "mixing": {m: row for m, own in own_runs.items() if (row := mean_mixing(own))},
        "curves": {method: curves(own) for method, own in own_runs.items()},
        "reliability": {name: own for name, own in bins.items() if own},
        "rows": rows,
    }


def base_rows(base: Results) -> list[dict]:
    """The base as it is: it has no seed, so its interval is over examples alone."""
    marks = {"model": BASE, "governance": "", "seeds": 0}
    bounded = (
        own if own.low is not None else replace(own, low=own.value, high=own.value)
        for own in figures(base).values()
    )
    return [asdict(own) | marks for own in bounded]


def mean_rows(column: Column, tables: Sequence[Mapping[Key, Row]]) -> list[dict]:
    """A row a metric that all seeds have, with every seed's value."""
    rows = []
    for key in (key for key in tables[0] if all(key in table for table in tables)):
        own = [table[key] for table in tables]
        values = [row.value for row in own]
        mean = mean_over_seeds(values, errors_of(own))
        del mean["p"]  # that the mean is zero, which nobody asks
        rows.append(asdict(own[0]) | dict(zip(("model", "governance"), column)) | mean | {"values": values})
    return rows


def footprint(run: Run) -> dict[Key, Row]:
    """Trainable parameters, peak memory, seconds a step, tokens a second, seconds of training."""
    rows = [row for row in run.metrics() if "seconds" in row]
    shapes = read_header(run.adapter / "adapters.safetensors").shapes
    values = {
        "trainable": sum(math.prod(s) for name, s in shapes.items() if last_part(name) not in STATE_LEAVES),
        "peak_memory_gb": max(row["peak_memory_gb"] for row in rows),
        "step_seconds": rows[-1]["seconds"] / rows[-1]["step"],
        "tokens_per_second": median(row["tokens_per_second"] for row in rows),
        "train_seconds": rows[-1]["seconds"],
    }
    return {(name, ALL, ""): Row(name, value=value) for name, value in values.items()}


def governed_counts(config: Config, data: Path) -> dict[str, int]:
    """What a cell's governance keeps of the training records, and of those the planted ones."""
    train, valid, test = (as_source(data / name) for name in FILES)
    records = load_records(train)
    kept, *_ = governed(apart_from_held_out(config, Sources((train,), (valid,), (test,))), (train,))
    planted = [sum("planted" in r.fields for r in part) for part in (records, kept)]
    return {"records": len(records), "kept": len(kept), "planted": planted[0], "planted_kept": planted[1]}


def mean_mixing(runs: Sequence[Run]) -> dict[str, list] | None:
    """λ by module, the mean over training and seeds; None where nothing is mixed."""
    mixed = [mixing(run) for run in runs]
    if not mixed[0][0]:
        return None
    return {"modules": mixed[0][0], "value": np.mean([own.mean(1) for _, _, own in mixed], 0).tolist()}


def curves(runs: Sequence[Run]) -> list[list]:
    """Validation loss by step, one line a seed."""
    key = "valid_loss_nats_per_token"
    return [[(row["step"], row[key]) for row in run.metrics() if key in row] for run in runs]
