"""What to say of a row of no known shape: its keys, and how the nearest shape is reached."""

import difflib
from collections.abc import Iterable
from typing import Any

NEAR = {
    "prompt": (
        "question",
        "q",
        "query",
        "input",
        "instruction",
        "user",
        "human",
        "problem",
        "request",
        "source",
    ),
    "completion": ("answer", "a", "response", "output", "reply", "assistant", "target", "solution", "label"),
    "messages": ("dialog", "dialogue", "chat", "turns", "history"),
    "text": ("content", "body", "document", "article", "story", "passage", "sentence"),
}
"""Names that others give to our keys: what `--map` is proposed for, never what is read unasked."""


def unknown(fields: dict[str, Any], known: Iterable[str]) -> str:
    """Which keys a row of no known shape has, and how the nearest shape is reached."""
    found = {
        ours: ours if ours in fields else next((key for key in fields if key.lower() in theirs), None)
        for ours, theirs in NEAR.items()
    }
    for wanted in (("prompt", "completion"), ("messages",), ("text",)):
        if all(found[key] for key in wanted):
            renames = ",".join(f"{found[key]}={key}" for key in wanted if found[key] != key)
            return f"{told_keys(fields)}; the nearest shape is {' + '.join(wanted)}: --map {renames}"
    for here, missing in (("prompt", "completion"), ("completion", "prompt")):
        if here in fields:
            return f"{here} without {missing} ({told_keys(fields)})"
    for key in fields:
        if close := difflib.get_close_matches(key.lower(), sorted(known), n=1, cutoff=0.8):
            return f'{told_keys(fields)}; did you mean "{close[0]}" by "{key}"? --map {key}={close[0]}'
    return (
        f"{told_keys(fields)}: none of messages, conversations, prompt + completion, instruction + output, text; "
        "name yours with --map THEIRS=OURS"
    )


def told_keys(fields: dict[str, Any]) -> str:
    shown = ", ".join(str(key)[:40] for key in list(fields)[:8]) or "no keys"
    return f"no record of a known shape has {shown}"
