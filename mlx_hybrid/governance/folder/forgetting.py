"""A person's records out of a governed folder, and out of the runs that were trained on it."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlx_hybrid.errors import DataError
from mlx_hybrid.files import new_directory, read_json, sha256_of, write_bytes, write_json
from mlx_hybrid.governance.folder.manifest import DATA, describe_files, verify
from mlx_hybrid.records.lines import as_source, read_lines
from mlx_hybrid.records.record import parse_line

KEPT, REJECTED = DATA


@dataclass(frozen=True)
class Forgotten:
    """How many records went from each file; the runs that were trained on the folder; how many went from the data of
    each of them; and other runs that hold such a record, which are not touched."""

    removed: dict[str, int]
    runs: list[str]
    removed_from_runs: dict[str, int]
    other_runs: list[str]


def forget(folder: Path, ids: Sequence[str], runs: Path) -> Forgotten:
    """Take the records with these ids (or `path:line`) out of the folder and out of the data of its runs.

    Raises DataError when no record has any of the ids.
    """
    manifest = verify(folder)
    # A run knows them by places in `kept.jsonl`, which move when it is cut; what they say stays.
    said = [own for _, own in named_lines(folder / KEPT) if not own.isdisjoint(ids)]
    seen = set(ids) | {name for own in said for name in own if name.startswith("content ")}
    removed = cut(folder, manifest, set(ids), ids)
    hashes = [parent["sha256"] for parent in manifest["parents"]]
    found = {path.parent: path.read_text("utf-8", "replace") for path in sorted(runs.glob("*/run.json"))}
    trained = [run for run, text in found.items() if any(digest in text for digest in hashes)]
    from_runs = {str(run): count for run in trained if (count := forget_in_run(run, seen, ids))}
    others = [str(run) for run in found if run not in trained and holds(run, seen)]
    return Forgotten(removed, [str(run) for run in trained], from_runs, others)


def cut(folder: Path, manifest: dict[str, Any], names: set[str], ids: Sequence[str]) -> dict[str, int]:
    """Take the records with these names out of both files of a governed folder; how many went from each.

    The folder is replaced whole; its new manifest names the old one as parent and counts what was forgotten, by hash
    of the id, not by the id. Raises DataError, and changes nothing, where no record has any of the names.
    """
    old = sha256_of(folder / "manifest.json")
    with new_directory(folder) as scratch:
        removed = {name: copy_without(folder / name, scratch / name, names) for name in DATA}
        if not any(removed.values()):
            raise DataError(f"{folder}: no record has the id {', '.join(ids)}; nothing was changed.")
        for path in sorted(folder.iterdir()):
            if path.name not in (*DATA, "manifest.json"):
                (scratch / path.name).write_bytes(path.read_bytes())
        described = read_json(scratch / "croissant.json")
        described["distribution"][0]["sha256"] = sha256_of(scratch / KEPT)
        write_json(scratch / "croissant.json", described)
        hashes = [hashlib.sha256(name.encode()).hexdigest() for name in ids]
        manifest["forgotten"] = [*manifest.get("forgotten", []), {"ids_sha256": hashes, "records": removed}]
        manifest["parents"] = [*manifest.get("parents", []), {"path": "manifest.json", "sha256": old}]
        manifest["outputs"] = describe_files(scratch)
        write_json(scratch / "manifest.json", manifest)
    return removed


def copy_without(path: Path, target: Path, names: set[str]) -> int:
    """Copy lines whose record has none of the names; how many were left out."""
    left_out = 0
    with target.open("wb") as file:
        for raw, own in named_lines(path):
            if own.isdisjoint(names):
                file.write(raw + b"\n")
            else:
                left_out += 1
    return left_out


def forget_in_run(run: Path, names: set[str], ids: Sequence[str]) -> int:
    """Take the records out of what a run keeps of its data; how many there were."""
    if not holds(run, names):
        return 0
    if (run / "data" / "manifest.json").is_file():
        return sum(cut(run / "data", verify(run / "data"), names, ids).values())
    lines = list(named_lines(run / REJECTED))
    left = [raw + b"\n" for raw, own in lines if own.isdisjoint(names)]
    write_bytes(run / REJECTED, b"".join(left))
    return len(lines) - len(left)


def holds(run: Path, names: set[str]) -> bool:
    """Whether one of these records is in what a run keeps: in its `data`, or what an older run set aside."""
    paths = [run / "data" / KEPT, run / "data" / REJECTED, run / REJECTED]
    lines = (line for path in paths if path.is_file() for line in named_lines(path, strict=False))
    return any(not own.isdisjoint(names) for _, own in lines)


def named_lines(path: Path, *, strict: bool = True) -> Iterator[tuple[bytes, set[str]]]:
    """Each line with the names of its record. Raises DataError for one that cannot be read, or passes it over."""
    for number, raw in read_lines(as_source(path)):
        fields = object_of(raw) if isinstance(raw, bytes) else None
        if fields is not None:
            yield raw, names_of(fields)
        elif strict:
            raise DataError(f"{path}:{number}: cannot be read; restore the file and try again.")


def object_of(raw: bytes) -> dict[str, Any] | None:
    """The JSON object of a line; None where it is none."""
    try:
        fields = json.loads(raw)
    except (ValueError, RecursionError):
        return None
    return fields if isinstance(fields, dict) else None


def names_of(fields: dict[str, Any]) -> set[str]:
    """What a record may be called by: its id, `path:line`, and the digest of all that it says without `_gov`."""
    said = {key: value for key, value in fields.items() if key != "_gov"}
    digest = hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()
    names = (fields.get("id"), fields.get("_gov", {}).get("where"), id_inside(fields), f"content {digest}")
    return {str(name) for name in names if name is not None}


def id_inside(fields: dict[str, Any]) -> Any:
    """The id of a record that stands as raw text, because it was no record, when it can be told."""
    if not isinstance(fields.get("raw"), str):
        return None
    item = parse_line(fields["raw"].encode("utf-8", "surrogatepass"), "", 0)
    return (object_of(getattr(item, "raw", b"null")) or {}).get("id")
