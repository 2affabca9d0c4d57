"""The stages and their rules: rules.tsv says of each rule what it catches, and how often it takes what is good."""

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from mlx_hybrid.config import GovernanceConfig
from mlx_hybrid.errors import ConfigError, nearest
from mlx_hybrid.records.languages import UnknownLanguage, parse_language

STAGES = tuple("structure unicode language quality licence personal overlap parallel exact near".split())  # noqa: SIM905
STAGE_OF = dict.fromkeys(("languages", "engine"), "language") | {"licences": "licence", "redact": "personal"}
STAGE_OF |= dict.fromkeys(("against", "overlap_threshold"), "overlap") | {"near_threshold": "near"}
"""The stage in which a setting acts."""
ASKED_FOR = ("lang_not_allowed", "licence_not_allowed")  # what the person excluded is no loss to warn of


class Finding(NamedTuple):
    """What one rule says of one record: a reason code and the numbers behind it."""

    reason: str
    detail: str = ""


class Decision(NamedTuple):
    """Why a record goes: the stage, a reason code, the numbers, and the record it repeats or leaks."""

    stage: str
    reason: str
    detail: str = ""
    match: str = ""


class Rule(NamedTuple):
    """One row of rules.tsv. `limit` is None for a rule that compares with no number, which `counts` explains.

    `materials` is what of a turn is looked at (checks/material.py), or `all`, or `record` for a rule on a record as a
    whole. `false_rejects` is the measured share of good records that it takes (docs/governance.md).
    """

    name: str
    stage: str
    rejects: bool
    limit: float | None
    counts: str
    materials: tuple[str, ...]
    false_rejects: float | None
    catches: str
    example: str


def read_rule(line: str) -> Rule:
    name, stage, does, limit, counts, materials, rate, *told = line.split("\t")
    number, share = (float(cell) if cell else None for cell in (limit, rate))
    return Rule(name, stage, does == "rejects", number, counts, tuple(materials.split()), share, *told)


LINES = Path(__file__).with_name("rules.tsv").read_text(encoding="utf-8").splitlines()[1:]
RULES = {rule.name: rule for rule in map(read_rule, LINES)}


def in_force(changes: Mapping[str, Any]) -> dict[str, float]:
    """The rules that run, each with its limit (0 where it has none), after changes as {menu: off, char_run.limit: 80}.

    Raises ConfigError for an unknown rule, naming the nearest, and for a value that a rule cannot have.
    """
    limits = {name: rule.limit or 0.0 for name, rule in RULES.items()}
    for key, value in flat(changes):
        name, _, part = key.partition(".")
        if name not in RULES:
            raise ConfigError(f'governance.rules: unknown rule "{name}"; {nearest(name, RULES)}')
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        limited = RULES[name].limit is not None
        if part == "limit" and limited and is_number and value > 0:
            limits |= {name: float(value)} if name in limits else {}
        elif part or is_number or value not in ("on", "off", True, False):
            ways = f"{name}: off" + (f", or {name}.limit: a number above 0" if limited else "")
            raise ConfigError(f"governance.rules.{key} cannot be {value!r}; write {ways}.")
        elif value in ("off", False):
            limits.pop(name, None)
    return limits


def flat(changes: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """{long_token: {limit: 80}} as long_token.limit: 80."""
    for name, value in changes.items():
        inside = value if isinstance(value, Mapping) else {"": value}
        yield from ((f"{name}.{part}".rstrip("."), limit) for part, limit in inside.items())


def active_stages(config: GovernanceConfig) -> tuple[str, ...]:
    """The stages that a config runs, in order; `structure` always does, for a line that is no record stays out.

    Raises ConfigError for a stage, language or rule that does not exist, and for a setting whose stage does not run.
    """
    for key in ("only", "skip"):
        for name in getattr(config, key):
            if name not in STAGES:
                raise ConfigError(f'governance.{key}: unknown stage "{name}"; {nearest(name, STAGES)}')
    try:
        for name in config.languages:
            parse_language(name)
    except UnknownLanguage as error:
        raise ConfigError(f"governance.languages: {error}") from None
    in_force(config.rules)
    wanted = {*(config.only or STAGES)} - {*config.skip} | {"structure"}
    active = tuple(name for name in STAGES if name in wanted)
    for key, default in unused_settings(active).items():
        if getattr(config, key) != default:
            raise ConfigError(
                f"governance.{key} would do nothing, for the stage {STAGE_OF[key]} is left out: put the stage back "
                "(governance.only, governance.skip) or drop the setting."
            )
    return active


def unused_settings(stages: Collection[str]) -> dict[str, Any]:
    """The settings that act in none of these stages, each with its default."""
    defaults = GovernanceConfig()
    return {key: getattr(defaults, key) for key, stage in STAGE_OF.items() if stage not in stages}
