"""The rules that judge records: rules.tsv says of each what it catches, with an example, its limit, and how often it
takes what is good. `governance.rules` switches a rule off or moves its limit.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from mlx_hybrid.errors import ConfigError, nearest


class Rule(NamedTuple):
    """One row of rules.tsv. `limit` is None for a rule that compares with no number."""

    name: str
    stage: str
    rejects: bool
    """False for a rule that only flags."""
    limit: float | None
    counts: str
    """What the limit is a limit of."""
    materials: tuple[str, ...]
    """What of a turn is looked at (checks/material.py), or `all`, or `record` for a rule on a record as a whole."""
    false_rejects: float | None
    """The measured share of good records that it takes (docs/governance.md)."""
    catches: str
    example: str


def read_rules() -> dict[str, Rule]:
    text = Path(__file__).with_name("rules.tsv").read_text(encoding="utf-8")
    rules = {}
    for line in text.splitlines()[1:]:
        name, stage, does, limit, counts, materials, rate, catches, example = line.split("\t")
        numbers = [float(cell) if cell else None for cell in (limit, rate)]
        rules[name] = Rule(
            name,
            stage,
            does == "rejects",
            numbers[0],
            counts,
            tuple(materials.split()),
            numbers[1],
            catches,
            example,
        )
    return rules


RULES = read_rules()


def in_force(changes: Mapping[str, Any]) -> dict[str, float]:
    """The rules that run, each with its limit (0 where it has none), after changes as {menu: off, char_run.limit: 80}.

    Raises ConfigError for an unknown rule, naming the nearest, and for a value that a rule cannot have.
    """
    changes = dict(flat(changes))
    limits = {name: rule.limit or 0.0 for name, rule in RULES.items()}
    for key, value in changes.items():
        name, _, part = key.partition(".")
        rule = RULES.get(name)
        if not rule:
            raise ConfigError(f'governance.rules: unknown rule "{name}"; {nearest(name, RULES)}')
        if part == "limit" and rule.limit is not None and is_number(value) and value > 0:
            limits[name] = float(value)
        elif part or value not in ("on", "off", True, False) or is_number(value):
            ways = f"{name}: off" + (f", or {name}.limit: a number above 0" if rule.limit is not None else "")
            raise ConfigError(f"governance.rules.{key} cannot be {value!r}; write {ways}.")
    switched_off = [key for key, value in changes.items() if value in ("off", False) and "." not in key]
    return {name: limit for name, limit in limits.items() if name not in switched_off}


def flat(changes: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """{long_token: {limit: 80}} as long_token.limit: 80."""
    for name, value in changes.items():
        yield from (
            ((f"{name}.{k}", v) for k, v in value.items()) if isinstance(value, Mapping) else [(name, value)]
        )


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
