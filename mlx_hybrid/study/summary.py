"""Cells to rows: means over training seeds, and differences paired by seed and, where examples allow it, by example.

Two things move a figure: which seed trained the model, and which examples stand in the test set. Seeds are repeated and
examples are not, so

    SE² = s² / n + SE²_examples        s² over n seeds; SE_examples from resampled groups of the one test set

s² holds part of the examples' variance too, so the interval errs on the wide side. The bounds are those of Student's
t with Welch and Satterthwaite's degrees of freedom, (n − 1) · (SE² / (s² / n))², since only s² comes from few values.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from operator import itemgetter
from statistics import median

import numpy as np
from scipy.stats import norm, t

from mlx_hybrid.adapters.layer import STATE_LEAVES
from mlx_hybrid.adapters.targets import last_part
from mlx_hybrid.evaluation.metrics.intervals import LEVEL, Columns, bootstrap_ratio
from mlx_hybrid.evaluation.metrics.translation import intervals, score_directions
from mlx_hybrid.evaluation.results import ALL, BASE, Results, Row
from mlx_hybrid.files import read_header
from mlx_hybrid.run import Run
from mlx_hybrid.study.plan import Cell, Plan
from mlx_hybrid.training.recording import mixing

FORMAT = 2
SUMMARY_FILE = "summary.json"
VALIDATION = "valid_loss_nats_per_token"
ASKED = ("task", "version", "kind", "records", "languages")
PLANNED = ("pivot", "limit", "methods", "governance", "reference", "noise", "variants")
TAIL = (1 + LEVEL) / 2
PAIRED = {"accuracy": "right", "nll": "nll_nats", "bits_per_byte": "nats"}
"""Metric: the column of examples that it is made of."""
NO_MEASURES = ("changed", "empty", "ties", "temperature")  # rows that say how a model was measured
RESAMPLES = 2_000
FEWEST = 10
"""Groups from which resampling says how likely a difference is: of two texts its width is next to nothing."""
Key = tuple[str, str, str]  # metric, language, variant
Column = tuple[str, str]  # method, governance


def summarise(
    plan: Plan, base: Results, results: Mapping[Cell, Results], runs: Mapping[Cell, Run], **facts: object
) -> dict:
    """The plan's terms, `facts`, one row a method, governance setting and metric, and what the figures need."""
    columns: dict[Column, list[Cell]] = {}
    for cell in results:
        columns.setdefault((cell.method, cell.governance), []).append(cell)
    tables = {column: [results[cell] for cell in own] for column, own in columns.items()}
    # The base has no seed, so its interval is over examples alone.
    rows = [asdict(own) | {"model": BASE, "governance": "", "seeds": 0} for own in figures(base).values()]
    rows = [row | {end: row["value"] for end in ("low", "high") if row[end] is None} for row in rows]
    rows += (row for column, own in tables.items() for row in mean_rows(column, own))
    add_differences(rows, tables, base, plan)
    first = {method: columns[method, plan.governance[0]] for method in plan.methods}
    answers = {BASE: base} | {method: results[own[0]] for method, own in first.items()}
    bins = {name: own.facts.get("reliability", {}).get("model") for name, own in answers.items()}
    notes = [note for own in (base, *results.values()) for note in own.facts.get("notes", [])]
    shares = {method: [mixing(runs[cell]) for cell in own] for method, own in first.items()}
    mixed = {method: own for method, own in shares.items() if own[0][0]}
    means = {m: np.mean([seed[2].mean(1) for seed in own], 0).tolist() for m, own in mixed.items()}
    return {
        "format": FORMAT,
        **{key: base.facts[key] for key in ASKED},
        **{key: getattr(plan, key) for key in PLANNED},
        "seeds": list(range(plan.seeds)),
        **facts,
        "notes": list(dict.fromkeys(notes)),
        "mixing": {m: {"modules": own[0][0], "value": means[m]} for m, own in mixed.items()},
        "curves": {method: [curve(runs[cell]) for cell in own] for method, own in first.items()},
        "reliability": {name: own for name, own in bins.items() if own},
        "rows": rows,
    }


def mean_rows(column: Column, seeds: Sequence[Results]) -> list[dict]:
    """A row a metric that all seeds have, with every seed's value."""
    rows, names = [], dict(zip(("model", "governance"), column))
    for own in shared_figures(seeds).values():
        values = [row.value for row in own]
        mean = mean_over_seeds(values, errors_of(own))
        del mean["p"]  # that the mean is zero, which nobody asks
        rows.append(asdict(own[0]) | names | mean | {"values": values})
    return rows


def footprint(run: Run) -> list[Row]:
    """Trainable parameters, peak memory, seconds a step, tokens a second, seconds of training."""
    rows = [row for row in run.metrics() if "seconds" in row]
    _, shapes = read_header(run.adapter / "adapters.safetensors")
    values = {
        "trainable": sum(math.prod(s) for name, s in shapes.items() if last_part(name) not in STATE_LEAVES),
        "peak_memory_gb": max(row["peak_memory_gb"] for row in rows),
        "step_seconds": rows[-1]["seconds"] / rows[-1]["step"],
        "tokens_per_second": median(row["tokens_per_second"] for row in rows),
        "train_seconds": rows[-1]["seconds"],
    }
    return [Row(name, value=value) for name, value in values.items()]


def curve(run: Run) -> list[tuple[int, float]]:
    """Validation loss by step."""
    return [(row["step"], row[VALIDATION]) for row in run.metrics() if VALIDATION in row]


def example_error(low: float, high: float) -> float:
    """Standard error of a 95 % interval over examples."""
    return float((high - low) / (2 * norm.ppf(TAIL)))


