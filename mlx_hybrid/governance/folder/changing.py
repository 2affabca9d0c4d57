"""Records out of a governed folder and of the runs that were trained on it (`forget`), or back into it (`rescue`)."""

import hashlib
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field, replace
from heapq import merge
from pathlib import Path
from typing import Any

from mlx_hybrid.errors import ConfigError, DataError, nearest
from mlx_hybrid.files import sha256_of, write_bytes
from mlx_hybrid.governance.checks.personal import find_personal, kinds_to_redact, redact
from mlx_hybrid.governance.folder import lines
from mlx_hybrid.governance.folder.lines import DATA, KEPT, REJECTED, Line, Maps, read_folder_lines
from mlx_hybrid.governance.folder.manifest import rewrite, verify
from mlx_hybrid.governance.rules import RULES, Finding
from mlx_hybrid.records.record import Record, parse_line

ESCAPE = re.compile(r"\\u([0-9a-fA-F]{4})|\\([nt\"])")
AS_ID = r"""id["']?\s*[:=]\s*["']?"""
SHORTEST = 20  # characters of a text that is looked for inside lines that are no records


@dataclass
class Wanted:
    """What tells the records to be forgotten: ids, places, what they say, and the personal data in it."""

    ids: set[str]
    maps: Maps
    places: set[str] = field(default_factory=set)
    texts: set[str] = field(default_factory=set)
    personal: set[str] = field(default_factory=set)

    def learn(self, line: Line) -> None:
        names, text = names_and_text(line)
        if names & self.ids:
            self.places |= {line.note["match"]} if line.note.get("reason") == "exact_dup" else set()
            self.texts |= {flat(text)} - {""}
            self.personal |= {text[span.start : span.end] for span in find_personal(text)}

    def holds(self, line: Line) -> bool:
        """Whether a line is one of the records, a copy of one, or names or says one without being a record."""
        names, text = names_and_text(line)
        if names & self.ids:
            return True
        if line.source is None:
            places = {line.note.get("where"), line.note.get("match")}
            return bool(places & self.places) or flat(text) in self.texts
        plain = ESCAPE.sub(lambda m: chr(int(m[1], 16)) if m[1] else " ", line.source)
        said = any(text in flat(plain) for text in self.texts if len(text) >= SHORTEST)
        return said or mentions(plain, self.ids)

    def in_run(self, run: Path) -> Iterator[bool]:
        """Of each line that a run keeps, in its `data` or, of older ones, beside it, whether it is one of them."""
        for path in (run / "data" / KEPT, run / "data" / REJECTED, run / REJECTED):
            found = read_folder_lines(path, self.maps, strict=False) if path.is_file() else ()
            yield from map(self.holds, found)


def names_and_text(line: Line) -> tuple[set[str], str]:
    """What a record may be called by, its id and `path:line`, and what it says; of a line that was no record, too."""
    found = line.record() if line.source is None else parse_line(line.bare(), "", 0)
    record = found if isinstance(found, Record) else None
    own = record.fields.get("id") if record else line.row.get("id")
    names = {str(name) for name in (own, line.note.get("where")) if name is not None}
    return names, record.content() if record else ""


def flat(text: str) -> str:
    """A text as it is compared: without case and spaces, and redacted, as kept records may be."""
    return " ".join(redact(text).casefold().split())


def mentions(text: str, names: set[str]) -> bool:
    """Whether one of the names stands in a text, not as part of a longer one; a short one or a number, as an id."""
    found = [name for name in names if name in text]
    ways = (f"{'' if len(n) > 4 and not n.isdigit() else AS_ID}{re.escape(n)}" for n in found)
    return any(re.search(rf"(?<![\w-]){way}(?![\w-])", text) for way in ways)


def forget(folder: Path, ids: Collection[str], runs: Path) -> dict[str, Any]:
    """Take the records with these ids (or `path:line`), and their copies, out of the folder and the data of its runs.

    Returns how many went from each file (`removed`), the `runs` that were trained on the folder, how many went from
    the data of each (`removed_from_runs`), `other_runs` that hold such a record, which are not touched, and the lines
    `left` that name them. Raises DataError when no record has any of the ids."""
    manifest = verify(folder)
    wanted = Wanted(set(ids), lines.maps_of(manifest["inputs"]))
    hashes = [sha256_of(folder / "manifest.json"), *(parent["sha256"] for parent in manifest["parents"])]
    for _, line in both(folder, wanted.maps):
        wanted.learn(line)
    wanted.places |= {line.note["where"] for _, line in both(folder, wanted.maps) if wanted.holds(line)}
    removed = cut(folder, wanted)
    marks = {*ids, *wanted.personal}
    left = [place for place, line in both(folder) if mentions(line.raw.decode("utf-8", "replace"), marks)]
    found = {path.parent: path.read_text("utf-8", "replace") for path in sorted(runs.glob("*/run.json"))}
    trained = [run for run, text in found.items() if any(digest in text for digest in hashes)]
    # A run knows records by places of its own, so that what they say decides.
    said = replace(wanted, places=set())
    return {
        "removed": removed,
        "runs": [str(run) for run in trained],
        "removed_from_runs": {str(run): count for run in trained if (count := forget_in_run(run, said))},
        "other_runs": [str(run) for run in found if run not in trained and any(said.in_run(run))],
        "left": left,
    }


