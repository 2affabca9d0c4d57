"""Records that a rule set aside back among those that are kept, by their reason or their id."""

import hashlib
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from heapq import merge
from pathlib import Path
from typing import Any

from mlx_hybrid.errors import ConfigError, DataError, nearest
from mlx_hybrid.governance.checks.personal import kinds_to_redact
from mlx_hybrid.governance.folder.forgetting import names_of
from mlx_hybrid.governance.folder.lines import Line, read_folder_lines, write_kept
from mlx_hybrid.governance.folder.manifest import DATA, rewrite, verify
from mlx_hybrid.governance.rules import RULES
from mlx_hybrid.governance.stages import Finding
from mlx_hybrid.records.record import Record, parse_line

KEPT, REJECTED = DATA


@dataclass
class Rescued:
    """How many records came back for each reason, and those that stay because they are none, with what is wrong."""

    records: dict[str, int] = field(default_factory=dict)
    left: list[str] = field(default_factory=list)


def rescue(folder: Path, ids: Sequence[str], reasons: Sequence[str]) -> Rescued:
    """Move what was set aside for these reasons, or has these ids (or `path:line`), to the kept records, in place.

    Raises ConfigError for a reason that there is not, DataError where no record comes back; nothing is changed then.
    """
    manifest, done, seen = verify(folder), Rescued(), set()
    settings = {source["path"]: source.get("map", {}) for source in manifest["inputs"]}
    order = {path: place for place, path in enumerate(settings)}
    redacts = kinds_to_redact(manifest["config"])

    def back(line: Line) -> bytes | None:
        """The line as a kept one; None where it stays."""
        reason = line.note["reason"]
        if reason not in reasons and names_of(line).isdisjoint(ids):
            return None
        seen.add(reason)
        item, source = line.item(), line.source()
        raw = line.bare() if source is None else source.encode("utf-8", "surrogatepass")
        if not isinstance(found := parse_line(raw, item.path, item.line, settings.get(item.path)), Record):
            done.left.append(f"{item.where}: {found.detail}")
            return None
        done.records[reason] = done.records.get(reason, 0) + 1
        item.decision, item.flags = None, (Finding("rescued", f"{reason}: {line.note.get('detail', '')}"),)
        file = io.BytesIO()
        write_kept(file, raw, item, redacts=redacts, renames=settings.get(item.path, {}))
        return file.getvalue()

    def place(entry: tuple[Any, bytes]) -> tuple[int, int]:
        path, _, number = entry[0]["where"].rpartition(":")
        return order.get(path, 0), int(number)

    def change(scratch: Path) -> dict:
        with (scratch / REJECTED).open("wb") as rejected, (scratch / KEPT).open("wb") as kept:

            def rescued() -> Iterator[tuple[Any, bytes]]:
                for line in read_folder_lines(folder / REJECTED):
                    raw = back(line)
                    if raw is None:
                        rejected.write(line.raw)
                    else:
                        yield line.note, raw

            was = ((line.note, line.raw) for line in read_folder_lines(folder / KEPT))
            kept.writelines(raw for _, raw in merge(was, rescued(), key=place))
        check(folder, ids, reasons, seen, done)
        hashes = [hashlib.sha256(name.encode()).hexdigest() for name in ids]
        return {"rescued": {"reasons": list(reasons), "ids_sha256": hashes, "records": done.records}}

    rewrite(folder, change)
    return done


def check(folder: Path, ids: Sequence[str], reasons: Sequence[str], seen: set[str], done: Rescued) -> None:
    """Raise where a reason or an id found nothing, or all that it found are no records."""
    if missing := [reason for reason in reasons if reason not in seen]:
        known = {line.note["reason"] for line in read_folder_lines(folder / REJECTED)}
        if missing[0] not in RULES or not known:
            raise ConfigError(
                f'--reason: no record was set aside for "{missing[0]}"; {nearest(missing[0], known)}'
            )
        raise DataError(
            f"{folder}: no record was set aside for {missing[0]}; there are {', '.join(sorted(known))}."
        )
    if not done.records:
        told = f"is no record that can be trained on ({done.left[0]})" if done.left else ""
        raise DataError(
            f"{folder}: what was asked for {told or 'is not in rejected.jsonl'}; nothing was changed."
        )
