"""From what people have on disk to `messages`, `prompt` + `completion` or `text`: one pure function, `as_record`."""

import ast
from collections import Counter
from collections.abc import Callable, Iterable
from difflib import get_close_matches
from functools import partial
from itertools import cycle
from typing import Any

from mlx_hybrid.records.fields import SCALARS, NotARecord, from_json

ROLES = {
    "system": ("system", "developer"),
    "user": ("user", "human"),
    "assistant": ("assistant", "gpt", "chatgpt", "bot", "model", "function_call", "tool_call"),
    "tool": ("tool", "function", "observation", "tool_response", "function_response", "ipython"),
}
ROLE_OF = {theirs: ours for ours, names in ROLES.items() for theirs in names}
CALLS, OURS = ("function_call", "tool_call"), {"role", "content"}
PREFERENCES = (("chosen", "rejected"), ("preferred_output", "non_preferred_output"))
TITLES = {"sharegpt": "ShareGPT conversations", "prompt": "prompts and completions", "text": "plain text"}
TITLES |= {"alpaca": "alpaca instructions"}
NEAR = {
    "prompt": "question q query input instruction user human problem request source",
    "completion": "answer a response output reply assistant target solution label",
    "messages": "dialog dialogue chat turns history",
    "text": "content body document article story passage sentence",
}
"""Names that others give to our keys: what `--map` is proposed for, never what is read unasked."""


