"""Lines as `govern` writes them: what they were, with what was decided on them under `_gov`."""

import base64
import json
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

from mlx_hybrid.governance.checks.language import Finding
from mlx_hybrid.governance.checks.personal import redact_fields
from mlx_hybrid.governance.stages import Decision
from mlx_hybrid.records.record import Fault, Record


def note_of(where: str, language: str, decision: Decision | None) -> dict[str, Any]:
    """What `_gov` says of a line: its place, its language and, of one set aside, why."""
    note = {"where": where, "language": language}
    return note | {key: value for key, value in decision._asdict().items() if value} if decision else note


def load_kept(path: Path) -> list[Record]:
    """Read the records of a `kept.jsonl`, each under the place it came from and as it was, without `_gov`."""
    with path.open("rb") as file:
        return [as_it_was(json.loads(line)) for line in file]


def as_it_was(fields: dict[str, Any]) -> Record:
    name, _, line = fields.pop("_gov")["where"].rpartition(":")
    return Record(fields, name, int(line))


def write_kept(
    file: IO[bytes], raw: bytes, note: dict[str, Any], flags: Sequence[Finding], redacts: bool
) -> None:
    if flags:
        note["flags"] = [finding._asdict() for finding in flags]
    if redacts and (clean := redact_fields(fields := json.loads(raw))) != fields:
        raw = json.dumps(clean, ensure_ascii=False).encode("utf-8", "surrogatepass")
        note["edits"] = ["redacted"]
    file.write(with_note(raw, note))


def write_rejected(file: IO[bytes], raw: bytes | Fault, note: dict[str, Any]) -> None:
    line = raw.raw if isinstance(raw, Fault) else raw
    if note["stage"] != "structure" or note["reason"] == "mixed_kinds":
        file.write(with_note(line, note))
        return
    try:
        whole: dict[str, Any] = {"raw": line.decode("utf-8")}
    except UnicodeDecodeError:
        whole = {"raw_base64": base64.b64encode(line).decode()}
    file.write(
        json.dumps({**whole, "_gov": note}, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n"
    )


def with_note(raw: bytes, note: dict[str, Any]) -> bytes:
    """The line with `_gov` as its last key, all other bytes as they were."""
    line = raw.strip()
    if b'"_gov"' in line:
        fields = json.loads(line)
        fields.pop("_gov", None)
        line = json.dumps(fields, ensure_ascii=False).encode("utf-8", "surrogatepass")
    return (
        line[:-1].rstrip()
        + b', "_gov": '
        + json.dumps(note, ensure_ascii=False).encode("utf-8", "backslashreplace")
        + b"}\n"
    )
