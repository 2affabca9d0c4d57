"""Lines as `govern` writes them: what they were, with what was decided on them under `_gov`."""

import base64
import json
from collections.abc import Collection
from pathlib import Path
from typing import IO, Any

from mlx_hybrid.governance.checks.personal import redact_fields
from mlx_hybrid.governance.inspection import Inspection
from mlx_hybrid.records.lines import Fault
from mlx_hybrid.records.record import Record
from mlx_hybrid.records.shapes import as_record, renamed


def load_kept(path: Path) -> list[Record]:
    """Read the records of a `kept.jsonl`, each under the place it came from and as it was, without `_gov`."""
    with path.open("rb") as file:
        return [as_it_was(json.loads(line)) for line in file]


def as_it_was(fields: dict[str, Any]) -> Record:
    name, _, line = fields.pop("_gov")["where"].rpartition(":")
    return Record(fields, name, int(line))


def write_kept(
    file: IO[bytes], raw: bytes, item: Inspection, *, redacts: Collection[str], renames: dict[str, str]
) -> None:
    """Write the line, as it is where it needs no change, else its fields in the form that is trained on."""
    note: dict[str, Any] = {"where": item.where, "language": item.language}
    if item.flags:
        note["flags"] = [finding._asdict() for finding in item.flags]
    row = json.loads(raw)
    fields, shape = as_record(renamed(row, renames))
    clean = redact_fields(fields, item.language, redacts) if redacts else fields
    if fields is not row:
        note["shape"] = shape
    if clean != fields:
        note["edits"] = ["redacted"]
    if fields is not row or clean != fields:
        raw = as_json(clean, "surrogatepass")
    file.write(with_note(raw, note))


def write_rejected(file: IO[bytes], raw: bytes | Fault, item: Inspection) -> None:
    """Write the line and why it goes; one that is no record as text under `raw`, or base64 where it is no text."""
    told = {key: value for key, value in item.decision._asdict().items() if value}
    note = {"where": item.where, "language": item.language, **told}
    line = raw.raw if isinstance(raw, Fault) else raw
    if item.decision.stage != "structure" or item.decision.reason == "mixed_kinds":
        file.write(with_note(line, note))
        return
    try:
        whole = {"raw": line.decode("utf-8")}
    except UnicodeDecodeError:
        whole = {"raw_base64": base64.b64encode(line).decode()}
    file.write(as_json({**whole, "_gov": note}) + b"\n")


def with_note(raw: bytes, note: dict[str, Any]) -> bytes:
    """The line with `_gov` as its last key, all other bytes as they were."""
    line = raw.strip()
    if b'"_gov"' in line:
        fields = json.loads(line)
        fields.pop("_gov", None)
        line = as_json(fields, "surrogatepass")
    return line[:-1].rstrip() + b', "_gov": ' + as_json(note) + b"}\n"


def as_json(value: dict[str, Any], surrogates: str = "backslashreplace") -> bytes:
    return json.dumps(value, ensure_ascii=False).encode("utf-8", surrogates)
