"""Records that a rule set aside back among those that are kept, by their reason or their id."""

import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from heapq import merge
from pathlib import Path
from typing import Any

from mlx_hybrid.errors import ConfigError, DataError, nearest
from mlx_hybrid.governance.checks.personal import kinds_to_redact
from mlx_hybrid.governance.folder.forgetting import hashes_of, names_of
from mlx_hybrid.governance.folder.lines import KEPT, REJECTED, Line, maps_of, read_folder_lines, write_kept
from mlx_hybrid.governance.folder.manifest import rewrite, verify
from mlx_hybrid.governance.rules import RULES
from mlx_hybrid.governance.stages import Finding
from mlx_hybrid.records.record import Record, parse_line


@dataclass
class Rescued:
    """How many records came back for each reason, and those that stay because they are none, with what is wrong."""

    records: dict[str, int] = field(default_factory=dict)
    left: list[str] = field(default_factory=list)


def rescue(folder: Path, ids: Sequence[str], reasons: Sequence[str]) -> Rescued:
    """Move what was set aside for these reasons, or has these ids (or `path:line`), to the kept records, in place.

    Raises ConfigError for a reason that there is not, DataError where no record comes back; nothing is changed then.
    """
    manifest, done, known = verify(folder), Rescued(), set()
    maps = maps_of(manifest["inputs"])
    redacts = kinds_to_redact(manifest["config"])

    def back(line: Line) -> bytes:
        """The line as a kept one; empty where it stays."""
        reason, item = line.note["reason"], line.item()
        known.add(reason)
        if reason not in reasons and names_of(line, maps).isdisjoint(ids):
            return b""
        raw = line.bare() if line.source is None else line.source.encode("utf-8", "surrogatepass")
        if not isinstance(found := parse_line(raw, item.path, item.line, maps.get(item.path)), Record):
            done.left.append(f"{item.where}: {found.detail}")
            return b""
        done.records[reason] = done.records.get(reason, 0) + 1
        item.decision, item.flags = None, (Finding("rescued", f"{reason}: {line.note.get('detail', '')}"),)
        write_kept(file := io.BytesIO(), raw, item, redacts=redacts, renames=maps.get(item.path, {}))
        return file.getvalue()

    def place(entry: tuple[dict[str, Any], bytes]) -> tuple[int, int]:
        path, _, number = entry[0]["where"].rpartition(":")
        return list(maps).index(path) if path in maps else 0, int(number)

    def change(scratch: Path) -> dict:
        with (scratch / REJECTED).open("wb") as file:
            rescued = []
            for line in read_folder_lines(folder / REJECTED):
                if raw := back(line):
                    rescued.append((line.note, raw))
                else:
                    file.write(line.raw)
        check(folder, reasons, known, done)
        was = ((line.note, line.raw) for line in read_folder_lines(folder / KEPT))
        with (scratch / KEPT).open("wb") as file:
            file.writelines(raw for _, raw in merge(was, rescued, key=place))
        return {"rescued": {"reasons": list(reasons), "ids_sha256": hashes_of(ids), "records": done.records}}

    rewrite(folder, change)
    return done


def check(folder: Path, reasons: Sequence[str], known: set[str], done: Rescued) -> None:
    """Raise for a reason that took nothing, and where all that was found are no records."""
    for reason in reasons:
        if reason not in known:
            told, some = f"no record was set aside for {reason}", ", ".join(sorted(known)) or "none"
            if reason in RULES:
                raise DataError(f"{folder}: {told}; there are {some}.")
            raise ConfigError(f"--reason: {told}; {nearest(reason, {*known, *RULES})}")
    if not done.records:
        told = (
            f"is no record that can be trained on ({done.left[0]})" if done.left else f"is not in {REJECTED}"
        )
        raise DataError(f"{folder}: what was asked for {told}; nothing was changed.")
