"""From records to tokens and a mask of the trained ones.

Every assistant turn is trained, its end-of-turn token too, and nothing else; of plain text, every token. Where a turn
stands in the rendered conversation is found with sentinels in place of contents, so that templates that add thinking
tags or drop them from older turns cannot shift the mask.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

from mlx_hybrid.errors import DataError
from mlx_hybrid.records.record import Record

SHOWN_FAULTS = 5


@dataclass(frozen=True)
class Example:
    """One record as tokens; `trained[i]` says whether token i is learnt."""

    tokens: list[int]
    trained: list[bool]
    where: str
    language: str
    text_bytes: int

    @property
    def trained_count(self) -> int:
        """Targets: a first token is never one."""
        return sum(self.trained[1:])


@dataclass(frozen=True)
class Segment:
    """A stretch of rendered text, trained or not."""

    text: str
    trained: bool


def make_examples(
    records: Iterable[Record], tokenizer: Any, *, max_tokens: int, too_long: str = "error"
) -> tuple[list[Example], int]:
    """Examples of `records`, and how many were over `max_tokens`: dropped or cut as `too_long` says.

    Raises one DataError that gathers every record without a trained token and, where `too_long` is error, too long.
    """
    examples, faults, long = [], [], []
    for record in records:
        try:
            example = make_example(record, tokenizer)
            if len(example.tokens) > max_tokens:
                long.append(f"{example.where} ({len(example.tokens)} tokens)")
                if too_long != "truncate":
                    continue
                example = cut(example, max_tokens)
            if not example.trained_count:
                raise DataError(f"{record.where}: no token is left to train on.")
            examples.append(example)
        except DataError as error:
            faults.append(str(error))
    more = [f"… and {len(faults) - SHOWN_FAULTS} more records."] if len(faults) > SHOWN_FAULTS else []
    told = faults[:SHOWN_FAULTS] + more
    if long and too_long == "error":
        told.append(describe_long(long, max_tokens))
    if told:
        raise DataError(" ".join(told))
    return examples, len(long)


def cut(example: Example, max_tokens: int) -> Example:
    return replace(example, tokens=example.tokens[:max_tokens], trained=example.trained[:max_tokens])


def describe_long(long: list[str], max_tokens: int) -> str:
    shown = ", ".join(long[:SHOWN_FAULTS]) + (" …" if len(long) > SHOWN_FAULTS else "")
    count = "1 record is" if len(long) == 1 else f"{len(long)} records are"
    return (
        f"{count} over the limit of {max_tokens} tokens: {shown}; "
        "raise train.max_tokens, or set train.too_long to drop or truncate."
    )


def make_example(record: Record, tokenizer: Any) -> Example:
    """One record as tokens and mask."""
    segments = record_segments(record, tokenizer)
    tokens, trained = tokenise_segments(segments, tokenizer)
    text_bytes = sum(len(s.text.encode()) for s in segments if s.trained)
    return Example(tokens, trained, record.where, record.language or "", text_bytes)


def record_segments(record: Record, tokenizer: Any) -> list[Segment]:
    """The record's text in the model's template, cut where training begins and ends."""
    begin, end = tokenizer.bos_token or "", tokenizer.eos_token or ""
    turns = record.turns()
    if record.kind == "text":
        return [Segment(begin, False), Segment(record.fields["text"] + end, True)]
    if getattr(tokenizer, "chat_template", None) or getattr(tokenizer, "has_chat_template", False):
        return conversation_segments(record, turns, tokenizer)
    if len(turns) != 2:
        raise DataError(
            f"{record.where}: the model has no chat template, so only prompt and completion can be used."
        )
    return [Segment(begin + turns[0]["content"], False), Segment(turns[1]["content"] + end, True)]


def conversation_segments(record: Record, turns: list[dict], tokenizer: Any) -> list[Segment]:
    render = renderer(tokenizer, record.fields.get("tools"), record.where)
    text = render(turns)
    spans = content_spans(turns, text, render, record.where)
    ends = end_markers(tokenizer)
    segments, cursor = [], 0
    for number, turn in enumerate(turns):
        if turn["role"] != "assistant":
            continue
        begin, end = spans.get(number) or opening(turns, number, text, render, record.where)
        gap = text[end : min((b for b, _ in spans.values() if b >= end), default=len(text))]
        marker = min((m for m in ends if m in gap), key=gap.index, default=None)
        end += gap.index(marker) + len(marker) if marker else 0
        segments += [Segment(text[cursor:begin], False), Segment(text[begin:end], True)]
        cursor = end
    return [s for s in [*segments, Segment(text[cursor:], False)] if s.text]


def renderer(tokenizer: Any, tools: Any, where: str) -> Callable[..., str]:
    def render(turns: list[dict], opened: bool = False) -> str:
        """The conversation as text; `opened`, with the beginning of an answer."""
        try:
            return tokenizer.apply_chat_template(
                turns, tools=tools, tokenize=False, add_generation_prompt=opened
            )
        except Exception as error:  # templates raise whatever their author chose
            raise DataError(
                f"{where}: the model's chat template refuses the conversation ({error})."
            ) from None

    return render


def end_markers(tokenizer: Any) -> list[str]:
    """Texts of the tokens that end a turn."""
    ids = getattr(tokenizer, "eos_token_ids", None) or [tokenizer.eos_token_id]
    ids = [ids] if isinstance(ids, int) else ids
    named = {tokenizer.eos_token, *(tokenizer.convert_ids_to_tokens(i) for i in ids if i is not None)}
    return [marker for marker in named if marker]


def content_spans(turns: list[dict], text: str, render: Callable, where: str) -> dict[int, tuple[int, int]]:
    """Where contents stand in `text`, by turn: or only the assistant's, where others are rewritten."""
    spoken = [number for number, turn in enumerate(turns) if turn.get("content")]
    answers = [number for number in spoken if turns[number]["role"] == "assistant"]
    for numbers in (spoken, answers):
        spans = sentinel_spans(turns, numbers, text, render)
        if spans is not None:
            return spans
    return search_spans(turns, answers, text, where)


