"""Lines as `govern` writes them: what they were, with what was decided on them under `_gov`."""

import base64
import json
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

from mlx_hybrid.errors import DataError
from mlx_hybrid.governance.checks.language import Finding
from mlx_hybrid.governance.checks.personal import redact_fields
from mlx_hybrid.governance.pipeline import Rejection
from mlx_hybrid.governance.stages import Decision
from mlx_hybrid.records.record import Fault, parse_line, read_lines


def note_of(where: str, language: str, decision: Decision | None) -> dict[str, Any]:
    """What `_gov` says of a line: its place, its language and, of one set aside, why."""
    note = {"where": where, "language": language}
    return note | {key: value for key, value in decision._asdict().items() if value} if decision else note


def write_rejections(path: Path, rejections: Sequence[Rejection]) -> None:
    """Records set aside in memory, as the lines they were read from, each with its reason; in their order.

    Raises DataError where a file is no longer what it was when they were read.
    """
    wanted = {(item.record.path, item.record.line) for item in rejections}
    lines: dict[tuple[str, int], bytes | Fault] = {}
    for name in dict.fromkeys(item.record.path for item in rejections):
        lines |= {(name, number): raw for number, raw in read_lines(Path(name)) if (name, number) in wanted}
    with path.open("wb") as file:
        for item in rejections:
            record = item.record
            raw = lines.get((record.path, record.line))
            if raw is None or not is_line_of(raw, record):
                raise DataError(f"{record.where}: changed while it was read; run it again.")
            decision = Decision(item.stage, item.reason, item.detail, item.match)
            write_rejected(file, raw, note_of(record.where, item.language, decision))


def is_line_of(raw: bytes | Fault, record: Any) -> bool:
    """Whether a line, read again, is what `record` was read from."""
    if isinstance(record, Fault):
        return (raw.raw if isinstance(raw, Fault) else raw) == record.raw
    again = raw if isinstance(raw, Fault) else parse_line(raw, record.path, record.line)
    return not isinstance(again, Fault) and repr(again.fields) == repr(record.fields)  # NaN is not itself


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
