"""A record as the model will see it: its tokens, which are trained, and what would be asked before them."""

from dataclasses import dataclass
from itertools import groupby
from typing import Any

from mlx_hybrid.errors import DataError
from mlx_hybrid.records.record import Record
from mlx_hybrid.records.template import SetAside, asked_tokens, make_example


@dataclass(frozen=True)
class Shown:
    """One record, tokenised, or why it is set aside."""

    id: str
    tokens: list[int]
    trained: list[int]
    asked: list[int]
    set_aside: str | None = None
    left_out: str = ""
    """What of the record the template does not write, in words; no part of the JSON."""


def shown(record: Record, tokenizer: Any) -> Shown:
    """The record as training takes it. Raises DataError for a token beyond the model's embedding."""
    try:
        made = make_example(record, tokenizer)
    except SetAside as why:
        return Shown(record.id, [], [], [], str(why))
    except DataError as error:
        raise DataError(f"{record.where}: {error}") from None
    trained, asked = [int(flag) for flag in made.trained], asked_tokens(record, tokenizer)
    return Shown(record.id, made.tokens, trained, asked, left_out=", ".join(made.unwritten))


def stretches(tokens: list[int], trained: list[int], tokenizer: Any) -> list[tuple[str, bool]]:
    """The tokens as text, in stretches that are trained or not."""
    runs = groupby(zip(tokens, trained, strict=True), lambda pair: bool(pair[1]))
    return [(tokenizer.decode([token for token, _ in run]), flag) for flag, run in runs]