def sentinel_spans(
    turns: list[dict], numbers: list[int], text: str, render: Callable
) -> dict[int, tuple[int, int]] | None:
    """Where the contents of some turns stand in `text`, or None where the template does more than insert them, stripped
    or not."""
    marks = {number: f"\u2045{number}\u2046" for number in numbers}
    frame = render([{**turn, "content": marks.get(n, turn.get("content"))} for n, turn in enumerate(turns)])
    if any(frame.count(mark) != 1 for mark in marks.values()):
        return None
    for clean in (str, str.strip):
        pieces, spans, cursor, rest = [], {}, 0, frame
        for number, mark in marks.items():
            content = clean(turns[number]["content"])
            before, _, rest = rest.partition(mark)
            cursor += len(before)
            spans[number] = (cursor, cursor + len(content))
            cursor += len(content)
            pieces += [before, content]
        if "".join(pieces) + rest == text:
            return spans
    return None


def search_spans(turns: list[dict], answers: list[int], text: str, where: str) -> dict[int, tuple[int, int]]:
    """Where the assistant's contents stand, for templates that write some anew; where each has one place only."""
    spans, cursor = {}, 0
    for number in answers:
        content = turns[number]["content"].strip()
        if text.count(content, cursor) != 1:
            raise DataError(
                f"{where}: the model's chat template changes the text of turn {number + 1}, so it cannot be masked."
            )
        begin = text.index(content, cursor)
        cursor = begin + len(content)
        spans[number] = (begin, cursor)
    return spans


def opening(turns: list[dict], number: int, text: str, render: Callable, where: str) -> tuple[int, int]:
    """Where an answer without content, a tool call, begins: after the turns before it and an answer's opening."""
    before = render(turns[:number], opened=True)
    if not text.startswith(before):
        raise DataError(
            f"{where}: the model's chat template does not show where turn {number + 1} begins, so it cannot be masked."
        )
    return len(before), len(before)


def tokenise_segments(segments: list[Segment], tokenizer: Any) -> tuple[list[int], list[bool]]:
    """Tokens and mask. Segments are tokenised one by one, as generation meets them, where that spells the same text;
    where it does not (tokenizers that add a leading space), the whole is tokenised and tokens are placed by offset."""
    encode = lambda text: tokenizer.encode(text, add_special_tokens=False)  # noqa: E731
    parts = [encode(segment.text) for segment in segments]
    tokens = [token for part in parts for token in part]
    text = "".join(segment.text for segment in segments)
    whole = encode(text)
    if tokens == whole or tokenizer.decode(tokens) == tokenizer.decode(whole):
        trained = [s.trained for s, part in zip(segments, parts, strict=True) for _ in part]
        return tokens, trained
    return whole, trained_by_offset(segments, text, tokenizer)


def trained_by_offset(segments: list[Segment], text: str, tokenizer: Any) -> list[bool]:
    inner = tokenizer if callable(tokenizer) else tokenizer._tokenizer  # mlx-lm's wrapper cannot be called
    offsets = inner(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    spans, cursor = [], 0
    for segment in segments:
        if segment.trained:
            spans.append((cursor, cursor + len(segment.text)))
        cursor += len(segment.text)
    return [any(begin <= (a + b) / 2 < end for begin, end in spans) and b > a for a, b in offsets]
