"""Which tokens of a conversation are trained: the answers that its template writes as it asks for them.

An answer begins after rendered(the turns before it, generation prompt), where that is a prefix of the rendered
conversation, and ends with the template's end of turn.
"""

import json
from typing import Any

from mlx_hybrid.errors import ConfigError
from mlx_hybrid.records.masking import Masked, SetAside, closed, tokenise
from mlx_hybrid.records.record import Record


def plain_turn(turn: dict) -> dict:
    """A turn as the template gets it: no empty keys, no marks of ours, tool arguments as a mapping."""
    kept = {k: v for k, v in turn.items() if v is not None and k not in ("weight", "train", "training")}
    for other in ("thinking", "reasoning"):
        if isinstance(kept.get(other), str):
            kept.setdefault("reasoning_content", kept.pop(other))
    if "tool_calls" in kept:
        kept["tool_calls"] = [parsed_call(call) for call in kept["tool_calls"]]
        kept.setdefault("content", "")
    return kept


def parsed_call(call: dict) -> dict:
    """A tool call whose arguments are a mapping, parsed once where they were written as a JSON string."""
    function = call.get("function", call)
    arguments = function.get("arguments")
    if not isinstance(arguments, str):
        return call
    try:
        arguments = json.loads(arguments)
    except ValueError:
        return call
    function = {**function, "arguments": arguments}
    return {**call, "function": function} if "function" in call else function


def is_trained(turn: dict) -> bool:
    """Whether a turn is an answer that says something, and not marked as one not to learn from."""
    if not any(
        turn.get(key) for key in ("content", "tool_calls", "reasoning_content", "thinking", "reasoning")
    ):
        return False
    marks = [turn.get("weight"), turn.get("train"), turn.get("training")]
    return turn["role"] == "assistant" and not any(mark is not None and not mark for mark in marks)


def without_ends(text: str, tokenizer: Any) -> str:
    """An answer without the ends that its author wrote into it; it gets its own."""
    stripped = text.rstrip()
    for marker in tokenizer.end_markers:
        while stripped.endswith(marker):
            text = stripped = stripped.removesuffix(marker).rstrip()
    return text


def conversation(record: Record, turns: list[dict], wanted: list[int], tokenizer: Any) -> Masked:
    """A conversation in the model's template, with the answers `wanted` trained as far as they are asked for."""
    for turn in turns:
        if turn["role"] == "assistant" and turn.get("content"):
            turn["content"] = without_ends(turn["content"], tokenizer)
    tools = record.fields.get("tools")
    try:
        full = tokenizer.render(turns, tools=tools)
        spans = answer_spans(turns, wanted, full, tokenizer, tools)
        parts, cursor = [], 0
        for _, begin, end in spans:
            parts += [(full[cursor:begin], False), (full[begin:end], True)]
            cursor = end
        open_ended = spans[-1][0] == len(turns) - 1 and not parts[-1][0].endswith(
            tuple(tokenizer.end_markers)
        )
        if not open_ended:
            parts.append((full[cursor:], False))
        asked = tokenizer.ask(turns[: spans[0][0]], tools=tools)
        tokens, trained = tokenise(parts, tokenizer, asked=asked)
    except ConfigError as error:
        raise SetAside(str(error)) from None
    size = sum(len(text.encode()) for text, kept in parts if kept)
    facts = {"answers": len(spans), "unwritten": unwritten(turns, tools, full, tokenizer)}
    if open_ended:
        return closed(tokens, trained, tokenizer, size, **facts)
    return Masked(tokens, trained, size, **facts)


def unwritten(turns: list[dict], tools: Any, full: str, tokenizer: Any) -> tuple[str, ...]:
    """What of a conversation its template leaves out, in words."""
    last = turns[-1].get("reasoning_content")
    parts = {
        "reasoning": last.strip() if isinstance(last, str) else "",
        "the tools": tools[0].get("function", tools[0]).get("name", "") if tools else "",
        "the system turn": turns[0].get("content", "").strip() if turns[0]["role"] == "system" else "",
    }
    return tuple(name for name, text in parts.items() if text and tokenizer.marked(text) not in full)


def answer_spans(
    turns: list[dict], wanted: list[int], full: str, tokenizer: Any, tools: Any
) -> list[tuple[int, int, int]]:
    """(turn, begin, end) in the rendered text of every wanted answer that is written as it is asked for."""
    spans = []
    for number in wanted:
        asked = tokenizer.render(turns[:number], tools=tools, opened=True)
        if full.startswith(asked):
            end = answer_end(turns, number, full, len(asked), tokenizer, tools)
            names = [
                call.get("function", call).get("name", "") for call in turns[number].get("tool_calls", [])
            ]
            if not all(text in full[len(asked) : end] for text in (said(turns[number], tokenizer), *names)):
                kind = "leaves out the tool call" if names else "changes the text"
                raise SetAside(f"the chat template {kind} of turn {number + 1}")
            spans.append((number, len(asked), end))
    if not spans:
        raise SetAside(
            "the chat template does not write the answers as it asks for them "
            f"(it asks with {tokenizer.render(turns[: wanted[-1]], tools=tools, opened=True)[-40:]!r}); "
            "see model.template"
        )
    return spans


def answer_end(turns: list[dict], number: int, full: str, begin: int, tokenizer: Any, tools: Any) -> int:
    """Where the answer that begins at `begin` ends, with its end of turn where the template writes one."""
    bound = next_turn(turns, number, full, begin, tokenizer, tools)
    found = [full.find(marker, begin, bound) for marker in tokenizer.end_markers]
    ends = [(at, -len(m)) for at, m in zip(found, tokenizer.end_markers, strict=True) if at >= 0]
    if ends:
        at, length = min(ends)
        return at - length
    content = said(turns[number], tokenizer)
    at = full.rfind(content, begin, bound) if content else -1
    if at < 0:
        raise SetAside(f"the chat template does not show where turn {number + 1} ends")
    return at + len(content)


def said(turn: dict, tokenizer: Any) -> str:
    """What of an answer every template must write: its content after the reasoning."""
    return tokenizer.marked((turn.get("content") or "").rpartition("</think>")[2].strip())


def next_turn(turns: list[dict], number: int, full: str, begin: int, tokenizer: Any, tools: Any) -> int:
    """Where the text after a turn begins, at the latest."""
    if number == len(turns) - 1:
        return len(full)
    after = tokenizer.render(turns[: number + 1], tools=tools)
    if full.startswith(after):
        return len(after)
    content = next((said(turn, tokenizer) for turn in turns[number + 1 :] if turn.get("content")), "")
    at = full.find(content, begin + len(said(turns[number], tokenizer))) if content else -1
    return at if at >= 0 else len(full)
