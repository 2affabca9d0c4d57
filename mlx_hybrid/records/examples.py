"""Tokenise records into training examples: of a conversation the answers are trained (loss_mask.py), of text all.

`Tokenizer` (models/tokenizer.py) says how texts begin and end.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from hashlib import sha256
from typing import Any

from mlx_hybrid.errors import DataError
from mlx_hybrid.records.loss_mask import Conversation, Example, SetAside
from mlx_hybrid.records.record import Record


@dataclass
class Tokenised:
    """The examples of some records, and what became of the others."""

    examples: list[Example] = field(default_factory=list)
    long: list[str] = field(default_factory=list)
    aside: list[tuple[str, str]] = field(default_factory=list)  # (where, why) of those not trained as asked


def make_examples(
    records: Iterable[Record], tokenizer: Any, *, max_tokens: int, too_long: str = "error"
) -> Tokenised:
    """Examples of `records`; those over `max_tokens` are dropped or cut, or with `too_long: error` a DataError; those
    that cannot be masked are set aside with their reason."""
    made = Tokenised()
    for record in records:
        try:
            example = make_example(record, tokenizer)
            if len(example.tokens) > max_tokens:
                made.long.append(f"{example.where} ({len(example.tokens)} tokens)")
                if too_long != "truncate":
                    continue
                example = cut(example, max_tokens)
                if not example.trained_count:
                    raise SetAside(f"no token is left to train on within {max_tokens}")
            made.examples.append(example)
        except SetAside as why:
            made.aside.append((record.where, str(why)))
        except DataError as error:
            raise DataError(f"{record.where}: {error}") from None
    if made.long and too_long == "error":
        first = ", ".join(made.long[:5]) + (" …" if len(made.long) > 5 else "")
        count = "1 record is" if len(made.long) == 1 else f"{len(made.long)} records are"
        way = "raise train.max_tokens, or set train.too_long to drop or truncate"
        raise DataError(f"{count} over the limit of {max_tokens} tokens: {first}; {way}.")
    return made


def cut(example: Example, max_tokens: int) -> Example:
    """The first tokens; a cut text or answer gets no end."""
    return replace(example, tokens=example.tokens[:max_tokens], trained=example.trained[:max_tokens])


def make_example(record: Record, tokenizer: Any) -> Example:
    """One record as tokens and mask; SetAside if it cannot be trained, DataError for a token beyond the embedding."""
    talk = Conversation.of(record, tokenizer)
    if talk.turns and not talk.wanted:
        raise SetAside("every answer is empty, or marked as not to be trained (weight, train or training)")
    if talk.turns:
        made = talk.masked()
    else:  # trained from its first token on, but for what the tokenizer puts before it
        bare, tokens = tokenizer.bare(record.fields["text"]), tokenizer.document(record.fields["text"])
        if not bare.strip():
            raise SetAside("the text is empty but for its beginning and end")
        begin = len(tokenizer.begun([]))
        made = Example(tokens, [i >= begin for i in range(len(tokens))])
    if not made.trained_count:
        raise SetAside("no token is left to train on")
    told = {"where": record.where, "language": record.language or "", "label": str(record.label or "")}
    digest = sha256(json.dumps(record.fields, sort_keys=True).encode()).hexdigest()
    return replace(made, tokens=tokenizer.checked(made.tokens), digest=digest, **told)


def asked_tokens(record: Record, tokenizer: Any) -> list[int]:
    """What chat would send before the record's first trained token; nothing for plain text."""
    talk = Conversation.of(record, tokenizer)
    first = talk.spans()[0][0] if talk.turns and tokenizer.has_chat_template else 1
    return talk.before(first) if talk.turns else []


def question_tokens(record: Record, tokenizer: Any) -> list[int]:
    """What chat would send before the record's last answer."""
    return Conversation.of(record, tokenizer).before(-1)


def answers_to(record: Record, answers: Iterable[str], tokenizer: Any) -> tuple[list[int], list[list[int]]]:
    """What is asked before the record's last answer, and each of some answers in its place, with its end, as tokens;
    DataError where the template does not write one as it asks for it."""
    talk, found = Conversation.of(record, tokenizer), []
    *before, last = talk.turns
    asked = talk.before(len(before))
    for answer in answers:
        made = replace(talk, turns=[*before, {**last, "content": answer}], wanted=[len(before)]).masked()
        begin = made.trained.index(True)
        if made.tokens[:begin] != asked:
            raise DataError(f"{record.where}: the answer {answer!r} does not follow its question as asked.")
        end = len(made.trained) - made.trained[::-1].index(True)
        found.append(tokenizer.checked(made.tokens)[begin:end])
    return asked, found


def shown(record: Record, tokenizer: Any) -> tuple[dict[str, Any], str]:
    """The record as training takes it, by the keys of `records --json`, and what the template does not write of it."""
    told = {"id": record.id, "tokens": [], "trained": [], "asked": [], "set_aside": None}
    try:
        made = make_example(record, tokenizer)
    except SetAside as why:
        return told | {"set_aside": str(why)}, ""
    except DataError as error:
        raise DataError(f"{record.where}: {error}") from None
    trained, asked = [int(flag) for flag in made.trained], asked_tokens(record, tokenizer)
    return told | {"tokens": made.tokens, "trained": trained, "asked": asked}, ", ".join(made.unwritten)
