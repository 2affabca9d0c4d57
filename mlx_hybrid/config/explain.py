"""What every setting means: the text under its field, read from the source."""

import ast
import dataclasses
import difflib
import inspect
from collections.abc import Iterator, Mapping
from functools import cache
from itertools import pairwise
from typing import Any

from mlx_hybrid.config.aliases import ALIASES
from mlx_hybrid.config.convert import field_types, groups_of
from mlx_hybrid.config.settings import Config


@dataclasses.dataclass(frozen=True)
class Setting:
    """One setting by its whole key, of a group's kind where there are several."""

    key: str
    hint: Any
    default: Any
    meaning: str
    bounds: Mapping[str, Any]


@cache
def settings() -> dict[str, Setting]:
    """Every setting by its whole key, in the order they are written down."""
    return {setting.key: setting for setting in walk(Config, "")}


def walk(group: type, above: str) -> Iterator[Setting]:
    texts, hints = meanings(group), field_types(group)
    for field in dataclasses.fields(group):
        key, hint = above + field.name, hints[field.name]
        if inner := groups_of(hint):
            for kind in inner:
                yield from walk(kind, f"{key}.")
        else:
            default = field.default_factory() if callable(field.default_factory) else field.default
            yield Setting(key, hint, default, texts[field.name], field.metadata)


def meanings(group: type) -> dict[str, str]:
    """The text under each field of a group."""
    body = ast.parse(inspect.getsource(group)).body[0].body
    return {
        field.target.id: " ".join(text.value.value.split())
        for field, text in pairwise(body)
        if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr)
    }


def meant(word: str) -> str | None:
    """The setting that a word means by its last part, whoever calls it so; None where nothing is near.

    A setting's own name comes before others' names, and a name as it stands before one that is only near.
    """
    word = word.lower().strip("-").replace("-", "_").rpartition(".")[2]
    names: Mapping[str, str] = {**ALIASES, **{key.rpartition(".")[2]: key for key in reversed(settings())}}
    near = [word] if word in names else difflib.get_close_matches(word, names, n=1, cutoff=0.75)
    return names[near[0]] if near else None
