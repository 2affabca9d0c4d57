"""The figures of one cell by name, each with its interval over examples where it has one.

`accuracy`, or `accuracy@swh_Latn` for one language, `drop@lower` for one variant, `chrf@eng_Latn>hau_Latn` for one
direction.
"""

from typing import Any, NamedTuple

import numpy as np

from mlx_hybrid.evaluation.metrics.chrf import measure_name
from mlx_hybrid.run import Run


class Figure(NamedTuple):
    """A value and its 95 % interval over examples; without one the bounds are None."""

    value: float
    low: float | None = None
    high: float | None = None


MEASURES = ("worst", "range", "standard_deviation", "gap_to_pivot")


def figures(results: dict) -> dict[str, Figure]:
    """Every figure of one model's results."""
    own = results["models"]["model"]
    return {"classification": classification, "text": language_modelling, "translation": translation}[
        results["kind"]
    ](own)


def figure(value: Any) -> Figure:
    if isinstance(value, dict):
        return Figure(value["value"], value["low"], value["high"])
    return Figure(float(value))


def classification(own: dict) -> dict[str, Figure]:
    table = {"accuracy": figure(own["accuracy"]), "macro_f1": figure(own["macro_f1"])}
    for state, suffix in (("before", ""), ("after", "_scaled")):
        for name, key in (
            ("nll", "nll_nats"),
            ("brier", "brier"),
            ("ece", "ece_width"),
            ("ece_mass", "ece_mass"),
        ):
            if state in own["calibration"]:
                table[name + suffix] = figure(own["calibration"][state][key])
    for language, row in own["languages"].items():
        table[f"accuracy@{language}"] = figure(row["accuracy"])
        table[f"ece@{language}"] = figure(own["calibration"]["before"]["languages"][language]["ece_width"])
    for name, row in own["variants"].items():
        if "drop" in row:
            table[f"drop@{name}"] = figure(row["drop"])
    return table | spread(own["parity"])


def spread(parity: dict) -> dict[str, Figure]:
    table = {}
    for name in MEASURES:
        value = parity.get("intervals", {}).get(name, parity.get(name))
        if value is not None:
            table[name] = figure(value)
    return table


def language_modelling(own: dict) -> dict[str, Figure]:
    table = {"bits_per_byte": figure(own["bits_per_byte"])}
    table |= {f"bits_per_byte@{name}": figure(row["bits_per_byte"]) for name, row in own["languages"].items()}
    return table | (spread(own["parity"]) if len(own["languages"]) > 1 else {})


def translation(own: dict) -> dict[str, Figure]:
    table = {"chrf": figure(own["mean_chrf"])}
    for name, key in (("chrf_out", "parity_from_pivot"), ("chrf_in", "parity_to_pivot")):
        for measure, value in own.get(key, {}).get("intervals", {}).items():
            table[measure_name(name, measure)] = figure(value)
    table |= {f"chrf@{name}": figure(row["chrf"]) for name, row in own["directions"].items()}
    if "balance" in own:
        bounds = own["balance"]["intervals"]
        table |= {"balance": figure(bounds["mean"]), "balance_size": figure(bounds["mean_size"])}
        table |= {f"balance@{name}": figure(value) for name, value in bounds["languages"].items()}
    if "mean_spbleu" in own:
        rows = {name: figure(row["spbleu"]) for name, row in own["directions"].items()}
        bounds = np.mean(
            [(row.low, row.high) for row in rows.values()], 0
        )  # as wide as if all moved together
        table["spbleu"] = Figure(own["mean_spbleu"], *map(float, bounds))
        table |= {f"spbleu@{name}": row for name, row in rows.items()}
    return table


def footprint(run: Run) -> dict[str, Figure]:
    """Trainable parameters, peak memory, seconds a step, tokens a second, seconds of training."""
    rows = [row for row in run.metrics() if "seconds" in row]
    last = rows[-1]
    return {
        "trainable": Figure(trainable(run)),
        "peak_memory_gb": Figure(max(row["peak_memory_gb"] for row in rows)),
        "step_seconds": Figure(last["seconds"] / last["step"]),
        "tokens_per_second": Figure(float(np.median([row["tokens_per_second"] for row in rows]))),
        "train_seconds": Figure(last["seconds"]),
    }


def trainable(run: Run) -> int:
    """Entries of the trainable leaves, from the header of the adapter's file."""
    import json

    from mlx_hybrid.adapters.layer import STATE_LEAVES

    with (run.adapter / "adapters.safetensors").open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    shapes = {name: row["shape"] for name, row in header.items() if name != "__metadata__"}
    return sum(int(np.prod(s)) for name, s in shapes.items() if name.rsplit(".", 1)[-1] not in STATE_LEAVES)
