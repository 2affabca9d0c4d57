"""From what people have on disk to `messages`, `prompt` + `completion` or `text`: one pure function, `as_record`."""

import ast
import json
import re
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from mlx_hybrid.records.fields import SCALARS, NotARecord
from mlx_hybrid.records.unknown import unknown

ROLES = {
    "system": ("system", "developer"),
    "user": ("user", "human"),
    "assistant": ("assistant", "gpt", "chatgpt", "bot", "model", "function_call", "tool_call"),
    "tool": ("tool", "function", "observation", "tool_response", "function_response", "ipython"),
}
ROLE_OF = {theirs: ours for ours, names in ROLES.items() for theirs in names}
CALLS = ("function_call", "tool_call")
PREFERENCES = (("chosen", "rejected"), ("preferred_output", "non_preferred_output"))
CALL = re.compile(r"<tool_call>\s*(.*?)\s*</tool_call>", re.DOTALL)
RESPONSE = re.compile(r"\s*</?tool_response>\s*")


def as_record(row: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """The fields of a row in one of the three kinds, the row itself where it is in one already, and its shape's name.

    Raises NotARecord for preference pairs and for a row of no known shape, with the nearest one.
    """
    fields = row
    if any(key in row and row[key] is None for key in KEYS):
        fields = {key: value for key, value in row.items() if value is not None or key not in KEYS}
    for shape in SHAPES:
        if all(key in fields for key in shape.keys):
            return with_tools(shape.convert(fields)), shape.name
    raise NotARecord("no_known_keys", unknown(fields, KEYS))


class Shape(NamedTuple):
    """A way to write records: its name, what it is called, the keys it is told by, and what it becomes."""

    name: str
    title: str
    keys: tuple[str, ...]
    convert: Callable[[dict[str, Any]], dict[str, Any]]


def from_messages(fields: dict[str, Any], key: str = "messages") -> dict[str, Any]:
    """Turns under any key, in any spelling of roles, a system turn beside them put first."""
    turns = as_turns(fields[key], key)
    if role_of(turns[-1] if turns else None) != "assistant" and any(
        set(pair) <= fields.keys() for pair in PREFERENCES
    ):
        refuse_preference(fields)
    system = fields.get("system")
    leads = turns and isinstance(turns[0], dict) and turns[0].get("role") == "system"
    if isinstance(system, str) and system.strip() and not leads:
        turns = [{"role": "system", "content": system}, *turns]
    if turns is fields[key] and key == "messages":
        return fields
    return {"messages": turns, **without(fields, key, "messages", "system")}


def from_prompt(fields: dict[str, Any]) -> dict[str, Any]:
    """Prompt and completion: two strings, or turns, of which those of the completion are trained."""
    prompt, completion = fields["prompt"], fields["completion"]
    if isinstance(prompt, str) and isinstance(completion, str) and not fields.get("system"):
        return fields
    before = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else as_turns(prompt, "prompt")
    after = completion
    if isinstance(completion, str):
        after = [{"role": "assistant", "content": completion}]
    before = [
        {**turn, "weight": 0} if isinstance(turn, dict) and turn.get("role") == "assistant" else turn
        for turn in before
    ]
    turns = [*before, *as_turns(after, "completion")]
    return from_messages({"messages": turns, **without(fields, "prompt", "completion", "messages")})


def from_alpaca(fields: dict[str, Any]) -> dict[str, Any]:
    """An instruction, with its input beneath it, and what is answered; system and history make it a conversation."""
    for key in ("instruction", "input", "output", "system"):
        if not isinstance(fields.get(key) or "", str):
            raise NotARecord("bad_content", f"{key} must be a string, not {type(fields[key]).__name__}")
    said = [fields.get(key) or "" for key in ("instruction", "input")]
    prompt = "\n\n".join(text for text in said if text.strip())
    rest = without(fields, "instruction", "input", "output", "history", "prompt", "completion")
    rest = rest if rest.get("system") else without(rest, "system")
    history = opened(fields.get("history") or [])
    if not isinstance(history, list) or not all(
        isinstance(pair, list) and len(pair) == 2 for pair in history
    ):
        raise NotARecord("bad_content", "history must be a list of [question, answer] pairs")
    if not history:
        return from_prompt({"prompt": prompt, "completion": fields["output"], **rest})
    pairs = [*history, [prompt, fields["output"]]]
    roles = ("user", "assistant")
    turns = [
        {"role": role, "content": text} for pair in pairs for role, text in zip(roles, pair, strict=True)
    ]
    return from_messages({"messages": turns, **rest})


def refuse_preference(fields: dict[str, Any]) -> dict[str, Any]:
    raise NotARecord(
        "preference",
        "preference pairs, which are not trained yet; keep the preferred answers alone, each as a completion",
    )


SHAPES = (
    Shape("messages", "messages", ("messages",), from_messages),
    Shape(
        "sharegpt",
        "ShareGPT conversations",
        ("conversations",),
        lambda row: from_messages(row, "conversations"),
    ),
    Shape(
        "sharegpt",
        "ShareGPT conversations",
        ("conversation",),
        lambda row: from_messages(row, "conversation"),
    ),
    *(Shape("preference", "preference pairs", keys, refuse_preference) for keys in PREFERENCES),
    Shape("prompt", "prompts and completions", ("prompt", "completion"), from_prompt),
    Shape("alpaca", "alpaca instructions", ("instruction", "output"), from_alpaca),
    Shape("text", "plain text", ("text",), lambda row: row),
)
"""The first that a row has all keys of is its shape."""
KEYS = frozenset(key for shape in SHAPES for key in shape.keys)
TITLES = {shape.name: shape.title for shape in SHAPES}


def without(fields: dict[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in fields.items() if key not in keys}


def opened(value: Any) -> Any:
    """A value that a table holds as a string of JSON, or as Python writes lists; else as it is."""
    if not isinstance(value, str) or value.strip()[:1] not in ("[", "{"):
        return value
    for read in (json.loads, ast.literal_eval):
        try:
            return read(value.strip())
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
    return value


def with_tools(fields: dict[str, Any]) -> dict[str, Any]:
    """The fields with `tools` as a list, from a string or from the `functions` of older records."""
    tools = fields.get("tools")
    if "functions" in fields and not tools and isinstance(functions := opened(fields["functions"]), list):
        tools = [{"type": "function", "function": one} for one in functions]
        return {**without(fields, "functions", "tools"), "tools": tools}
    if not isinstance(tools, str):
        return fields
    if not tools.strip():
        return without(fields, "tools")
    return {**fields, "tools": opened(tools)}


def as_turns(value: Any, key: str = "messages") -> Any:
    """A list of turns with our names of roles, text as strings and calls under `tool_calls`; itself where it is one."""
    turns = opened(value)
    if isinstance(turns, dict) and turns and all(isinstance(column, list) for column in turns.values()):
        turns = [
            dict(zip(turns, cells)) for cells in zip(*turns.values())
        ]  # a struct of lists, as Arrow has it
    if not isinstance(turns, list):
        kind = "a string that is no JSON list" if isinstance(value, str) else type(value).__name__
        raise NotARecord("bad_content", f"{key} must be a list of turns, not {kind}")
    found = [as_turn(turn, place) for place, turn in enumerate(turns, start=1)]
    for previous, (place, turn) in zip(found, enumerate(found[1:], start=1)):
        if role_of(turn) == "tool" and role_of(previous) == "assistant" and not previous.get("tool_calls"):
            found[place - 1] = call_written_out(previous)
            if found[place - 1] is not previous:
                found[place] = {**turn, "content": RESPONSE.sub("", str(turn.get("content")))}
    same = isinstance(value, list) and all(one is other for one, other in zip(found, value))
    return value if same else found


def role_of(turn: Any) -> Any:
    return turn.get("role") if isinstance(turn, dict) else None


def as_turn(turn: Any, place: int) -> Any:
    """One turn with our names; itself where it has them."""
    if not isinstance(turn, dict):
        return turn
    content = turn.get("content", turn.get("value"))
    name = turn.get("role", turn.get("from"))
    role = ROLE_OF.get(name.strip().lower(), name) if isinstance(name, str) else name
    whole = isinstance(content, str) or (content is None and turn.get("tool_calls"))
    odd = {"value", "from", "function_call"} & turn.keys() or isinstance(turn.get("tool_calls"), str)
    if whole and role == name and not odd:
        return turn
    rest = without(turn, "role", "from", "content", "value", "function_call")
    if isinstance(name, str) and name.strip().lower() in CALLS:
        rest["tool_calls"], content = calls_in([content], place), None
    elif turn.get("function_call"):
        rest["tool_calls"] = calls_in([turn["function_call"]], place)
    elif isinstance(turn.get("tool_calls"), str):
        rest["tool_calls"] = opened(turn["tool_calls"]) or None
    return {"role": role, "content": text_of(content, place), **rest}


def text_of(content: Any, place: int) -> Any:
    """The text of a list of text parts, as one string."""
    if not isinstance(content, list) or not all(isinstance(part, dict) for part in content):
        return content
    for part in content:
        if part.get("type") != "text" or not isinstance(part.get("text"), str):
            raise NotARecord(
                "bad_content", f"turn {place} has a part of type {part.get('type')}; only text is trained"
            )
    return "".join(part["text"] for part in content)


def calls_in(texts: list[Any], place: int) -> list[dict[str, Any]]:
    """Tool calls that were written as objects, lists of them, or their JSON."""
    values = [opened(text) for text in texts]
    calls = [call for value in values for call in (value if isinstance(value, list) else [value])]
    if not all(isinstance(call, dict) for call in calls):
        raise NotARecord("bad_content", f"turn {place} has a function call that is no JSON object")
    return [call if "function" in call else {"type": "function", "function": call} for call in calls]


def call_written_out(turn: dict[str, Any]) -> dict[str, Any]:
    """An assistant's turn with the calls that stand in its text between <tool_call> tags as calls."""
    content = turn.get("content")
    texts = CALL.findall(content) if isinstance(content, str) else []
    calls = [opened(text) for text in texts]
    if not calls or not all(isinstance(call, dict) for call in calls):
        return turn
    return {**turn, "content": CALL.sub("", content).strip() or None, "tool_calls": calls_in(calls, 0)}


TARGETS = sorted({*KEYS, *SCALARS, "input", "system", "history", "tools", "task"} - {"chosen", "rejected"})


def renamed(row: dict[str, Any], renames: dict[str, str]) -> dict[str, Any]:
    """The row with keys by our names."""
    if not renames.keys() & row.keys():
        return row
    moved = {ours: row[theirs] for theirs, ours in renames.items() if theirs in row}
    return {**without(row, *renames), **moved}


def describe_read(seen: Iterable[tuple[str, dict[str, int]]]) -> str:
    """`Read chats.json as ShareGPT conversations (120 records).`, of files with the count of each shape."""
    files: dict[str, list[str]] = {}
    counts: dict[str, int] = {}
    for name, shapes in seen:
        for shape, count in shapes.items():
            files.setdefault(shape, []).append(name)
            counts[shape] = counts.get(shape, 0) + count
    parts = [
        f"{', '.join(names) if len(names) < 4 else f'{len(names)} files'} as {TITLES.get(shape, shape)} "
        f"({counts[shape]:,} record{'s' * (counts[shape] != 1)})"
        for shape, names in files.items()
    ]
    return f"Read {'; '.join(parts)}." if parts else ""