def both(folder: Path, maps: Maps = lines.NO_MAPS) -> Iterator[tuple[str, Line]]:
    """The lines of both files, each with its place in them."""
    for name in DATA:
        for number, line in enumerate(read_folder_lines(folder / name, maps), start=1):
            yield f"{name}:{number}", line


def cut(folder: Path, wanted: Wanted) -> dict[str, int]:
    """Take the records out of both files of a governed folder, and count its papers anew; how many went from each. The
    manifest notes hashes of the ids, not the ids. Raises DataError, and changes nothing, where none is there."""
    removed = dict.fromkeys(DATA, 0)

    def change(scratch: Path) -> dict:
        for name in DATA:
            with (scratch / name).open("wb") as file:
                for line in read_folder_lines(folder / name, wanted.maps):
                    gone = wanted.holds(line)
                    removed[name] += gone
                    file.write(b"" if gone else line.raw)
        if not any(removed.values()):
            told = ", ".join(sorted(wanted.ids))
            raise DataError(f"{folder}: no record has the id {told}; nothing was changed.")
        return {"forgotten": {"ids_sha256": hashes_of(wanted.ids), "records": removed}}

    rewrite(folder, change)
    return removed


def forget_in_run(run: Path, wanted: Wanted) -> int:
    """Take the records out of what a run keeps of its data; how many there were."""
    count = sum(wanted.in_run(run))
    for name in ("samples.jsonl", "report.html") if count else ():  # which show texts of held-out records
        (run / name).unlink(missing_ok=True)
    if count and (run / "data" / "manifest.json").is_file():
        return sum(cut(run / "data", wanted).values())
    if count:
        found = read_folder_lines(run / REJECTED, wanted.maps)
        write_bytes(run / REJECTED, b"".join(line.raw for line in found if not wanted.holds(line)))
    return count


def hashes_of(names: Iterable[str]) -> list[str]:
    return sorted(hashlib.sha256(name.encode()).hexdigest() for name in names)


def rescue(folder: Path, ids: Collection[str], reasons: Collection[str]) -> dict[str, Any]:
    """Move what was set aside for these reasons, or has these ids (or `path:line`), to the kept records, in place.

    Returns how many `records` came back for each reason, and what is `left` because it is none, with what is wrong.
    Raises ConfigError for a reason that there is not, DataError where no record comes back; nothing is changed then."""
    manifest = verify(folder)
    maps, redacts = lines.maps_of(manifest["inputs"]), kinds_to_redact(manifest["config"])
    order = {path: place for place, path in enumerate(maps)}
    known, done, left = set(), Counter[str](), []

    def back(line: Line) -> bytes:
        """The line as a kept one; empty where it stays."""
        reason, item, raw = line.note["reason"], line.item(), line.bare()
        renames = maps.get(item.path, {})
        known.add(reason)
        if reason not in reasons and names_and_text(line)[0].isdisjoint(ids):
            return b""
        if not isinstance(found := parse_line(raw, item.path, item.line, renames), Record):
            left.append(f"{item.where}: {found.detail}")
            return b""
        done[reason] += 1
        item.decision, item.flags = None, (Finding("rescued", f"{reason}: {line.note.get('detail', '')}"),)
        return lines.kept_line(raw, item, redacts, renames)

    def change(scratch: Path) -> dict:
        rescued = []
        with (scratch / REJECTED).open("wb") as file:
            for line in read_folder_lines(folder / REJECTED, maps):
                raw = back(line)
                rescued += [(line, raw)] if raw else []
                file.write(b"" if raw else line.raw)
        check(folder, reasons, known, left, nothing=not done)
        was = ((line, line.raw) for line in read_folder_lines(folder / KEPT))
        with (scratch / KEPT).open("wb") as file:
            found = merge(was, rescued, key=lambda row: (order.get(row[0].place[0], 0), row[0].place[1]))
            file.writelines(raw for _, raw in found)
        return {"rescued": {"reasons": list(reasons), "ids_sha256": hashes_of(ids), "records": done}}

    rewrite(folder, change)
    return {"records": dict(done), "left": left}


def check(folder: Path, reasons: Iterable[str], known: set[str], left: list[str], *, nothing: bool) -> None:
    """Raise for a reason that took nothing, and where all that was found are no records."""
    for reason in (reason for reason in reasons if reason not in known):
        told, some = f"no record was set aside for {reason}", ", ".join(sorted(known)) or "none"
        if reason in RULES:
            raise DataError(f"{folder}: {told}; there are {some}.")
        raise ConfigError(f"--reason: {told}; {nearest(reason, {*known, *RULES})}")
    if nothing:
        why = f"no record that can be trained on ({left[0]})" if left else f"not in {REJECTED}"
        raise DataError(f"{folder}: what was asked for is {why}; nothing was changed.")
