"""Texts of a governed folder for its page: what each rule took, shortened and redacted, and what differs in pairs."""

import re
import unicodedata
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

from mlx_hybrid.governance.checks.personal import redact, regions_of
from mlx_hybrid.governance.folder.lines import DATA, Line, maps_of, read_folder_lines

LONGEST = 3000  # characters of a text that is compared
PAIRED = ("near_dup", "near_dup_kept", "prompt_conflict")
WORDS = re.compile(
    r"\s+|[\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff]|\w+|.", re.DOTALL
)
Parts = list[tuple[str, bool]]
"""A text in parts, and which of them differ from the other of its pair."""


def samples(folder: Path, summary: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Up to three records of each reason, in the order of the summary, and of a pair the other."""
    rows = [(row["reason"], row["where"], row["detail"], row["match"]) for row in summary["examples"]]
    places = {place for _, where, _, other in rows for place in (where, other)}
    maps = maps_of(summary["sources"])
    lines = [line for name in DATA for line in read_folder_lines(folder / name, maps, at=places)]
    texts = {line.note["where"]: shown_text(line) for line in lines}
    found: dict[str, list[dict[str, Any]]] = {}
    for reason, where, detail, other in rows:
        text, beside = texts.get(where, ""), texts.get(other, "")
        sample: dict[str, Any] = {"where": where, "detail": detail, "text": [(shortened(text, 360), False)]}
        if reason in PAIRED and beside:
            left, right = differing(text, beside)
            sample |= {"text": left, "other_where": other, "other": right}
        found.setdefault(reason, []).append(sample)
    return found


def shown_text(line: Line) -> str:
    """What a line says, turn by turn, redacted, with invisible characters told by their codes."""
    text, record = line.source, line.record() if line.source is None else None
    if record:
        said = ((t["role"], t.get("content") or t.get("tool_calls") or "") for t in record.turns())
        turns = [f"{role}: {content}" for role, content in said]
        text = "\n".join(turns) if turns else record.content()
    text = str(line.row) if text is None else text
    return visible(redact(text[:LONGEST], regions_of(line.row.get("language") or line.note["language"])))


def visible(text: str) -> str:
    return "".join(c if c == "\n" or unicodedata.category(c)[0] != "C" else f"\\u{ord(c):04x}" for c in text)


def shortened(text: str, most: int) -> str:
    """Beginning and end of a text that is longer."""
    return text if len(text) <= most else f"{text[: most * 2 // 3]} … {text[-most // 3 :]}"


def differing(text: str, other: str) -> tuple[Parts, Parts]:
    """Both texts in parts that they share, shortened, and parts that differ."""
    words, beside = WORDS.findall(text), WORDS.findall(other)
    left, right = [], []
    for kind, a, b, c, d in SequenceMatcher(None, words, beside, autojunk=False).get_opcodes():
        same = kind == "equal"
        for parts, piece in ((left, "".join(words[a:b])), (right, "".join(beside[c:d]))):
            if piece:
                parts.append((shortened(piece, 90) if same else piece, not same))
    return left, right
