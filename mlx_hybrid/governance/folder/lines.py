"""Lines as `govern` writes them: what they were, with what was decided on them under `_gov`."""

import base64
import json
from collections.abc import Collection, Iterator, Mapping, Sequence, Set
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from mlx_hybrid.errors import DataError
from mlx_hybrid.governance.checks.personal import redact_fields
from mlx_hybrid.governance.inspection import Inspection
from mlx_hybrid.governance.rules import Decision, Finding
from mlx_hybrid.records.fields import NotARecord
from mlx_hybrid.records.lines import Fault
from mlx_hybrid.records.record import Record
from mlx_hybrid.records.shapes import as_record, renamed

WRITTEN = json.JSONEncoder(ensure_ascii=False).encode
DATA = KEPT, REJECTED = ("kept.jsonl", "rejected.jsonl")
Maps = Mapping[str, dict[str, str]]  # of each file of a folder what its keys are read as
NO_MAPS: Maps = MappingProxyType({})


class Line(NamedTuple):
    """A line of a governed folder: its bytes, what it says without `_gov`, that note, and what keys are read as."""

    raw: bytes
    row: dict[str, Any]
    note: dict[str, Any]
    maps: Maps = NO_MAPS

    @property
    def place(self) -> tuple[str, int]:
        """The file it came from, and the line there."""
        path, _, line = self.note.get("where", "").rpartition(":")
        return path, int(line or 0)

    def bare(self) -> bytes:
        """Its bytes as they were before the note; of a line that was no record those it was."""
        if self.source is not None:
            return self.source.encode("utf-8", "surrogatepass")
        return self.raw[: self.raw.rindex(b', "_gov": ')] + b"}"

    @property
    def source(self) -> str | None:
        """The text of a line that was no record; None where it was one."""
        if "raw_base64" in self.row:
            return base64.b64decode(self.row["raw_base64"]).decode("utf-8", "replace")
        return self.row["raw"] if set(self.row) == {"raw"} else None

    def record(self) -> Record | None:
        """The record that stands here, in the form that is trained on; None where it is none."""
        try:
            fields, shape = as_record(renamed(self.row, self.maps.get(self.place[0], {})))
        except NotARecord:
            return None
        return Record(fields, *self.place, self.note.get("shape", shape))

    def item(self) -> Inspection:
        decision = Decision(*(self.note.get(name, "") for name in Decision._fields))
        flags = tuple(Finding(**flag) for flag in self.note.get("flags", []))
        language, licence, record = self.note["language"], str(self.row.get("licence") or ""), self.record()
        decided = decision if decision.stage else None
        return Inspection(*self.place, "", language, licence, record.shape if record else "", decided, flags)


def read_folder_lines(
    path: Path, maps: Maps = NO_MAPS, *, strict: bool = True, at: Set[str] | None = None
) -> Iterator[Line]:
    """The lines of a kept.jsonl or rejected.jsonl, all or those `at` some places. Raises DataError for one that cannot
    be read; where it is not `strict` such a line is passed over."""
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            if at is not None and place_of(raw) not in at:
                continue
            try:
                row = json.loads(raw)
                yield Line(raw, row, row.pop("_gov", {}), maps)
            except (ValueError, RecursionError, AttributeError, TypeError):
                told = f"{path}:{number}: cannot be read; restore the file and try again."
                if strict:
                    raise DataError(told) from None


def place_of(raw: bytes) -> str:
    """The place that a line's note begins with, without reading the line as JSON."""
    told = raw.rpartition(b'"_gov": {"where": ')[2]
    return json.loads(told[: told.find(b'", "language"') + 1] or b'""')


def maps_of(sources: Sequence[dict[str, Any]]) -> Maps:
    return {source["path"]: source.get("map", {}) for source in sources}


def kept_line(raw: bytes, item: Inspection, redacts: Collection[str], renames: Mapping[str, str]) -> bytes:
    """The line as it is where it needs no change, else its fields in the form that is trained on, with its note."""
    row = {} if item.as_is and not redacts else json.loads(raw)
    fields, shape = as_record(renamed(row, renames)) if row else (row, "")
    clean = redact_fields(fields, item.language, redacts) if redacts else fields
    note: dict[str, Any] = {"where": item.where, "language": item.language}
    note |= {"flags": [finding._asdict() for finding in item.flags]} if item.flags else {}
    note |= {"shape": shape} if fields is not row else {}
    note |= {"edits": ["redacted"]} if clean != fields else {}
    return with_note(as_json(clean, "surrogatepass") if {"shape", "edits"} & note.keys() else raw, note)


def rejected_line(raw: bytes | Fault, item: Inspection) -> bytes:
    """The line and why it goes; one that is no record as text under `raw`, or base64 where it is no text."""
    told = {key: value for key, value in item.decision._asdict().items() if value}
    note = {"where": item.where, "language": item.language, **told}
    line = raw.raw if isinstance(raw, Fault) else raw
    if item.decision.stage != "structure" or item.decision.reason == "mixed_kinds":
        return with_note(line, note)
    try:
        whole = {"raw": line.decode("utf-8")}
    except UnicodeDecodeError:
        whole = {"raw_base64": base64.b64encode(line).decode()}
    return as_json({**whole, "_gov": note}) + b"\n"


def with_note(raw: bytes, note: dict[str, Any]) -> bytes:
    """The line with `_gov` as its last key, all other bytes as they were."""
    line = raw.strip()
    if b'"_gov"' in line:
        fields = json.loads(line)
        fields.pop("_gov", None)
        line = as_json(fields, "surrogatepass")
    return line[:-1].rstrip() + b', "_gov": ' + as_json(note) + b"}\n"


def as_json(value: dict[str, Any], surrogates: str = "backslashreplace") -> bytes:
    return WRITTEN(value).encode("utf-8", surrogates)
