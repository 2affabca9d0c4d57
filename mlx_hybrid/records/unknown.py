"""What to say of a row of no known shape: its keys, and how the nearest shape is reached."""

from difflib import get_close_matches
from typing import Any

NEAR = {
    "prompt": "question q query input instruction user human problem request source",
    "completion": "answer a response output reply assistant target solution label",
    "messages": "dialog dialogue chat turns history",
    "text": "content body document article story passage sentence",
}
"""Names that others give to our keys: what `--map` is proposed for, never what is read unasked."""


def unknown(fields: dict[str, Any]) -> str:
    """Which keys a row of no known shape has, and how the nearest shape is reached."""
    told = (
        f"no record of a known shape has {', '.join(str(key)[:40] for key in list(fields)[:8]) or 'no keys'}"
    )
    found = {
        ours: next(
            (key for key in fields if get_close_matches(key.lower(), [ours, *names.split()], cutoff=0.8)),
            None,
        )
        for ours, names in NEAR.items()
    }
    for wanted in (("prompt", "completion"), ("messages",), ("text",)):
        if all(found[key] for key in wanted):
            renames = ",".join(f"{found[key]}={key}" for key in wanted if found[key] != key)
            return f"{told}; the nearest shape is {' + '.join(wanted)}: --map {renames}"
    for here, missing in (("prompt", "completion"), ("completion", "prompt")):
        if here in fields:
            return f"{here} without {missing} ({told})"
    return (
        f"{told}: none of messages, conversations, prompt + completion, instruction + output, text; "
        "name yours with --map THEIRS=OURS"
    )
