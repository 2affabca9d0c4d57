"""From a record to the tokens it trains: every answer as it is asked for (conversation.py), of plain text every token.

`Tokenizer` (models/tokenizer.py) says how texts begin and end.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from hashlib import sha256
from itertools import groupby
from typing import Any

from mlx_hybrid.errors import DataError
from mlx_hybrid.records.conversation import Conversation, plain_turns, tools_of
from mlx_hybrid.records.masking import Masked, SetAside, closed, text_tokens, tokenise
from mlx_hybrid.records.record import Record


@dataclass(frozen=True)
class Example:
    """One record as tokens; `trained[i]` says whether token i is learnt."""

    tokens: list[int]
    trained: list[bool]
    where: str
    language: str
    text_bytes: int
    context_answers: int = 0
    """Answers that are context only: the template writes them otherwise than it asks for them."""
    unwritten: tuple[str, ...] = ()
    """What the template leaves out: reasoning, tools, system turn."""
    weights: tuple[float, ...] = ()
    """What each token's loss counts, where some of the prompt is learnt a little too; 1 or 0 by `trained` otherwise."""
    digest: str = ""
    """sha256 of the record's fields: what a run is known by, whatever date its template writes."""
    label: str = ""

    @property
    def trained_count(self) -> int:
        """Targets: a first token is never one."""
        return sum(self.trained[1:])


@dataclass
class Tokenised:
    """The examples of some records, and what became of the others."""

    examples: list[Example] = field(default_factory=list)
    long: list[str] = field(default_factory=list)
    aside: list[tuple[str, str]] = field(default_factory=list)
    """(where, why) of records that cannot be trained as they would be asked."""


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
        shown = ", ".join(made.long[:5]) + (" …" if len(made.long) > 5 else "")
        count = "1 record is" if len(made.long) == 1 else f"{len(made.long)} records are"
        raise DataError(
            f"{count} over the limit of {max_tokens} tokens: {shown}; "
            "raise train.max_tokens, or set train.too_long to drop or truncate."
        )
    return made


def cut(example: Example, max_tokens: int) -> Example:
    """The first tokens; a cut text or answer gets no end."""
    tokens, trained = example.tokens[:max_tokens], example.trained[:max_tokens]
    return replace(example, tokens=tokens, trained=trained)


def make_example(record: Record, tokenizer: Any) -> Example:
    """One record as tokens and mask; SetAside if it cannot be trained, DataError for a token beyond the embedding."""
    turns, wanted = plain_turns(record, tokenizer)
    if turns and not wanted:
        raise SetAside("every answer is empty, or marked as not to be trained (weight, train or training)")
    if turns:
        made = masked(turns, wanted, tools_of(record), tokenizer)
    else:
        made = text_tokens(record.fields["text"], tokenizer)
    if not any(made.trained[1:]):
        raise SetAside("no token is left to train on")
    return Example(
        tokenizer.checked(made.tokens),
        made.trained,
        record.where,
        record.language or "",
        made.text_bytes,
        len(wanted) - made.answers if turns else 0,
        made.unwritten,
        digest=sha256(json.dumps(record.fields, sort_keys=True).encode()).hexdigest(),
        label=str(record.fields.get("label") or ""),
    )


def asked_tokens(record: Record, tokenizer: Any) -> list[int]:
    """What chat would send before the record's first trained token; nothing for plain text."""
    turns, wanted = plain_turns(record, tokenizer)
    if turns and tokenizer.has_chat_template:
        first = Conversation(turns, tools_of(record), tokenizer).spans(wanted)[0][0]
        return tokenizer.ask(turns[:first], tools=tools_of(record))
    return tokenizer.continued(turns[0]["content"]) if turns else []


def question_tokens(record: Record, tokenizer: Any) -> list[int]:
    """What chat would send before the record's last answer."""
    turns = plain_turns(record, tokenizer)[0][:-1]
    if tokenizer.has_chat_template:
        return tokenizer.ask(turns, tools=tools_of(record))
    return tokenizer.continued(turns[-1]["content"])


def answers_to(record: Record, answers: Iterable[str], tokenizer: Any) -> tuple[list[int], list[list[int]]]:
    """What is asked before the record's last answer, and each of some answers in its place, with its end, as tokens;
    DataError where the template does not write one as it asks for it."""
    *before, last = plain_turns(record, tokenizer)[0]
    asked, tools = question_tokens(record, tokenizer), tools_of(record)
    found = []
    for answer in answers:
        made = masked([*before, {**last, "content": answer}], [len(before)], tools, tokenizer)
        begin = made.trained.index(True)
        if made.tokens[:begin] != asked:
            raise DataError(f"{record.where}: the answer {answer!r} does not follow its question as asked.")
        end = len(made.trained) - made.trained[::-1].index(True)
        found.append(tokenizer.checked(made.tokens)[begin:end])
    return asked, found


def masked(turns: list[dict], wanted: list[int], tools: list[dict] | None, tokenizer: Any) -> Masked:
    """A conversation in the model's chat template; for a model without one, a prompt and its completion as they are."""
    if tokenizer.has_chat_template:
        return Conversation(turns, tools, tokenizer).masked(wanted)
    texts = [turn.get("content") for turn in turns]
    if len(turns) != 2 or not all(isinstance(text, str) for text in texts) or turns[1].get("tool_calls"):
        raise SetAside("the model has no chat template, so only a prompt and its answer as text can be used")
    prompt, answer = texts
    if found := tokenizer.control_token_in(tokenizer.bare(prompt)) or tokenizer.control_token_in(answer):
        raise SetAside(
            f"its text holds the control token {found}, which a model without a chat template would not read as "
            "text; a record with `text` may hold it"
        )
    parts = [(tokenizer.once(prompt), False), (answer, True)]
    made = tokenise(parts, tokenizer, tokenizer.continued(prompt))
    left_out = {"reasoning": turns[1].get("reasoning_content"), "the tools": tools}
    missing = tuple(name for name, value in left_out.items() if value)
    return closed(*made, tokenizer, len(answer.encode()), unwritten=missing)


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


def stretches(tokens: list[int], trained: list[int], tokenizer: Any) -> list[tuple[str, bool]]:
    """The tokens as text, in stretches that are trained or not."""
    runs = groupby(zip(tokens, trained, strict=True), lambda pair: bool(pair[1]))
    return [(tokenizer.decode([token for token, _ in run]), flag) for flag, run in runs]