def as_record(row: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """The fields of a row in one of the three kinds, the row itself where it is in one already, and its shape's name;
    NotARecord for preference pairs and for no known shape."""
    fields = row
    if None in row.values() and any(row[key] is None for key in KEYS & row.keys()):
        fields = {key: value for key, value in row.items() if value is not None or key not in KEYS}
    for name, keys, convert in SHAPES:
        if keys <= fields.keys():
            return with_tools(convert(fields)), name
    raise NotARecord("no_known_keys", unknown(fields))


def from_messages(fields: dict[str, Any], key: str = "messages") -> dict[str, Any]:
    """Turns under any key, in any spelling of roles, a system turn beside them put first."""
    turns = as_turns(fields[key], key)
    first, last = (turns[place] if turns and isinstance(turns[place], dict) else {} for place in (0, -1))
    if last.get("role") != "assistant" and any(set(pair) <= fields.keys() for pair in PREFERENCES):
        refuse_preference(fields)
    system = fields.get("system")
    if isinstance(system, str) and system.strip() and first.get("role") != "system":
        turns = [turn_of("system", system), *turns]
    if turns is fields[key] and key == "messages":
        return fields
    return {"messages": turns, **without(fields, key, "messages", "system")}


def from_prompt(fields: dict[str, Any]) -> dict[str, Any]:
    """Prompt and completion: two strings, or turns, of which those of the completion are trained."""
    asked, answer = fields["prompt"], fields["completion"]
    if isinstance(asked, str) and isinstance(answer, str) and not fields.get("system"):
        return fields
    asked = [turn_of("user", asked)] if isinstance(asked, str) else as_turns(asked, "prompt")
    answer = [turn_of("assistant", answer)] if isinstance(answer, str) else as_turns(answer, "completion")
    answers = [turn for turn in asked if isinstance(turn, dict) and turn.get("role") == "assistant"]
    context = [turn | {"weight": 0} if turn in answers else turn for turn in asked]
    rest = without(fields, "prompt", "completion", "messages")
    return from_messages({"messages": [*context, *answer], **rest})


def from_alpaca(fields: dict[str, Any]) -> dict[str, Any]:
    """An instruction, with its input beneath it, and what is answered; system and history make it a conversation."""
    for key in ("instruction", "input", "output", "system"):
        if not isinstance(fields.get(key) or "", str):
            raise NotARecord("bad_content", f"{key} must be a string, not {type(fields[key]).__name__}")
    said = [fields.get(key) or "" for key in ("instruction", "input")]
    prompt = "\n\n".join(text for text in said if text.strip())
    system = () if fields.get("system") else ("system",)
    rest = without(fields, "instruction", "input", "output", "history", "prompt", "completion", *system)
    history = opened(fields.get("history") or [])
    if not isinstance(history, list) or not all(isinstance(p, list) and len(p) == 2 for p in history):
        raise NotARecord("bad_content", "history must be a list of [question, answer] pairs")
    if not history:
        return from_prompt({"prompt": prompt, "completion": fields["output"], **rest})
    said = [text for pair in (*history, (prompt, fields["output"])) for text in pair]
    turns = [turn_of(role, text) for role, text in zip(cycle(("user", "assistant")), said)]
    return from_messages({"messages": turns, **rest})


def refuse_preference(fields: dict[str, Any]) -> dict[str, Any]:
    way = "keep the preferred answers alone, each as a completion"
    raise NotARecord("preference", f"preference pairs, which are not trained yet; {way}")


SHAPES: tuple[tuple[str, set[str], Callable[[dict], dict]], ...] = (
    ("messages", {"messages"}, from_messages),
    *(("sharegpt", {key}, partial(from_messages, key=key)) for key in ("conversations", "conversation")),
    *(("preference", {*keys}, refuse_preference) for keys in PREFERENCES),
    ("prompt", {"prompt", "completion"}, from_prompt),
    ("alpaca", {"instruction", "output"}, from_alpaca),
    ("text", {"text"}, lambda row: row),
)
"""Name, keys and what a row of them becomes; the first that a row has all keys of is its shape."""
KEYS = frozenset(key for _, keys, _ in SHAPES for key in keys)
TARGETS = sorted({*KEYS, *SCALARS, "input", "system", "history", "tools", "task"} - {"chosen", "rejected"})


def turn_of(role: str, content: Any) -> dict[str, Any]:
    return {"role": role, "content": content}


def without(fields: dict[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in fields.items() if key not in keys}


def opened(value: Any) -> Any:
    """A value that a table holds as a string of JSON, or as Python writes lists; else as it is."""
    found = from_json(value)
    if found is not value or not isinstance(value, str) or value.strip()[:1] not in ("[", "{"):
        return found
    try:
        return ast.literal_eval(value.strip())
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return value


def with_tools(fields: dict[str, Any]) -> dict[str, Any]:
    """The fields with `tools` as a list, from a string or from the `functions` of older records."""
    tools, functions = fields.get("tools"), opened(fields.get("functions"))
    if isinstance(functions, list) and not tools:
        tools = [{"type": "function", "function": one} for one in functions]
        return without(fields, "functions") | {"tools": tools}
    if not isinstance(tools, str):
        return fields
    return fields | {"tools": opened(tools)} if tools.strip() else without(fields, "tools")


def as_turns(value: Any, key: str = "messages") -> Any:
    """A list of turns with our names of roles, text as strings and calls under `tool_calls`; itself where it is one."""
    turns = opened(value)
    if not isinstance(turns, list):
        kind = "a string that is no JSON list" if isinstance(value, str) else type(value).__name__
        raise NotARecord("bad_content", f"{key} must be a list of turns, not {kind}")
    found = [as_turn(turn, place) for place, turn in enumerate(turns, start=1)]
    return value if found == value else found


def as_turn(turn: Any, place: int) -> Any:
    """One turn with our names; itself where it has them."""
    is_ours = isinstance(turn, dict) and turn.keys() == OURS and isinstance(turn["content"], str)
    if not isinstance(turn, dict) or (is_ours and turn["role"] in ROLES):
        return turn
    content, name = turn.get("content", turn.get("value")), turn.get("role", turn.get("from"))
    theirs = name.strip().lower() if isinstance(name, str) else ""
    rest = without(turn, "role", "from", "content", "value", "function_call")
    if calls := turn.get("function_call") or (content if theirs in CALLS else None):
        content = None if theirs in CALLS else content
        rest["tool_calls"] = calls_in(calls, place)
    elif isinstance(turn.get("tool_calls"), str):
        rest["tool_calls"] = opened(turn["tool_calls"]) or None
    found = turn_of(ROLE_OF.get(theirs, name), text_of(content, place)) | rest
    return turn if found == {"content": None, **turn} else found


def text_of(content: Any, place: int) -> Any:
    """The text of a list of text parts, as one string."""
    if not isinstance(content, list) or not all(isinstance(part, dict) for part in content):
        return content
    others = (p for p in content if p.get("type") != "text" or not isinstance(p.get("text"), str))
    if other := next(others, None):
        told = f"turn {place} has a part of type {other.get('type')}; only text is trained"
        raise NotARecord("bad_content", told)
    return "".join(part["text"] for part in content)


def calls_in(written: Any, place: int) -> list[dict[str, Any]]:
    """Tool calls that were written as an object, a list of them, or their JSON."""
    value = opened(written)
    calls = value if isinstance(value, list) else [value]
    if not all(isinstance(call, dict) for call in calls):
        raise NotARecord("bad_content", f"turn {place} has a function call that is no JSON object")
    return [call if "function" in call else {"type": "function", "function": call} for call in calls]


def unknown(fields: dict[str, Any]) -> str:
    """Which keys a row of no known shape has, and how the nearest shape is reached."""
    keys = ", ".join(str(key)[:40] for key in list(fields)[:8]) or "no keys"
    told, found = f"no record of a known shape has {keys}", {}
    for ours, names in NEAR.items():
        near = [ours, *names.split()]
        found[ours] = next((k for k in fields if get_close_matches(k.lower(), near, cutoff=0.8)), None)
    for wanted in (("prompt", "completion"), ("messages",), ("text",)):
        if all(found[key] for key in wanted):
            renames = ",".join(f"{found[key]}={key}" for key in wanted if found[key] != key)
            return f"{told}; the nearest shape is {' + '.join(wanted)}: --map {renames}"
    for here, missing in (("prompt", "completion"), ("completion", "prompt")):
        if here in fields:
            return f"{here} without {missing} ({told})"
    known = "messages, conversations, prompt + completion, instruction + output, text"
    return f"{told}: none of {known}; name yours with --map THEIRS=OURS"


def renamed(row: dict[str, Any], renames: dict[str, str]) -> dict[str, Any]:
    """The row with keys by our names."""
    moved = {ours: row[theirs] for theirs, ours in renames.items() if theirs in row}
    return without(row, *renames) | moved if moved else row


def describe_read(seen: Iterable[tuple[str, dict[str, int]]]) -> str:
    """`Read chats.json as ShareGPT conversations (120 records).`, of files with the count of each shape."""
    files: dict[str, Counter[str]] = {}
    for name, shapes in seen:
        for shape, count in shapes.items():
            files.setdefault(shape, Counter())[name] += count
    parts = []
    for shape, counts in files.items():
        names, total = ", ".join(counts) if len(counts) < 4 else f"{len(counts)} files", sum(counts.values())
        parts.append(f"{names} as {TITLES.get(shape, shape)} ({total:,} record{'s' * (total != 1)})")
    return f"Read {'; '.join(parts)}." if parts else ""
