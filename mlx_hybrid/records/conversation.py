"""Which tokens of a conversation are trained: the answers that its template writes as it asks for them.

An answer begins after rendered(the turns before it, generation prompt), where that is a prefix of the rendered
conversation, and ends with the template's end of turn.
"""

import json
from typing import Any

from mlx_hybrid.errors import ConfigError
from mlx_hybrid.records.masking import Masked, SetAside, closed, tokenise
from mlx_hybrid.records.record import Record

MARKS = ("weight", "train", "training")
REASONING = ("reasoning_content", "thinking", "reasoning")
YES, NO = ("1", "1.0", "true", "yes"), ("0", "0.0", "false", "no")


def plain_turns(record: Record, tokenizer: Any) -> tuple[list[dict], list[int]]:
    """The turns as the template gets them, and which of them are to be trained.

    Raises SetAside for a mark or a tool call that cannot be understood.
    """
    turns = [plain_turn(turn, place, tokenizer) for place, turn in enumerate(record.turns(), start=1)]
    answers = [place for place, turn in enumerate(turns) if turn["role"] == "assistant"]
    marked = [place for place in answers if is_marked(record.turns()[place], place + 1)]
    return turns, [place for place in marked if says_something(turns[place])]


def plain_turn(turn: dict, place: int, tokenizer: Any) -> dict:
    """A turn without empty keys, marks of ours and ends of its author's; reasoning under each of its names, so that a
    template finds it, and tool calls in OpenAI's form."""
    kept = {key: value for key, value in turn.items() if value not in (None, []) and key not in MARKS}
    reasoning = next((kept[name] for name in REASONING if isinstance(kept.get(name), str)), "")
    if reasoning:
        kept |= dict.fromkeys(REASONING, reasoning)
    if calls := plain_calls(kept.pop("tool_calls", []), place):
        kept = {"content": "", **kept, "tool_calls": calls}
    if turn["role"] == "assistant" and kept.get("content"):
        kept["content"] = tokenizer.answer(kept["content"])
    return kept


def plain_calls(calls: Any, place: int) -> list[dict]:
    """Tool calls in OpenAI's form, arguments as a mapping: parsed once where they were written as a JSON string."""
    calls = json_value(calls)
    if not isinstance(calls, list) or not all(isinstance(call, dict) for call in calls):
        raise SetAside(f"turn {place} has tool_calls that are no list of calls")
    found = []
    for call in calls:
        function = call.get("function", {key: call[key] for key in ("name", "arguments") if key in call})
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise SetAside(f"turn {place} has a tool call without the name of its function")
        arguments = json_value(function.get("arguments") or {})
        if not isinstance(arguments, dict):
            raise SetAside(f"turn {place} calls {function['name']} with arguments that are no JSON object")
        rest = {key: value for key, value in call.items() if key not in ("name", "arguments")}
        found.append({"type": "function", **rest, "function": {**function, "arguments": arguments}})
    return found


def json_value(value: Any) -> Any:
    """What a string says in JSON; a blank one is an empty object, and one that is no JSON stays a string."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value) if value.strip() else {}
    except (ValueError, RecursionError):
        return value


def tools_of(record: Record) -> Any:
    """The tools that a conversation is told of, or None. Raises SetAside for what is no list of them."""
    tools = json_value(record.fields.get("tools")) or None
    if tools is not None and not (isinstance(tools, list) and all(isinstance(tool, dict) for tool in tools)):
        raise SetAside("its tools are no list of JSON objects")
    return tools


def is_marked(turn: dict, place: int) -> bool:
    """Whether an answer's marks, if it has any, say that it is to be trained. Raises SetAside for other values."""
    marks = {key: str(turn[key]).strip().lower() for key in MARKS if turn.get(key) is not None}
    if odd := next((key for key, value in marks.items() if value not in (*YES, *NO)), None):
        raise SetAside(f"turn {place} has {odd} {turn[odd]!r:.20}, which is neither 0 nor 1")
    return not any(value in NO for value in marks.values())


def says_something(turn: dict) -> bool:
    return any(turn.get(key) for key in ("content", "tool_calls", "reasoning_content"))


def conversation(record: Record, turns: list[dict], wanted: list[int], tokenizer: Any) -> Masked:
    """A conversation in the model's template, with the answers `wanted` trained as far as they are asked for."""
    tools = tools_of(record)
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
        tokens, trained = tokenise(parts, tokenizer, asked=tokenizer.opened(full[: spans[0][1]]))
    except ConfigError as error:
        raise SetAside(str(error)) from None
    size = sum(len(text.encode()) for text, kept in parts if kept)
    facts = {"answers": len(spans), "unwritten": unwritten(turns, tools, full, spans, tokenizer)}
    if open_ended:
        return closed(tokens, trained, tokenizer, size, **facts)
    return Masked(tokens, trained, size, **facts)


def unwritten(
    turns: list[dict], tools: Any, full: str, spans: list[tuple[int, int, int]], tokenizer: Any
) -> tuple[str, ...]:
    """What of a conversation its template leaves out, in words."""
    missing = {}
    for number, begin, end in spans:
        if tokenizer.marked(reasoning_of(turns[number])) not in full[begin:end]:
            missing["reasoning" if number == len(turns) - 1 else "the reasoning of older answers"] = True
    missing["the tools"] = bool(tools) and tokenizer.render(turns) == full
    system = turns[0].get("content", "").strip() if turns[0]["role"] == "system" else ""
    missing["the system turn"] = tokenizer.marked(system) not in full
    return tuple(name for name, is_missing in missing.items() if is_missing)


def reasoning_of(turn: dict) -> str:
    """An answer's reasoning, of its own key or of a <think> block."""
    inline = (turn.get("content") or "").rpartition("</think>")[0].rpartition("<think>")[2]
    return (turn.get("reasoning_content") or inline).strip()


def answer_spans(
    turns: list[dict], wanted: list[int], full: str, tokenizer: Any, tools: Any
) -> list[tuple[int, int, int]]:
    """(turn, begin, end) in the rendered text of every wanted answer that is written as it is asked for."""
    spans = []
    for number in wanted:
        asked = tokenizer.render(turns[:number], tools=tools, opened=True)
        if full.startswith(asked):
            end = answer_end(turns, number, full, len(asked), tokenizer, tools)
            if said(turns[number], tokenizer) not in full[len(asked) : end]:
                raise SetAside(f"the chat template changes or leaves out the text of turn {number + 1}")
            if leaves_out_a_call(turns[: number + 1], tokenizer, tools):
                raise SetAside(f"the chat template leaves out a tool call of turn {number + 1}")
            spans.append((number, len(asked), end))
    if not spans:
        way = "model.template, or model.system=fold" if turns[0]["role"] == "system" else "model.template"
        raise SetAside(
            "the chat template does not write the answers as it asks for them "
            f"(it asks with {tokenizer.render(turns[: wanted[-1]], tools=tools, opened=True)[-40:]!r}); see {way}"
        )
    return spans


def leaves_out_a_call(turns: list[dict], tokenizer: Any, tools: Any) -> bool:
    """Whether the template writes the last of `turns` no otherwise without one of its tool calls."""
    *before, last = turns
    calls = last.get("tool_calls", [])
    whole = tokenizer.render(turns, tools=tools) if calls else ""
    for place in range(len(calls)):
        fewer = {**last, "tool_calls": calls[:place] + calls[place + 1 :]}
        if len(calls) == 1:
            del fewer["tool_calls"]
        try:
            if tokenizer.render([*before, fewer], tools=tools) == whole:
                return True
        except ConfigError:  # refused without the call, so the call counts
            continue
    return False


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