def mean_over_seeds(values: Sequence[float], errors: Sequence[float] = ()) -> dict[str, float]:
    """Mean of one value a seed (`value`, `seeds`), its interval (`low`, `high`), and `p`, two-sided, that it is zero.
    `errors` are standard errors over examples, of each value or of their mean. One seed gives an interval over examples
    alone, or of no width where there are none; that says nothing of chance, so p is then 1."""
    count = len(values)
    seeds = np.var(values, ddof=1) / count if count > 1 else 0.0
    examples = np.mean(np.square(errors)) if len(errors) else 0.0
    error, mean = math.sqrt(seeds + examples), float(np.mean(values))
    degrees = (count - 1) * ((seeds + examples) / seeds) ** 2 if seeds else math.inf
    reach = float(error * t.ppf(TAIL, degrees))
    p = float(2 * t.sf(abs(mean) / error, degrees) if error else mean == 0 or count == 1)
    return {"value": mean, "low": mean - reach, "high": mean + reach, "seeds": count, "p": p}


def holm(p_values: Sequence[float]) -> list[float]:
    """p adjusted for how many differences are tested at once. Holm 1979, https://www.jstor.org/stable/4615733."""
    order = np.argsort(p_values)
    stepped = np.asarray(p_values)[order] * np.arange(len(order), 0, -1)
    return np.minimum(1, np.maximum.accumulate(stepped))[np.argsort(order)].tolist()


def add_differences(rows: list[dict], tables: dict[Column, list[Results]], base: Results, plan: Plan) -> None:
    """Add to each row its difference from the reference method, from the base, and from the first governance setting;
    p is adjusted over the methods that one metric compares (Holm)."""
    index = {(row["model"], row["governance"], *row_key(row)): row for row in rows}
    for (method, governance), own in tables.items():
        others = {"difference": tables[plan.reference, governance], "from_base": [base] * len(own)}
        others["governed"] = tables[method, plan.governance[0]]
        for name, other in others.items():
            for key, change in (differences(other, own, plan.pivot) if other is not own else {}).items():
                index[method, governance, *key][name] = change
    for name in ("difference", "governed", "from_base"):
        adjust(rows, name)


row_key = itemgetter("metric", "language", "variant")


def figures(results: Results) -> dict[Key, Row]:
    """Every measure of one model."""
    return {r.key: r for r in results.rows if r.metric not in NO_MEASURES}


def shared_figures(seeds: Sequence[Results]) -> dict[Key, list[Row]]:
    """The measures that all seeds have, of each."""
    tables = [figures(own) for own in seeds]
    return {key: [t[key] for t in tables] for key in tables[0] if all(key in table for table in tables)}


def differences(old: Sequence[Results], new: Sequence[Results], pivot: str) -> dict[Key, dict]:
    """New minus old results by metric, over the same seeds and the metrics that all have."""
    before, after = shared_figures(old), shared_figures(new)
    errors = direction_errors(old, new, pivot) if new[0].facts["kind"] == "translation" else {}
    changes = {}
    for key in (key for key in after if key in before):
        metric, language, variant = key
        examples = [[own.facts["examples"] for own in side] for side in (old, new)]
        sides = [[own.get(variant, {}) if variant else own for own in side] for side in examples]
        if key not in errors and PAIRED.get(metric) in sides[0][0]:
            errors[key] = paired_error(*sides, PAIRED[metric], language)
        changes[key] = difference(before[key], after[key], errors.get(key))
    return changes


def difference(before: Sequence[Row], after: Sequence[Row], error: float | None = None) -> dict[str, float]:
    """After minus before over the seeds; `error` is the standard error over examples where they can be paired. Where
    they cannot, the errors of both sides add, which is wider than need be. Where nothing is known over examples, or
    fewer than FEWEST groups were resampled, there is no p: it would say too little."""
    sides = [errors_of(side) for side in (before, after)]
    if error is None and all(sides):
        error = math.sqrt(sum(np.mean(np.square(side)) for side in sides))
    values = [new.value - old.value for old, new in zip(before, after, strict=True)]
    change = mean_over_seeds(values, [error or 0.0])
    if error is None or 0 < after[0].groups < FEWEST:
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
    resampling = {"seed": 0, "samples": RESAMPLES, "groups": [examples["group"][n] for n in own]}
    found = bootstrap_ratio((after - before)[own] / (np.log(2) if in_bits else 1), sizes[own], **resampling)
    return example_error(found.low, found.high)


def direction_errors(old: Sequence[Results], new: Sequence[Results], pivot: str) -> dict[Key, float]:
    """Standard errors over examples of the differences in chrF++, each side a mean over seeds, on the same draws."""
    before, after = ([directions_from(r.facts["examples"]) for r in side] for side in (old, new))
    own = intervals(after, pivot, minus=before)
    parts = {name: name.partition("@") for name in own}
    return {(m, of or ALL, ""): example_error(own[n].low, own[n].high) for n, (m, _, of) in parts.items()}


def directions_from(examples: dict) -> Columns:
    pairs = [tuple(name.split(">")) for name in examples["direction"]]
    table = np.array([row.split() for row in examples["chrf"]], np.int64)
    return score_directions(pairs, examples["group"], table, seed=0)


def adjust(rows: list[dict], name: str) -> None:
    """Add `p_holm` to the differences of this name that have a p."""
    families, other = {}, "model" if name == "governed" else "governance"
    for row in rows:
        if "p" in row.get(name, {}):
            families.setdefault((*row_key(row), row[other]), []).append(row[name])
    for family in families.values():
        for change, p in zip(family, holm([change["p"] for change in family]), strict=True):
            change["p_holm"] = p


def errors_of(own: Sequence[Row]) -> list[float]:
    return [example_error(f.low, f.high) for f in own if f.low is not None]
