"""The stages by name and order, and the decision that one of them takes on a record."""

from collections.abc import Collection
from typing import Any, NamedTuple

from mlx_hybrid.config import GovernanceConfig
from mlx_hybrid.errors import ConfigError, nearest
from mlx_hybrid.governance.rules import in_force
from mlx_hybrid.records.languages import UnknownLanguage, parse_language

STAGES = (
    *("structure", "unicode", "language", "quality", "licence"),
    *("personal", "overlap", "parallel", "exact", "near"),
)
STAGE_OF = {
    "languages": "language",
    "engine": "language",
    "licences": "licence",
    "redact": "personal",
    "against": "overlap",
    "overlap_threshold": "overlap",
    "near_threshold": "near",
}
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


def active_stages(config: GovernanceConfig) -> tuple[str, ...]:
    """The stages that a config runs, in order; `structure` always does, for a line that is no record stays out.

    Raises ConfigError for a stage, language or share that does not exist, and for a setting whose stage does not run.
    """
    for key in ("only", "skip"):
        for name in getattr(config, key):
            if name not in STAGES:
                raise ConfigError(f'governance.{key}: unknown stage "{name}"; {nearest(name, STAGES)}')
    for name in config.languages:
        try:
            parse_language(name)
        except UnknownLanguage as error:
            raise ConfigError(f"governance.languages: {error}") from None
    for key in ("near_threshold", "overlap_threshold", "max_reject_share"):
        value = getattr(config, key)
        if not 0 < value <= 1:
            raise ConfigError(f"governance.{key} must be above 0 and at most 1, not {value}.")
    for key in ("workers", "min_kept"):
        if getattr(config, key) < 0:
            raise ConfigError(f"governance.{key} must be at least 0, not {getattr(config, key)}.")
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
