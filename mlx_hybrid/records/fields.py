"""The fields of a record: which of the three kinds they make, what keeps them from being a record, what they say."""

import json
from collections.abc import Callable
from typing import Any

SCALARS = ("language", "label", "id", "group", "source", "licence")
# Of what a tool call or a tool holds; Python's own limit on functions that call themselves is 1,000.
MAX_DEPTH = 64
MAY_FOLLOW = {"system": (None,), "user": (None, "system", "assistant"), "assistant": ("user", "tool")}
"""The roles, and those that each may come after; a tool's turn follows its call."""
ROLES = (*MAY_FOLLOW, "tool")
REASONING = ("reasoning_content", "thinking", "reasoning")


class NotARecord(ValueError):
    """Why a JSON value is no record; `reason` is the code, the message the detail."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


def kind_of(fields: dict[str, Any]) -> str:
    return "messages" if "messages" in fields else "prompt" if "completion" in fields else "text"


def check_fields(fields: Any) -> None:
    """Raise NotARecord unless `fields` is a record of one of the three kinds."""
    if not isinstance(fields, dict):
        extra = "; write one object a line" if isinstance(fields, list) else ""
        raise NotARecord("not_object", f"a JSON {type(fields).__name__}, not an object{extra}")
    for key in SCALARS:
        value = fields.get(key)
        if isinstance(value, dict | list) or (key == "language" and not isinstance(value, str | None)):
            raise NotARecord("bad_field", f"{key} must be a plain value, not {type(value).__name__}")
    check_objects(fields.get("tools"), "bad_field", "tools")
    if "messages" in fields:
        check_messages(fields["messages"])
    elif "prompt" in fields and "completion" in fields:
        check_strings(fields, "prompt", "completion")
        if not fields["completion"].strip():
            raise NotARecord("empty_completion", "the completion is empty")
    elif "text" in fields and "completion" not in fields:
        check_strings(fields, "text")
        if not fields["text"].strip():
            raise NotARecord("empty", "the text is empty")
    else:
        raise NotARecord("no_known_keys", "none of messages, prompt + completion, text")


def check_strings(fields: dict[str, Any], *keys: str) -> None:
    for key in keys:
        if not isinstance(fields[key], str):
            raise NotARecord("bad_content", f"{key} must be a string, not {type(fields[key]).__name__}")


def check_messages(messages: Any) -> None:
    """Roles in an order a chat template takes: system?, then user and assistant in turn, tools after a tool call."""
    if not isinstance(messages, list) or not messages:
        raise NotARecord("bad_content", "messages must be a list of turns")
    previous: dict[str, Any] = {}
    for place, turn in enumerate(messages, start=1):
        check_turn(turn, place)
        if not may_follow(turn["role"], previous):
            after = f"after {previous['role']}" if previous else "first"
            raise NotARecord("bad_roles", f"turn {place} is {turn['role']}, which cannot come {after}")
        previous = turn
    if previous["role"] != "assistant":
        raise NotARecord("no_answer", "the last turn is not the assistant's, so there is nothing to learn")


def may_follow(role: str, previous: dict[str, Any]) -> bool:
    """Whether a turn of that role may come after `previous`, which is empty before the first."""
    if role == "tool":
        return previous.get("role") == "tool" or bool(previous.get("tool_calls"))
    return previous.get("role") in MAY_FOLLOW[role]


def check_turn(turn: Any, place: int) -> None:
    if not isinstance(turn, dict) or turn.get("role") not in ROLES:
        role = turn.get("role") if isinstance(turn, dict) else turn
        raise NotARecord("bad_roles", f"turn {place} has role {role!r:.40}; known: {', '.join(ROLES)}")
    content, calls = turn.get("content"), turn.get("tool_calls")
    check_objects(calls, "bad_content", f"the tool calls of turn {place}")
    if content is None and turn["role"] == "assistant" and calls:
        return
    if not isinstance(content, str):
        raise NotARecord(
            "bad_content", f"turn {place} has content of type {type(content).__name__}, not a string"
        )
    if turn["role"] == "assistant" and not content.strip() and not calls:
        raise NotARecord("empty_completion", f"turn {place}, the assistant's, is empty")


def check_objects(value: Any, reason: str, what: str) -> None:
    """Tools, or the calls of them: nothing, or a list of objects."""
    if is_deep(value):
        raise NotARecord(reason, f"{what} are nested more than {MAX_DEPTH} deep")
    named = isinstance(value, list) and all(
        isinstance(item, dict) and isinstance(item.get("function", item), dict) for item in value
    )
    if value and not named:
        raise NotARecord(reason, f"{what} must be a list of objects")


def is_deep(value: Any) -> bool:
    """Whether lists and objects stand in one another more than 64 deep."""
    level, depth = [value], 0
    while level and depth <= MAX_DEPTH:
        inside = [
            item.values() if isinstance(item, dict) else item
            for item in level
            if isinstance(item, dict | list)
        ]
        level, depth = [value for values in inside for value in values], depth + 1
    return bool(level)


def turns_of(fields: dict[str, Any]) -> list[dict[str, Any]]:
    """The conversation as role and content; empty for plain text."""
    if kind_of(fields) == "messages":
        return fields["messages"]
    if kind_of(fields) == "text":
        return []
    question, answer = fields["prompt"], fields["completion"]
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def content_of(fields: dict[str, Any]) -> str:
    """The text that is checked and compared: what was said, without roles, template or system turn."""
    return fields["text"] if kind_of(fields) == "text" else said(turns_of(fields))


def prompt_of(fields: dict[str, Any]) -> str:
    """Everything before the last assistant turn, without the system turn; empty for plain text."""
    return said(turns_of(fields)[:-1])


def completion_of(fields: dict[str, Any]) -> str:
    """The last assistant turn, or the whole text."""
    return fields["text"] if kind_of(fields) == "text" else turns_of(fields)[-1].get("content") or ""


def said(turns: list[dict[str, Any]]) -> str:
    return "\n".join(turn.get("content") or "" for turn in turns if turn["role"] != "system")


def over_texts(fields: dict, change: Callable[[str, str], str]) -> dict:
    """A copy of a record with `change(text, place)` for every text that is searched: the system turn's and the values
    of tool calls too."""
    clean = dict(fields)
    for key in ("text", "prompt", "completion", "source_text"):
        if isinstance(fields.get(key), str):
            clean[key] = change(fields[key], key)
    if isinstance(fields.get("messages"), list):
        clean["messages"] = [
            over_turn(turn, f"messages.{number}", change) for number, turn in enumerate(fields["messages"])
        ]
    return clean


def over_turn(turn: dict, place: str, change: Callable[[str, str], str]) -> dict:
    clean = dict(turn)
    for key in ("content", *REASONING):
        if isinstance(turn.get(key), str):
            clean[key] = change(turn[key], f"{place}.{key}")
    if turn.get("tool_calls"):
        clean["tool_calls"] = over_values(turn["tool_calls"], f"{place}.tool_calls", change)
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
    inside = json_inside(value) if opens else None
    if inside is None:
        return change(value, place)
    changed = over_values(inside, place, change, opens=False)
    return value if changed == inside else json.dumps(changed, ensure_ascii=False)


def json_inside(text: str) -> dict | list | None:
    """The object or list that a string holds as JSON, as the arguments of a tool call do; else None."""
    if text[:1] not in ("{", "["):
        return None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return None if is_deep(value) else value


def calls_and_tools(fields: dict[str, Any]) -> tuple[str, str]:
    """The tool calls of the last turn, and what they were made with (`tools`, the calls before), each in one form.

    Keys in order, arguments parsed, the calls' own ids left out; empty where there is none.
    """
    turns = fields.get("messages", [])
    calls = [without_ids(turn["tool_calls"]) if turn.get("tool_calls") else None for turn in turns]
    given = [fields.get("tools") or None, *calls[:-1]]
    return canonical(calls[-1] if calls else None), canonical(given if any(given) else None)


def without_ids(calls: Any) -> Any:
    if not isinstance(calls, list):
        return calls
    return [{k: v for k, v in c.items() if k != "id"} if isinstance(c, dict) else c for c in calls]


def canonical(value: Any) -> str:
    return "" if value is None else json.dumps(opened(value), sort_keys=True)


def opened(value: Any) -> Any:
    """The value with the JSON inside its strings parsed."""
    if isinstance(value, dict):
        return {key: opened(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [opened(inner) for inner in value]
    inside = json_inside(value) if isinstance(value, str) else None
    return value if inside is None else inside
