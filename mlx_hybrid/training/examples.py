"""From records to tokens and a mask of the trained ones.

Every assistant turn is trained, its end-of-turn token too, and nothing else; of plain text, every token. Where a turn
stands in the rendered conversation is found with sentinels in place of the contents, so that templates that add thinking
tags or drop them from older turns cannot shift the mask.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from mlx_hybrid.errors import DataError
from mlx_hybrid.governance.records import Record

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
    """Examples of `records`, and how many were dropped for length.

    Raises one DataError that gathers every record without a trained token or, unless `too_long` drops or truncates
    them, over `max_tokens`.
    """
    examples, faults, dropped = [], [], 0
    for record in records:
        try:
            example = make_example(record, tokenizer)
            if len(example.tokens) > max_tokens:
                example = shorten(example, max_tokens, too_long)
            if example is None:
                dropped += 1
                continue
            if not example.trained_count:
                raise DataError(f"{record.where}: no token is left to train on.")
            examples.append(example)
        except DataError as error:
            faults.append(str(error))
    if faults:
        more = f" … and {len(faults) - SHOWN_FAULTS} more records." if len(faults) > SHOWN_FAULTS else ""
        raise DataError(" ".join(faults[:SHOWN_FAULTS]) + more)
    return examples, dropped


def shorten(example: Example, max_tokens: int, too_long: str) -> Example | None:
    if too_long == "drop":
        return None
    if too_long == "truncate":
        return Example(
            example.tokens[:max_tokens],
            example.trained[:max_tokens],
            example.where,
            example.language,
            example.text_bytes,
        )
    raise DataError(
        f"{example.where}: {len(example.tokens)} tokens, over the limit of {max_tokens}; "
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
    if record.kind == "text":
        return [
            Segment(tokenizer.bos_token or "", False),
            Segment(record.fields["text"] + end_text(tokenizer), True),
        ]
    turns = record.turns()
    if getattr(tokenizer, "chat_template", None) is None and not getattr(
        tokenizer, "has_chat_template", False
    ):
        if len(turns) != 2:
            raise DataError(
                f"{record.where}: the model has no chat template, so only prompt and completion can be used."
            )
        prompt = (tokenizer.bos_token or "") + turns[0]["content"]
        return [Segment(prompt, False), Segment(turns[1]["content"] + end_text(tokenizer), True)]
    return conversation_segments(record, turns, tokenizer)


def end_text(tokenizer: Any) -> str:
    return tokenizer.eos_token or ""


def conversation_segments(record: Record, turns: list[dict], tokenizer: Any) -> list[Segment]:
    tools = record.fields.get("tools")
    render = renderer(tokenizer, tools, record.where)
    text = render(turns)
    spans = sentinel_spans(turns, text, render) or search_spans(turns, text, record.where)
    ends = end_markers(tokenizer)
    segments, cursor = [], 0
    for turn, (begin, end) in zip(turns, spans, strict=True):
        if turn["role"] != "assistant":
            continue
        gap = text[end : next((b for b, _ in spans if b >= end), len(text))]
        marker = min((m for m in ends if m in gap), key=gap.index, default=None)
        end += gap.index(marker) + len(marker) if marker else 0
        segments += [Segment(text[cursor:begin], False), Segment(text[begin:end], True)]
        cursor = end
    return [s for s in [*segments, Segment(text[cursor:], False)] if s.text]


def renderer(tokenizer: Any, tools: Any, where: str) -> Callable[[list[dict]], str]:
    def render(turns: list[dict]) -> str:
        try:
            return tokenizer.apply_chat_template(
                turns, tools=tools, tokenize=False, add_generation_prompt=False
            )
        except Exception as error:  # templates raise whatever their author chose
            raise DataError(
                f"{where}: the model's chat template refuses the conversation ({error})."
            ) from None

    return render


def end_markers(tokenizer: Any) -> list[str]:
    """Texts of the tokens that end a turn."""
    ids = getattr(tokenizer, "eos_token_ids", None) or [tokenizer.eos_token_id]
    return [
        m
        for m in {tokenizer.eos_token, *(tokenizer.convert_ids_to_tokens(i) for i in ids if i is not None)}
        if m
    ]


def sentinel_spans(turns: list[dict], text: str, render: Callable) -> list[tuple[int, int]] | None:
    """Where each content stands in `text`, or None where the template does more than insert contents, stripped or not."""
    marks = [f"\u2045{index}\u2046" for index in range(len(turns))]
    frame = render([{**turn, "content": mark} for turn, mark in zip(turns, marks, strict=True)])
    if any(frame.count(mark) != 1 for mark in marks):
        return None
    for clean in (str, str.strip):
        contents = [clean(turn["content"]) for turn in turns]
        pieces, spans, cursor, rest = [], [], 0, frame
        for mark, content in zip(marks, contents, strict=True):
            before, _, rest = rest.partition(mark)
            cursor += len(before)
            spans.append((cursor, cursor + len(content)))
            cursor += len(content)
            pieces += [before, content]
        if "".join(pieces) + rest == text:
            return spans
    return None


def search_spans(turns: list[dict], text: str, where: str) -> list[tuple[int, int]]:
    """Where each content stands, found one after the other; for templates that rewrite some of them."""
    spans, cursor = [], 0
    for number, turn in enumerate(turns, 1):
        content = (turn["content"] or "").strip()
        begin = text.find(content, cursor)
        if begin < 0 and turn["role"] == "assistant":
            raise DataError(
                f"{where}: the model's chat template changes the text of turn {number}, so it cannot be masked."
            )
        begin = cursor if begin < 0 else begin
        end = begin + len(content) if text.startswith(content, begin) else begin
        spans.append((begin, end))
        cursor = end
    return spans


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
    inner = getattr(tokenizer, "_tokenizer", tokenizer)
    offsets = inner(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    spans, cursor = [], 0
    for segment in segments:
        if segment.trained:
            spans.append((cursor, cursor + len(segment.text)))
        cursor += len(segment.text)
    return [any(begin <= (a + b) / 2 < end for begin, end in spans) and b > a for a, b in offsets]
