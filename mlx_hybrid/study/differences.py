"""Differences between the columns of a comparison, paired by seed and, where examples allow it, by example."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mlx_hybrid.evaluation.metrics.intervals import Columns, bootstrap_ratio
from mlx_hybrid.evaluation.metrics.translation import intervals, score_directions
from mlx_hybrid.evaluation.results import ALL, Results, Row
from mlx_hybrid.study.plan import Plan
from mlx_hybrid.study.seeds import difference_over_seeds, example_error, holm

PAIRED = {"accuracy": "right", "nll": "nll_nats", "bits_per_byte": "nats"}
"""Metric: the column of examples that it is made of."""
NO_MEASURES = ("changed", "empty", "ties", "temperature")
"""Rows that say how a model was measured."""
RESAMPLES = 2_000
Key = tuple[str, str, str]  # metric, language, variant
Column = tuple[str, str]  # method, governance


def add_differences(
    rows: list[dict], tables: Mapping[Column, list[Results]], base: Results, plan: Plan
) -> None:
    """Add to each row its difference from the reference method, from the base, and from the first governance setting.

    p is adjusted over the methods that one metric compares (Holm).
    """
    index = {(row["model"], row["governance"], *row_key(row)): row for row in rows}
    for (method, governance), own in tables.items():
        others = {
            "difference": tables[plan.reference, governance],
            "governed": tables[method, plan.governance[0]],
            "from_base": [base] * len(own),
        }
        for name, other in others.items():
            if other is not own:
                for key, change in differences(other, own, plan.pivot).items():
                    index[method, governance, *key][name] = change
    for name in ("difference", "governed", "from_base"):
        adjust(rows, name)


def row_key(row: Mapping[str, Any]) -> Key:
    return row["metric"], row["language"], row["variant"]


def figures(results: Results) -> dict[Key, Row]:
    """Every measure of one model."""
    return {r.key: r for r in results.rows if r.metric not in NO_MEASURES}


def differences(old: Sequence[Results], new: Sequence[Results], pivot: str) -> dict[Key, dict]:
    """New minus old results by metric, over the seeds that both have and the metrics that all have."""
    count = min(len(old), len(new))
    old, new = old[:count], new[:count]
    before, after = ([figures(r) for r in side] for side in (old, new))
    shared = [key for key in after[0] if all(key in table for table in (*before, *after))]
    errors = direction_errors(old, new, pivot) if new[0].facts["kind"] == "translation" else {}
    for key in shared:
        sides = [[examples_of(r, key[2]) for r in side] for side in (old, new)]
        if key not in errors and PAIRED.get(key[0]) in sides[0][0]:
            errors[key] = paired_error(*sides, PAIRED[key[0]], key[1])
    return {
        key: difference([t[key] for t in before], [t[key] for t in after], errors.get(key)) for key in shared
    }


def examples_of(results: Results, variant: str) -> dict:
    """Columns of what a figure of this variant is made of, record by record; nothing where they are not kept."""
    examples = results.facts["examples"]
    return examples if not variant else examples.get(variant, {})


def difference(before: Sequence[Row], after: Sequence[Row], error: float | None = None) -> dict[str, float]:
    """After minus before over the seeds; `error` is the standard error over examples where they can be paired.

    Where they cannot, the errors of both sides add, which is wider than need be. Where nothing is known over examples
    there is no p: seeds alone say too little.
    """
    sides = [errors_of(side) for side in (before, after)]
    if error is None and all(sides):
        error = float(np.sqrt(sum(np.mean(np.square(side)) for side in sides)))
    change = difference_over_seeds([row.value for row in before], [row.value for row in after], error or 0.0)
    if error is None:
        del change["p"]
    return change


def paired_error(old: Sequence[dict], new: Sequence[dict], column: str, language: str = ALL) -> float:
    """Standard error over resampled groups of the mean difference, each example's averaged over seeds first."""
    examples = new[0]
    after, before = (np.mean([r[column] for r in side], 0) for side in (new, old))
    in_bits = column == "nats"
    sizes = np.array(examples["bytes"], float) if in_bits else np.ones(len(after))
    of_language = np.array([language in (ALL, name) for name in examples["language"]])
    own = np.flatnonzero(of_language & (sizes > 0))  # of a text of one token nothing may be predicted
    change = (after - before)[own] / (np.log(2) if in_bits else 1)
    resampling = {"seed": 0, "samples": RESAMPLES, "groups": [examples["group"][n] for n in own]}
    found = bootstrap_ratio(change, sizes[own], **resampling)
    return example_error(found.low, found.high)


def direction_errors(old: Sequence[Results], new: Sequence[Results], pivot: str) -> dict[Key, float]:
    """Standard errors over examples of the differences in chrF++, each side a mean over seeds, on the same draws."""
    before, after = ([directions_from(r.facts["examples"]) for r in side] for side in (old, new))
    errors = {}
    for name, change in intervals(after, pivot, minus=before).items():
        metric, _, language = name.partition("@")
        errors[metric, language or ALL, ""] = example_error(change.low, change.high)
    return errors


def directions_from(examples: dict) -> Columns:
    pairs = [tuple(name.split(">")) for name in examples["direction"]]
    table = np.array([row.split() for row in examples["chrf"]], np.int64)
    return score_directions(pairs, examples["group"], table, seed=0)


def adjust(rows: list[dict], name: str) -> None:
    """Add `p_holm` to the differences of this name that have a p."""
    families: dict[tuple, list[dict]] = {}
    for row in rows:
        if "p" in row.get(name, {}):
            family = *row_key(row), row["model" if name == "governed" else "governance"]
            families.setdefault(family, []).append(row[name])
    for family in families.values():
        for change, p in zip(family, holm([change["p"] for change in family]), strict=True):
            change["p_holm"] = p


def errors_of(own: Sequence[Row]) -> list[float]:
    return [example_error(f.low, f.high) for f in own if f.low is not None]
