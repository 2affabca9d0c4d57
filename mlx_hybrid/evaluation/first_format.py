"""A run's `held-out.json` of format 1 as rows, so that the report and card of an older run stay whole."""

from collections.abc import Iterator
from typing import Any

from mlx_hybrid.evaluation.results import ADAPTED, ALL, BASE, DIFFERENCE, Results, Row

SIDES = {"base": BASE, "adapted": ADAPTED, "gain": DIFFERENCE, "difference": DIFFERENCE}
NESTED = ("format", "loss_nats_per_token", "accuracy", "accuracy_by_language")


def from_first_format(tree: dict[str, Any]) -> Results | None:
    """The rows of scores nested by metric, language and model; None for anything else."""
    if not tree.keys() & {"loss_nats_per_token", "accuracy_by_language"}:
        return None
    kind = "classification" if "accuracy" in tree else "conversation"
    facts = {key: value for key, value in tree.items() if key not in NESTED}
    facts |= {"task": "held-out records", "version": 1, "limit": 0, "kind": kind}
    return Results(facts, tuple(rows_of(tree)))


def rows_of(tree: dict) -> Iterator[Row]:
    places = [("loss", ALL, tree.get("loss_nats_per_token"), tree["records"])]
    places.append(("accuracy", ALL, tree.get("accuracy"), tree.get("questions", 0)))
    for language, own in tree.get("accuracy_by_language", {}).items():
        places.append(("accuracy", language or "und", own, own.get("questions", 0)))
    for metric, language, own, n in places:
        for key, given in (own or {}).items():
            if key in SIDES:
                value = given if isinstance(given, dict) else {"value": float(given)}
                bounds = value.get("low"), value.get("high")
                groups = value.get("count", 0)
                yield Row(metric, language, "", value["value"], *bounds, n, groups, SIDES[key])
