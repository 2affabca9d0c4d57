"""Every setting, its default and its meaning; YAML in, YAML out.

Configs are frozen, keyword-only and strict: an unknown key is an error that names the nearest known one. They stop
at the door: inner functions take plain values.
"""

import contextlib
import dataclasses
import math
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from mlx_hybrid.errors import ConfigError, nearest


@dataclass(frozen=True, kw_only=True)
class AdapterConfig:
    """What is trained. Left out, a value comes from the preset that `method` names (docs/method.md)."""

    orthogonal: Literal["none", "householder", "butterfly"] = "householder"
    """Which orthogonal branch rotates a layer's input."""
    reflections: int = 8
    """Householder: how many reflections, an even number."""
    block_size: int = 8
    """Butterfly: features rotated together by one factor, an even number."""
    factors: int = 4
    """Butterfly: how many factors; the dense block is block_size · 2^(factors − 1) and must divide the inputs."""
    rank: int = 8
    """Columns of the low-rank update; 0 leaves it out."""
    alpha: float = 16.0
    """Low-rank scale: s = alpha / √rank with rslora, else alpha / rank."""
    rslora: bool = True
    """Rank-stabilised scale (Kalajdzievski 2023, arXiv 2312.03732)."""
    start: Literal["zeros", "gradient", "lora-ga"] = "gradient"
    """Where the low-rank update starts: at zero, with A along the gradient, or as LoRA-GA (docs/method.md)."""
    start_records: int = 64
    """Training records whose gradient a start other than zeros is taken from."""
    start_passes: int = 4
    """Passes over those records: 2 finds fast-decaying gradients, 4 slow ones too; an even number."""
    start_oversampling: int = 16
    """Columns of the sketch beyond twice the rank."""
    dropout: float = 0.0
    """Dropout on the input of the low-rank update."""
    magnitude: bool = False
    """Train each output's magnitude apart (DoRA); a baseline, without an orthogonal branch."""
    mixing: Literal["gradient", "fixed", "off"] = "gradient"
    """How a layer's step is shared between its two branches: by gradient norms, half and half, or not at all."""
    unitary: tuple[str, ...] = ()
    """Sub-layers that carry the rotation alone, so that they keep their singular values."""
    targets: tuple[str, ...] = ("dense",)
    """Modules to adapt, by the last part of their name; `dense` is every dense projection."""
    layers: int = 0
    """Adapt the last N transformer layers; 0 is all."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How it is trained."""

    epochs: float = 3.0
    """Passes over the training data; ignored when `steps` is set."""
    steps: int = 0
    """Optimiser steps; 0 lets `epochs` decide."""
    batch_size: int = 8
    """Records in one forward pass."""
    accumulate: int = 1
    """Forward passes in one optimiser step."""
    learning_rate: float = 5e-4
    """Peak learning rate of the low-rank branch, and of all weights with `full`."""
    orthogonal_learning_rate: float = 5e-4
    """Peak learning rate of the orthogonal branch."""
    warmup: float = 0.05
    """Share of the steps in which the rate rises from zero."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """How the rate falls after the warm-up."""
    weight_decay: float = 0.0
    """AdamW's decay of the low-rank branch; rotations are never decayed."""
    clip: float = 1.0
    """Largest norm of the whole gradient; 0 does not clip."""
    max_tokens: int = 1024
    """Longest record, in tokens."""
    too_long: Literal["error", "drop", "truncate"] = "error"
    """What to do with a record over `max_tokens`."""
    grad_checkpoint: bool = False
    """Recompute activations in the backward pass: slower, far less memory."""
    validate_every: int = 0
    """Steps between validations; 0 is ten times a run."""
    report_every: int = 10
    """Steps between reports."""
    save_every: int = 0
    """Steps between checkpoints; 0 saves at each validation."""
    compile: Literal["auto", "on", "off"] = "auto"
    """Compile the training step; auto does on a GPU (on the CPU each fused kernel costs a run of the C++ compiler)."""


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where the records are and how they are split."""

    paths: tuple[str, ...] = ()
    """JSONL files, a folder with train/valid/test.jsonl, or a Hub data set; `samples` is the bundled data."""
    valid: tuple[str, ...] = ()
    """Files to validate on; empty holds back `valid_share` of the records."""
    test: tuple[str, ...] = ()
    """Files to evaluate on; empty holds back `test_share` of the records."""
    valid_share: float = 0.1
    """Share of records held back to choose the best adapter."""
    test_share: float = 0.1
    """Share of records held back to measure base against adapter."""
    group: str = "group"
    """Records with the same value under this key are held back together (translations, one premise)."""
    allow_changed: bool = False
    """Train on governed files even where they are no longer what their manifest says."""


@dataclass(frozen=True, kw_only=True)
class GovernanceConfig:
    """Which checks the records pass before training (docs/governance.md)."""

    enabled: bool = True
    """Off trains on the records as they are."""
    languages: tuple[str, ...] = ()
    """Keep only these languages (BCP-47, ISO 639 or FLORES codes); empty keeps all."""
    licences: tuple[str, ...] = ()
    """Keep only records whose `licence` is one of these; empty keeps all."""
    only: tuple[str, ...] = ()
    """Run only these stages (docs/governance.md names them)."""
    skip: tuple[str, ...] = ()
    """Leave out these stages."""
    engine: str = "py3langid"
    """Language identification: `py3langid`, or `fasttext:MODEL` with a path, a preset or a Hub id."""
    near_threshold: float = 0.8
    """Jaccard similarity of character n-grams from which a record repeats another; 0.7 finds looser copies."""
    against: tuple[str, ...] = ()
    """Evaluation files; a record that holds one of their texts is removed, they are never changed."""
    overlap_threshold: float = 0.7
    """Share of an evaluation text's character 13-grams from which a record holds it."""
    outliers: Literal["off", "flag", "reject"] = "off"
    """What to do with text unlike the rest of its language, by a character model learnt from the records."""
    profile: Literal["chat", "web"] = "chat"
    """Rules for short turns, or with `web` also those for pages: line ends, word lengths, repeated lines."""
    redact: bool = False
    """Replace e-mail addresses, phone, card and account numbers, IP addresses and keys by their type."""
    workers: int = 0
    """Processes that read and check; 0 is one a core. The result does not depend on it."""
    max_reject_share: float = 0.3
    """Stop when one stage would take more than this share of a language's records."""
    min_kept: int = 0
    """Stop when a language would be left with fewer records than this; 0 sets no floor."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """One run."""

    model: str = "bundled"
    """Hub id or folder of any model that mlx-lm loads; `bundled` is the small model that comes with the package."""
    method: str = "hybrid"
    """Preset of `adapter`: lora, lora-ga, dora, hra, boft, hybrid, hybrid-boft, hybrid-unitary, or full."""
    name: str = ""
    """Name of the run; empty makes one from the method and the time."""
    seed: int = 0
    """Seed of every random choice."""
    evaluate: bool = True
    """Compare base and adapter on the held-out records after training."""
    data: DataConfig = field(default_factory=DataConfig)
    governance: GovernanceConfig = field(default_factory=GovernanceConfig)
    adapter: AdapterConfig = field(default_factory=AdapterConfig)
    train: TrainConfig = field(default_factory=TrainConfig)


PRESETS: dict[str, dict[str, Any]] = {
    "lora": {"orthogonal": "none", "rank": 16, "start": "zeros", "mixing": "off"},
    "lora-ga": {"orthogonal": "none", "rank": 16, "start": "lora-ga", "mixing": "off"},
    "dora": {"orthogonal": "none", "rank": 16, "start": "zeros", "magnitude": True, "mixing": "off"},
    "hra": {"orthogonal": "householder", "reflections": 16, "rank": 0, "start": "zeros", "mixing": "off"},
    "boft": {
        "orthogonal": "butterfly", "block_size": 8, "factors": 4, "rank": 0, "start": "zeros", "mixing": "off",
    },
    "hybrid": {"orthogonal": "householder", "reflections": 8, "rank": 8, "start": "gradient", "mixing": "gradient"},
    "hybrid-boft": {
        "orthogonal": "butterfly", "block_size": 8, "factors": 4, "rank": 8, "start": "lora-ga", "mixing": "gradient",
    },
    "hybrid-unitary": {
        "orthogonal": "householder", "reflections": 8, "rank": 8, "start": "gradient", "mixing": "gradient",
        "unitary": ("o_proj", "down_proj"),
    },
    "full": {"orthogonal": "none", "rank": 0, "start": "zeros", "mixing": "off"},
}  # fmt: skip


def load_config(
    path: Path | None = None, overrides: tuple[str, ...] = (), values: dict | None = None
) -> Config:
    """A config from a YAML file, then `--set key=value` overrides, then plain `values` from options.

    Raises ConfigError with the file, the key and the nearest known key.
    """
    tree = read_yaml(path) if path else {}
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key:
            raise ConfigError(f"--set {override}: write key=value, as in --set train.epochs=2.")
        try:
            value = parse_scalar(text)
        except yaml.YAMLError:
            raise ConfigError(f"--set {override}: {text} is not a YAML value; quote it.") from None
        set_key(tree, key, value)
    for key, value in (values or {}).items():
        set_key(tree, key, value)
    return build_config(tree, str(path) if path else "options")


def build_config(tree: dict, where: str) -> Config:
    """A Config from a plain tree; presets fill what `adapter` leaves out."""
    method = tree.get("method", "hybrid")
    if not isinstance(method, str) or method not in PRESETS:
        raise ConfigError(f'{where}: unknown method "{method}"; {nearest(str(method), PRESETS)}')
    if not isinstance(tree.get("adapter") or {}, dict):
        raise ConfigError(f"{where}: adapter must be a mapping of keys to values.")
    tree = {**tree, "adapter": {**PRESETS[method], **(tree.get("adapter") or {})}}
    config = build(Config, tree, where, "")
    check(config, where)
    return config


def read_yaml(path: Path) -> dict:
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}).") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not a YAML file ({' '.join(str(error).split())}).") from None
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: must hold keys and values at the top, as in recipes/quickstart.yaml.")
    return tree


def parse_scalar(text: str) -> Any:
    """One value of `--set` as YAML reads it, and 1e-3 as the number it looks like."""
    value = yaml.safe_load(text) if text else ""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


def set_key(tree: dict, key: str, value: Any) -> None:
    *parents, last = key.split(".")
    for parent in parents:
        tree = tree.setdefault(parent, {})
        if not isinstance(tree, dict):
            raise ConfigError(f"--set {key}: {parent} is a value, not a group of keys.")
    tree[last] = value


def build(kind: type, tree: dict, where: str, prefix: str) -> Any:
    """A dataclass from a mapping, every key known and every value of its field's type."""
    fields = {f.name: f for f in dataclasses.fields(kind)}
    hints = typing.get_type_hints(kind)
    values = {}
    for key, value in tree.items():
        if key not in fields:
            raise ConfigError(f'{where}: unknown key "{prefix}{key}"; {nearest(str(key), fields)}')
        hint = hints[key]
        if dataclasses.is_dataclass(hint):
            if not isinstance(value, dict):
                raise ConfigError(f"{where}: {prefix}{key} must be a group of keys, not {value!r}.")
            values[key] = build(hint, value, where, f"{prefix}{key}.")
        else:
            values[key] = convert(value, hint, f"{where}: {prefix}{key}")
    return kind(**values)


