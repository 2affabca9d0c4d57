"""The stages and their rules (rules.tsv), and what they go by: lists of words, cues beside a number, patterns."""

import re
import tomllib
from collections.abc import Callable, Collection
from functools import lru_cache, wraps
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import regex

from mlx_hybrid.config import GovernanceConfig, flat
from mlx_hybrid.errors import ConfigError, check_known
from mlx_hybrid.records.languages import UnknownLanguage, parse_language

STAGES = tuple("structure unicode language quality licence personal overlap parallel exact near".split())  # noqa: SIM905
STAGE_OF = dict.fromkeys(("languages", "engine"), "language") | {"licences": "licence", "redact": "personal"}
STAGE_OF |= dict.fromkeys(("against", "overlap_threshold"), "overlap") | {"near_threshold": "near"}
ASKED_FOR = ("lang_not_allowed", "licence_not_allowed")  # what the person excluded is no loss to warn of
APART = regex.compile(r"\(|[\p{Latin}\p{Cyrillic}]")  # how words begin that stand apart
SHORT = 400  # characters
HERE = Path(__file__).parent


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
    """One row of rules.tsv. `limit`, which `counts` explains, is None for a rule that compares with no number;
    `materials` are those of checks/material.py, `all`, or `record`, the record as a whole; `false_rejects` is the
    measured share of good records that it takes (docs/governance.md)."""

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


ROWS, *TABLES = ((HERE / f"{n}.tsv").read_text("utf-8").splitlines() for n in ("rules", "words", "cues"))
RULES = {rule.name: rule for rule in map(read_rule, ROWS[1:])}
WORDS, CUES = (dict(line.split("\t") for line in table) for table in TABLES)
WORDS = {name: frozenset(words.split()) for name, words in WORDS.items()}  # of a language's code its near kin


def in_force(changes: dict[str, Any]) -> dict[str, float]:
    """The rules that run, each with its limit (0 where it has none), after changes as {menu: off, char_run.limit: 80}.
    Raises ConfigError for an unknown rule, naming the nearest, and for a value that a rule cannot have."""
    limits = {name: rule.limit or 0.0 for name, rule in RULES.items()}
    for key, value in flat(changes).items():
        name, _, part = key.partition(".")
        check_known(name, RULES, "governance.rules: unknown rule")
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


def active_stages(config: GovernanceConfig) -> tuple[str, ...]:
    """The stages that a config runs, in order; `structure` always does. Raises ConfigError for a stage, language or
    rule that does not exist, and for a setting whose stage does not run."""
    for key in ("only", "skip"):
        for name in getattr(config, key):
            check_known(name, STAGES, f"governance.{key}: unknown stage")
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
            told = f"governance.{key} would do nothing, for the stage {STAGE_OF[key]} is left out"
            way = "put the stage back (governance.only, governance.skip) or drop the setting"
            raise ConfigError(f"{told}: {way}.")
    return active


def unused_settings(stages: Collection[str]) -> dict[str, Any]:
    """The settings that act in none of these stages, each with its default."""
    return {key: getattr(GovernanceConfig, key) for key, stage in STAGE_OF.items() if stage not in stages}


def patterns(room: str, compiled: Callable = regex.compile) -> SimpleNamespace:
    """The patterns of one room of checks, compiled, by their names."""
    table = tomllib.loads((HERE / "patterns.toml").read_text(encoding="utf-8"))[room]
    for name, words in CUES.items():
        listed = words.replace(", ", "|")
        table = {key: pattern.replace(f"{{{name}}}", listed) for key, pattern in table.items()}
    return SimpleNamespace(**{key: compiled(pattern) for key, pattern in table.items()})


def for_short(judge: Callable) -> Callable:
    """Remember what is found in short texts: system turns, instructions and labels come again in most records."""
    known = lru_cache(4096)(judge)
    return wraps(judge)(lambda text, *how: (known if len(text) <= SHORT else judge)(text, *how))


def said_before(name: str, then: str = "") -> regex.Pattern:
    """A pattern of the words of a row, at their beginnings where words stand apart, and what follows."""
    words = (rf"\b{word}" if APART.match(word) else word for word in CUES[name].split(", "))
    return regex.compile(f"(?:{'|'.join(words)}){then}", regex.IGNORECASE)


MAY_BE = patterns("may_be", re.compile)
