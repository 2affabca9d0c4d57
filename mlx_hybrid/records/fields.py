"""The fields of a record: what keeps them from being one, and a look at every text in them."""

import json
from collections.abc import Callable
from itertools import chain
from typing import Any

SCALARS = ("language", "label", "id", "group", "source", "licence")
# of what a tool call or a tool holds; Python's own limit on functions that call themselves is 1,000
MAX_DEPTH = 64
MAY_FOLLOW = {"system": (None,), "user": (None, "system", "assistant"), "assistant": ("user", "tool")}
MAY_FOLLOW["tool"] = ("tool",)
"""The roles, and those that each may come after; a tool's turn may also follow its call."""
ROLES = tuple(MAY_FOLLOW)
REASONING = ("reasoning_content", "thinking", "reasoning")


class NotARecord(ValueError):
    """Why a line is no record; `reason` is the code, the message the detail, `raw` what is shown of a broken file."""

    def __init__(self, reason: str, detail: str, raw: bytes = b"") -> None:
        super().__init__(detail)
        self.reason, self.raw = reason, raw


def check_fields(fields: Any) -> None:
    """Raise NotARecord unless `fields` is a record of one of the three kinds."""
    if not isinstance(fields, dict):
        extra = "; write one object a line" if isinstance(fields, list) else ""
        raise NotARecord("not_object", f"a JSON {type(fields).__name__}, not an object{extra}")
    for key in SCALARS:
        value = fields.get(key)
        if isinstance(value, (dict, list)) or (key == "language" and not isinstance(value, str | None)):
            raise NotARecord("bad_field", f"{key} must be a plain value, not {type(value).__name__}")
    check_objects(fields.get("tools"), "bad_field", "tools")
    if "messages" in fields:
        check_messages(fields["messages"])
        return
    keys = ("prompt", "completion") if "completion" in fields else ("text",)
    for key in keys:
        if not isinstance(fields.get(key), str):
            raise NotARecord("bad_content", f"{key} must be a string, not {type(fields.get(key)).__name__}")
    if not fields[keys[-1]].strip():
        raise NotARecord("empty" if keys[-1] == "text" else "empty_completion", f"the {keys[-1]} is empty")


def check_messages(messages: Any) -> None:
    """Roles in an order a chat template takes: system?, then user and assistant in turn, tools after a tool call."""
    if not isinstance(messages, list) or not messages:
        raise NotARecord("bad_content", "messages must be a list of turns")
    previous: dict[str, Any] = {}
    for place, turn in enumerate(messages, start=1):
        check_turn(turn, place)
        before, role = previous.get("role"), turn["role"]
        if before not in MAY_FOLLOW[role] and not (role == "tool" and previous.get("tool_calls")):
            after = f"after {before}" if before else "first"
            raise NotARecord("bad_roles", f"turn {place} is {role}, which cannot come {after}")
        previous = turn
    if previous["role"] != "assistant":
        raise NotARecord("no_answer", "the last turn is not the assistant's, so there is nothing to learn")


def check_turn(turn: Any, place: int) -> None:
    role = turn.get("role") if isinstance(turn, dict) else turn
    if not isinstance(turn, dict) or role not in ROLES:
        raise NotARecord("bad_roles", f"turn {place} has role {role!r:.40}; known: {', '.join(ROLES)}")
    content, calls = turn.get("content"), turn.get("tool_calls")
    check_objects(calls, "bad_content", f"the tool calls of turn {place}")
    calls = role == "assistant" and calls
    if not isinstance(content, str) and not (calls and content is None):
        kind = type(content).__name__
        raise NotARecord("bad_content", f"turn {place} has content of type {kind}, not a string")
    if role == "assistant" and not calls and not content.strip():
        raise NotARecord("empty_completion", f"turn {place}, the assistant's, is empty")


def check_objects(value: Any, reason: str, what: str) -> None:
    """Tools, or the calls of them: nothing, or a list of objects."""
    if value and is_deep(value):
        raise NotARecord(reason, f"{what} are nested more than {MAX_DEPTH} deep")
    items = value if isinstance(value, list) else [None]
    if value and not all(isinstance(i, dict) and isinstance(i.get("function", i), dict) for i in items):
        raise NotARecord(reason, f"{what} must be a list of objects")


def is_deep(value: Any) -> bool:
    """Whether lists and objects stand in one another more than 64 deep."""
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        nested = (item for item in level if isinstance(item, (dict, list)))
        level = [*chain(*(item.values() if isinstance(item, dict) else item for item in nested))]
        if not level:
            return False
    return True


def from_json(value: Any) -> Any:
    """What a string holds as a JSON object or list, as the arguments of a tool call are written; else the value."""
    if not isinstance(value, str) or value.strip()[:1] not in ("{", "["):
        return value
    try:
        found = json.loads(value)
    except (ValueError, RecursionError):
        return value
    return value if is_deep(found) else found


def over_texts(fields: dict, change: Callable[[str, str], str], place: str = "") -> dict:
    """A copy of a record, or of the turn at a place in it, with `change(text, place)` for every text that is searched:
    the system turn's and the values of tool calls too."""
    clean = dict(fields)
    for key in ("content", *REASONING) if place else ("text", "prompt", "completion", "source_text"):
        if isinstance(fields.get(key), str):
            clean[key] = change(fields[key], f"{place}{key}")
    if place and fields.get("tool_calls"):
        clean["tool_calls"] = over_values(fields["tool_calls"], f"{place}tool_calls", change)
    elif isinstance(fields.get("messages"), list):
        turns = enumerate(fields["messages"])
        clean["messages"] = [over_texts(turn, change, f"messages.{number}.") for number, turn in turns]
    return clean


def over_values(value: Any, place: str, change: Callable[[str, str], str], *, opens: bool = True) -> Any:
    """Every string, key and number inside, those of arguments that are JSON in a string too; the rest as it is."""
    if isinstance(value, dict):
        return {change(key, place): over_values(v, place, change, opens=opens) for key, v in value.items()}
    if isinstance(value, list):
        return [over_values(inner, place, change, opens=opens) for inner in value]
    if isinstance(value, int) and not isinstance(value, bool):
        changed = change(str(value), place)
        return value if changed == str(value) else changed
    if not isinstance(value, str):
        return value
    inside = from_json(value) if opens else value
    if inside is value:
        return change(value, place)
    changed = over_values(inside, place, change, opens=False)
    return value if changed == inside else json.dumps(changed, ensure_ascii=False)


def calls_and_tools(fields: dict[str, Any]) -> tuple[str, str]:
    """The tool calls of the last turn, and what they were made with (`tools`, the calls before), each in one form:
    keys in order, arguments parsed, the calls' own ids left out; empty where there is none."""
    made = [turn.get("tool_calls") or () for turn in fields.get("messages") or [{}]]
    calls = [[{key: call[key] for key in call if key != "id"} for call in own] for own in made]
    given = [fields.get("tools") or [], *calls[:-1]]
    told = (calls[-1], given if any(given) else ())
    last, before = (json.dumps(opened(value), sort_keys=True) if value else "" for value in told)
    return last, before


def opened(value: Any) -> Any:
    """The value with the JSON inside its strings parsed."""
    value = from_json(value)
    if isinstance(value, dict):
        return {key: opened(inner) for key, inner in value.items()}
    return [opened(inner) for inner in value] if isinstance(value, list) else value