def convert(value: Any, hint: Any, where: str) -> Any:
    """`value` as the type a field declares, or a ConfigError."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        value = {True: "on", False: "off"}.get(value, value) if isinstance(value, bool) else value  # YAML 1.1
        if value not in arguments:
            raise ConfigError(f'{where}: "{value}" is not one of {", ".join(arguments)}.')
        return value
    if origin is tuple:
        items = [value] if isinstance(value, str) else value
        if not isinstance(items, list | tuple):
            raise ConfigError(f"{where}: must be a list, not {value!r}.")
        return tuple(convert(item, arguments[0], where) for item in items)
    if isinstance(hint, types.UnionType):
        raise TypeError(f"{where}: config fields have one type each")
    if hint is float and isinstance(value, int | str) and not isinstance(value, bool):
        with contextlib.suppress(ValueError):
            value = float(value)
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{where}: must be a finite number, not {value}.")
    if hint is int and isinstance(value, float) and value.is_integer():
        return int(value)
    if hint is str and isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise ConfigError(f"{where}: must be of type {hint.__name__}, not {value!r}.")
    return value


AT_LEAST = {
    "adapter.reflections": 2, "adapter.block_size": 2, "adapter.factors": 1, "adapter.rank": 0,
    "adapter.start_records": 1, "adapter.start_passes": 2, "adapter.start_oversampling": 0, "adapter.layers": 0,
    "train.batch_size": 1, "train.accumulate": 1, "train.steps": 0, "train.max_tokens": 2,
    "train.validate_every": 0, "train.report_every": 1, "train.save_every": 0, "train.learning_rate": 0,
    "train.orthogonal_learning_rate": 0, "train.weight_decay": 0, "train.clip": 0, "train.epochs": 0,
    "train.warmup": 0, "data.valid_share": 0, "data.test_share": 0, "adapter.dropout": 0, "seed": 0,
}  # fmt: skip
AT_MOST = {"train.warmup": 1, "data.valid_share": 0.5, "data.test_share": 0.5, "adapter.dropout": 0.9}


def check(config: Config, where: str) -> None:
    """Bounds, and settings that contradict each other."""
    for bounds, beyond, word in ((AT_LEAST, float.__lt__, "at least"), (AT_MOST, float.__gt__, "at most")):
        for key, bound in bounds.items():
            value = get_key(config, key)
            if beyond(float(value), float(bound)) or value != value:
                raise ConfigError(f"{where}: {key} must be {word} {bound}, not {value}.")
    adapter = config.adapter
    if adapter.reflections % 2:
        raise ConfigError(
            f"{where}: adapter.reflections is {adapter.reflections}, but reflections come in pairs; "
            f"use {adapter.reflections + 1}."
        )
    if adapter.start_passes % 2:
        raise ConfigError(f"{where}: adapter.start_passes must be even, not {adapter.start_passes}.")
    if adapter.start != "zeros" and adapter.rank == 0:
        raise ConfigError(
            f"{where}: adapter.start {adapter.start} needs a low-rank branch; set adapter.rank."
        )
    if adapter.block_size % 2:
        raise ConfigError(f"{where}: adapter.block_size must be even, not {adapter.block_size}.")
    if adapter.magnitude and (adapter.orthogonal != "none" or adapter.start != "zeros" or not adapter.rank):
        raise ConfigError(
            f"{where}: adapter.magnitude (DoRA) needs a low-rank branch from zeros and no orthogonal branch; "
            "use method dora."
        )
    if adapter.orthogonal == "none" and adapter.unitary:
        raise ConfigError(
            f"{where}: adapter.unitary needs an orthogonal branch; set adapter.orthogonal to householder or butterfly."
        )
    if config.method != "full" and adapter.orthogonal == "none" and adapter.rank == 0:
        raise ConfigError(f"{where}: nothing to train: adapter.rank is 0 and adapter.orthogonal is none.")
    if config.method == "full" and (adapter.orthogonal != "none" or adapter.rank):
        raise ConfigError(f"{where}: method full trains the weights themselves; leave adapter out.")


def get_key(config: Any, key: str) -> Any:
    for part in key.split("."):
        config = getattr(config, part)
    return config


def to_tree(config: Any) -> dict:
    """Plain values in the order of the fields, tuples as lists."""
    return {
        f.name: to_tree(value)
        if dataclasses.is_dataclass(value)
        else list(value)
        if isinstance(value, tuple)
        else value
        for f in dataclasses.fields(config)
        for value in [getattr(config, f.name)]
    }


def dump_config(config: Config) -> str:
    """Every value as YAML; `load_config` of it gives the same config."""
    return yaml.safe_dump(to_tree(config), sort_keys=False, allow_unicode=True)
