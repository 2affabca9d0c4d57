"""What every setting means: the text under its field, read from the source."""

import ast
import dataclasses
import difflib
import inspect
import math
from collections.abc import Iterator, Mapping
from functools import cache
from itertools import pairwise
from typing import Any, get_args, get_origin

from mlx_hybrid.config.convert import KINDS, field_types, flat, groups_of, to_tree
from mlx_hybrid.config.formats import ALIASES
from mlx_hybrid.config.idle import idle_settings
from mlx_hybrid.config.reading import build_config
from mlx_hybrid.config.settings import Config

TAKES = KINDS | {tuple: "a list, as a,b", dict: "names with values"}
MAIN = ("model.name", "method", "data.paths", "adapter.low_rank.rank", "adapter.rotation.reflections")
MAIN += ("adapter.targets", *(f"train.{key}" for key in ("epochs", "steps", "batch_size", "max_tokens")))
MAIN += ("train.learning_rate", "seed")


@dataclasses.dataclass(frozen=True)
class Setting:
    """One setting by its whole key, of a group's kind where there are several."""

    key: str
    hint: Any
    default: Any
    meaning: str
    bounds: Mapping[str, Any]

    @property
    def usual(self) -> str:
        """The default, as `--set` takes it."""
        return as_given(self.default)

    @property
    def takes(self) -> str:
        """What values it may have."""
        kind = get_origin(self.hint) or self.hint
        told = TAKES.get(kind) or f"one of {', '.join(get_args(self.hint))}"
        if not self.bounds:
            return told
        most = f" and at most {self.bounds['most']}" if math.isfinite(self.bounds["most"]) else ""
        return f"{told}, at least {self.bounds['least']}{most}"

    @property
    def others(self) -> list[str]:
        """What other programs call it."""
        return [name for name, key in ALIASES.items() if key == self.key]

    def facts(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("key", "default", "takes", "meaning", "others")}


def as_given(value: Any) -> str:
    """A value as `--set` takes it."""
    if isinstance(value, list | tuple):
        return ",".join(value) or "[]"
    if isinstance(value, float):
        return f"{value:g}"
    return str(value).lower() if isinstance(value, bool) else str(value) or '""'


@cache
def settings() -> dict[str, Setting]:
    """Every setting by its whole key, in the order they are written down."""
    found: dict[str, Setting] = {}
    for setting in walk(Config, ""):
        found.setdefault(setting.key, setting)
    return found


def walk(group: type, above: str) -> Iterator[Setting]:
    texts, hints = meanings(group), field_types(group)
    for field in dataclasses.fields(group):
        key, hint = above + field.name, hints[field.name]
        for kind in (inner := groups_of(hint)):
            yield from walk(kind, f"{key}.")
        if not inner:
            default = field.default_factory() if callable(field.default_factory) else field.default
            yield Setting(key, hint, default, texts[field.name], field.metadata)


def meanings(group: type) -> dict[str, str]:
    """The text under each field of a group."""
    return {
        field.target.id: " ".join(text.value.value.split())
        for field, text in pairwise(ast.parse(inspect.getsource(group)).body[0].body)
        if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr)
    }


def meant(word: str) -> str | None:
    """The setting that a word means by its last part, whoever calls it so; None where nothing is near. A setting's own
    name comes before others' names, and a name as it stands before one that is only near."""
    word = word.lower().strip("-").replace("-", "_").rpartition(".")[2]
    names: Mapping[str, str] = {**ALIASES, **{key.rpartition(".")[2]: key for key in reversed(settings())}}
    near = [word] if word in names else difflib.get_close_matches(word, names, n=1, cutoff=0.75)
    return names[near[0]] if near else None


def absurd(config: Config) -> list[str]:
    """A warning for every value far beyond what ever trains well."""
    known, values = settings(), flat(to_tree(config))
    sane = {key: known[key].bounds.get("sane") for key in values if key in known}
    return [
        f"{key} is {values[key]:g}, and beyond {most:g} hardly anything is learnt well; is it meant?"
        for key, most in sane.items()
        if most and values[key] > most
    ]


def chosen(config: Config) -> dict[str, str]:
    """The settings that decide most, and every other that is not its method's usual one, as `--set` takes them."""
    usual = flat(to_tree(build_config({"method": config.method}, "preset")))
    idle = {*idle_settings(config), *([] if config.train.steps else ["train.steps"])}
    values = {key: value for key, value in flat(to_tree(config)).items() if key not in idle}
    changed = [key for key, value in values.items() if value != usual.get(key) and key not in MAIN]
    told = {key: values[key] for key in (*MAIN, *changed) if values.get(key) not in (None, [], "")}
    return {key: as_given(value) for key, value in told.items()}
