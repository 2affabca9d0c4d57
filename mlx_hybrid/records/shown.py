"""A record as the model will see it: its tokens, which are trained, and what would be asked before them."""

from dataclasses import dataclass
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
        example = make_example(record, tokenizer)
    except SetAside as why:
        return Shown(record.id, [], [], [], str(why))
    except DataError as error:
        raise DataError(f"{record.where}: {error}") from None
    asked = asked_tokens(record, tokenizer)
    trained = [int(flag) for flag in example.trained]
    return Shown(record.id, example.tokens, trained, asked, left_out=", ".join(example.unwritten))


def stretches(tokens: list[int], trained: list[int], tokenizer: Any) -> list[tuple[str, bool]]:
    """The tokens as text, in stretches that are trained or not."""
    found: list[tuple[list[int], bool]] = []
    for token, flag in zip(tokens, trained, strict=True):
        if not found or found[-1][1] != bool(flag):
            found.append(([], bool(flag)))
        found[-1][0].append(token)
    return [(tokenizer.decode(part), flag) for part, flag in found]
