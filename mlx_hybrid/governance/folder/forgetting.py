"""A person's records out of a governed folder, and out of the runs that were trained on it."""

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mlx_hybrid.errors import DataError
from mlx_hybrid.files import sha256_of, write_bytes
from mlx_hybrid.governance.checks.personal import find_personal, redact
from mlx_hybrid.governance.folder.lines import Line, read_folder_lines
from mlx_hybrid.governance.folder.manifest import DATA, rewrite, verify
from mlx_hybrid.records.record import Record, parse_line

KEPT, REJECTED = DATA
ESCAPE = re.compile(r"\\u([0-9a-fA-F]{4})|\\([nt\"])")
SHORTEST = 20  # characters of a text that is looked for inside lines that are no records


@dataclass(frozen=True)
class Forgotten:
    """How many records went from each file; the runs that were trained on the folder; how many went from the data of
    each of them; other runs that hold such a record, which are not touched; and lines left that name them."""

    removed: dict[str, int]
    runs: list[str]
    removed_from_runs: dict[str, int]
    other_runs: list[str]
    left: list[str]


@dataclass
class Wanted:
    """What tells the records to be forgotten: ids and places, what they say, and the personal data in it."""

    ids: set[str]
    places: set[str] = field(default_factory=set)
    texts: dict[str, str] = field(default_factory=dict)
    """What was said, by its digest."""
    personal: set[str] = field(default_factory=set)

    def learn(self, line: Line) -> None:
        """Take in what a line says that has one of the ids."""
        own = names_of(line)
        if own.isdisjoint(self.ids):
            return
        self.places |= {line.note["where"]} if "where" in line.note else set()
        if line.note.get("reason") == "exact_dup":
            self.places.add(line.note["match"])
        if text := text_of(line):
            self.texts[digest_of(text)] = flat(text)
            self.personal |= {text[span.start : span.end] for span in find_personal(text)}

    def holds(self, line: Line, *, places: bool = True) -> bool:
        """Whether a line is one of the records, a copy of one, or names or says one without being a record."""
        source = line.source()
        if source is not None:
            plain = ESCAPE.sub(lambda m: chr(int(m[1], 16)) if m[1] else " ", source)
            said = any(text in flat(plain) for text in self.texts.values() if len(text) >= SHORTEST)
            return said or mentions(plain, self.ids) or not names_of(line).isdisjoint(self.ids)
        if places and not {line.note.get("where"), line.note.get("match")}.isdisjoint(self.places):
            return True
        return not names_of(line).isdisjoint(self.ids) or digest_of(text_of(line)) in self.texts


def forget(folder: Path, ids: Sequence[str], runs: Path) -> Forgotten:
    """Take the records with these ids (or `path:line`), and their copies, out of the folder and the data of its runs.

    Raises DataError when no record has any of the ids.
    """
    manifest, wanted = verify(folder), Wanted(set(ids))
    hashes = [sha256_of(folder / "manifest.json"), *(parent["sha256"] for parent in manifest["parents"])]
    for name in DATA:
        for line in read_folder_lines(folder / name):
            wanted.learn(line)
    for name in DATA:
        same = (line for line in read_folder_lines(folder / name) if wanted.holds(line))
        wanted.places |= {line.note["where"] for line in same if "where" in line.note}
    removed = cut(folder, wanted)
    marks = {*ids, *wanted.personal}
    lines = (
        (name, n, line) for name in DATA for n, line in enumerate(read_folder_lines(folder / name), start=1)
    )
    left = [f"{name}:{n}" for name, n, line in lines if mentions(line.raw.decode("utf-8", "replace"), marks)]
    found = {path.parent: path.read_text("utf-8", "replace") for path in sorted(runs.glob("*/run.json"))}
    trained = [run for run, text in found.items() if any(digest in text for digest in hashes)]
    from_runs = {str(run): count for run in trained if (count := forget_in_run(run, wanted))}
    others = [str(run) for run in found if run not in trained and any(in_run(run, wanted))]
    return Forgotten(removed, [str(run) for run in trained], from_runs, others, left)


def cut(folder: Path, wanted: Wanted, *, places: bool = True) -> dict[str, int]:
    """Take the records out of both files of a governed folder, and count its papers anew; how many went from each.

    The manifest notes hashes of the ids, not the ids. Raises DataError, and changes nothing, where none is there.
    """
    removed = dict.fromkeys(DATA, 0)

    def change(scratch: Path) -> dict:
        for name in DATA:
            with (scratch / name).open("wb") as file:
                for line in read_folder_lines(folder / name):
                    gone = wanted.holds(line, places=places)
                    removed[name] += gone
                    file.write(b"" if gone else line.raw)
        if not any(removed.values()):
            told = ", ".join(sorted(wanted.ids))
            raise DataError(f"{folder}: no record has the id {told}; nothing was changed.")
        hashes = sorted(hashlib.sha256(name.encode()).hexdigest() for name in wanted.ids)
        return {"forgotten": {"ids_sha256": hashes, "records": removed}}

    rewrite(folder, change)
    return removed


def forget_in_run(run: Path, wanted: Wanted) -> int:
    """Take the records out of what a run keeps of its data; how many there were."""
    if not (count := sum(in_run(run, wanted))):
        return 0
    if (run / "data" / "manifest.json").is_file():
        return sum(cut(run / "data", wanted, places=False).values())
    left = (line.raw for line in read_folder_lines(run / REJECTED) if not wanted.holds(line, places=False))
    write_bytes(run / REJECTED, b"".join(left))
    return count


def in_run(run: Path, wanted: Wanted) -> Iterator[bool]:
    """Of each line that a run keeps, in its `data` or, of older ones, beside it, whether it is one of the records.

    A run knows records by places of its own, so that what they say decides.
    """
    for path in (run / "data" / KEPT, run / "data" / REJECTED, run / REJECTED):
        if path.is_file():
            yield from (wanted.holds(line, places=False) for line in read_folder_lines(path, strict=False))


def names_of(line: Line) -> set[str]:
    """What a record may be called by: its id and `path:line`."""
    record = record_of(line)
    own = record.fields.get("id") if record else line.row.get("id")
    return {str(name) for name in (own, line.note.get("where")) if name is not None}


def record_of(line: Line) -> Record | None:
    source = line.source()
    item = parse_line(source.encode("utf-8", "surrogatepass"), "", 0) if source is not None else line.record()
    return item if isinstance(item, Record) else None


def text_of(line: Line) -> str:
    record = record_of(line)
    return record.content() if record else ""


def flat(text: str) -> str:
    """A text as it is compared: without case and spaces, and redacted, as kept records may be."""
    return " ".join(redact(text).casefold().split())


def digest_of(text: str) -> str:
    return hashlib.sha256(flat(text).encode("utf-8", "surrogatepass")).hexdigest() if text.strip() else ""


def mentions(text: str, names: set[str]) -> bool:
    """Whether one of the names stands in a text, not as part of a longer one."""
    return any(re.search(rf"(?<![\w-]){re.escape(name)}(?![\w-])", text) for name in names if name in text)
