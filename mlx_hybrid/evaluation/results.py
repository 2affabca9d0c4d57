"""What an evaluation measured: one tidy row a figure, in one file format."""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from mlx_hybrid.errors import ConfigError
from mlx_hybrid.evaluation.metrics.intervals import Interval
from mlx_hybrid.files import read_json, write_text

FORMAT = 2
ALL = "all"
BASE, ADAPTED, DIFFERENCE = "base", "adapted", "difference"
RETENTION, UNTRAINED = "retention", "retention-untrained"  # variants: text outside the task


@dataclass(frozen=True)
class Row:
    """One figure with its 95 % interval, `low` and `high`, where it has one (docs/formats.md): of `n` records and
    `groups` resampled, of a model or of the paired `difference`, adapted − base."""

    metric: str
    language: str = ALL
    variant: str = ""
    value: float = 0.0
    low: float | None = None
    high: float | None = None
    n: int = 0
    groups: int = 0
    model: str = "model"

    @classmethod
    def of(cls, metric: str, own: Interval, n: int, language: str = ALL, variant: str = "") -> "Row":
        """A row from an interval; `by_model` says of which model."""
        return cls(metric, language, variant, own.value, own.low, own.high, n, own.count)

    @property
    def key(self) -> tuple[str, str, str]:
        return self.metric, self.language, self.variant

    @property
    def settled(self) -> bool:
        """Whether the interval leaves out zero."""
        return self.low is not None and (self.low > 0 or self.high < 0)


@dataclass(frozen=True)
class Results:
    """What was asked and of what (`facts`), and every figure (`rows`)."""

    facts: dict[str, Any]
    rows: tuple[Row, ...]

    @property
    def models(self) -> list[str]:
        """The models measured, in order; a base comes before what is compared with it."""
        return [name for name in dict.fromkeys(row.model for row in self.rows) if name != DIFFERENCE]

    @property
    def columns(self) -> list[str]:
        """The models and, where there are differences, `difference`."""
        return [*self.models, *{row.model for row in self.rows if row.model == DIFFERENCE}]

    def languages(self, metric: str, variant: str = "") -> list[str]:
        """The languages, or directions, with a figure of this metric and variant, in order."""
        own = (row for row in self.rows if (row.metric, row.variant) == (metric, variant))
        return list(dict.fromkeys(row.language for row in own if row.language != ALL))

    def get(self, metric: str, model: str, language: str = ALL, variant: str = "") -> Row | None:
        """The row of one figure, if it was measured."""
        return self._index.get((model, metric, language, variant))

    @cached_property
    def _index(self) -> dict[tuple[str, ...], Row]:
        return {(row.model, *row.key): row for row in reversed(self.rows)}

    def has(self, metric: str) -> bool:
        return any((row.metric, row.variant) == (metric, "") for row in self.rows)

    def tree(self) -> dict[str, Any]:
        return {"format": FORMAT, **self.facts, "rows": [asdict(row) for row in self.rows]}


def by_model(rows: Iterable[Row], model: str) -> list[Row]:
    return [replace(row, model=model) for row in rows]


def write_results(path: Path, results: Results) -> None:
    """Write the file that `read_results` reads, one row a line."""
    head = json.dumps({"format": FORMAT, **results.facts}, indent=2, ensure_ascii=False)
    lines = ",\n".join("    " + json.dumps(asdict(row), ensure_ascii=False) for row in results.rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, f'{head[:-2]},\n  "rows": [\n{lines}\n  ]\n}}\n')


def read_results(path: Path) -> Results:
    """The results in a file, a run's own of format 1 too. Raises ConfigError for any other file."""
    tree = read_json(path)
    facts = dict(tree) if isinstance(tree, dict) else {}
    if facts.pop("format", None) == FORMAT and "rows" in facts:
        return Results(facts, tuple(Row(**row) for row in facts.pop("rows")))
    if facts.keys() & {"loss_nats_per_token", "accuracy_by_language"}:
        return from_first_format(facts)
    raise ConfigError(f"{path}: not a file of results; `mlx-hybrid evaluate` writes them.")


def from_first_format(facts: dict[str, Any]) -> Results:
    """A run's `held-out.json` of format 1, scores nested by metric, language and model, as rows."""
    models = {"base": BASE, "adapted": ADAPTED, "gain": DIFFERENCE, "difference": DIFFERENCE}
    facts |= {"task": "held-out records", "version": 1, "limit": 0}
    facts["kind"] = "classification" if "accuracy" in facts else "conversation"
    loss, accuracy = facts.pop("loss_nats_per_token", None), facts.pop("accuracy", None)
    places = [("loss", ALL, loss, facts["records"]), ("accuracy", ALL, accuracy, facts.get("questions", 0))]
    for language, own in facts.pop("accuracy_by_language", {}).items():
        places.append(("accuracy", language or "und", own, own.get("questions", 0)))
    rows = []
    for metric, language, own, n in places:
        for key in [key for key in own or () if key in models]:
            value = own[key] if isinstance(own[key], dict) else {"value": float(own[key])}
            bounds, groups = (value.get("low"), value.get("high")), value.get("count", 0)
            rows.append(Row(metric, language, "", value["value"], *bounds, n, groups, models[key]))
    return Results(facts, tuple(rows))
