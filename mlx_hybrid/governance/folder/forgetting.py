"""A person's records out of a governed folder, and out of the runs that were trained on it."""

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlx_hybrid.errors import DataError
from mlx_hybrid.files import new_directory, sha256_of, write_json
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
    seen = frozenset(ids) | contents_of(folder / KEPT, frozenset(ids))
    removed = cut(folder, manifest, frozenset(ids), ids)
    hashes = [parent["sha256"] for parent in manifest["parents"]]
    trained = runs_trained_on(hashes, runs)
    from_runs = {run: count for run in trained if (count := forget_in_run(Path(run), seen, ids))}
    others = sorted({path.parent for path in runs.glob("*/run.json")} - set(map(Path, trained)))
    holding = [str(run) for run in others if any(holds(path, seen) for path in data_of(run))]
    return Forgotten(removed, trained, from_runs, holding)


def cut(folder: Path, manifest: dict[str, Any], names: frozenset[str], ids: Sequence[str]) -> dict[str, int]:
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
        renew_hash(scratch)
        hashes = [hashlib.sha256(name.encode()).hexdigest() for name in ids]
        manifest["forgotten"] = [*manifest.get("forgotten", []), {"ids_sha256": hashes, "records": removed}]
        manifest["parents"] = [*manifest.get("parents", []), {"path": "manifest.json", "sha256": old}]
        manifest["outputs"] = describe_files(scratch)
        write_json(scratch / "manifest.json", manifest)
    return removed


def data_of(run: Path) -> list[Path]:
    """The files of records that a run keeps: those in its `data`, or what an older run set aside."""
    paths = (run / "data" / KEPT, run / "data" / REJECTED, run / REJECTED)
    return [path for path in paths if path.is_file()]


def forget_in_run(run: Path, names: frozenset[str], ids: Sequence[str]) -> int:
    """Take the records out of what a run keeps of its data; how many there were."""
    if (run / "data" / "manifest.json").is_file():
        if not any(holds(path, names) for path in data_of(run)):
            return 0
        return sum(cut(run / "data", verify(run / "data"), names, ids).values())
    return remove_set_aside(run / REJECTED, names)


def contents_of(kept: Path, ids: frozenset[str]) -> frozenset[str]:
    """Digests of the records with these ids: a run knows them by places in `kept.jsonl`, which move when it is cut."""
    lines = (
        fields
        for _, raw in read_lines(as_source(kept))
        if isinstance(raw, bytes) and (fields := object_of(raw))
    )
    return frozenset(content_of(fields) for fields in lines if names_of(fields) & ids)


def renew_hash(folder: Path) -> None:
    """The new hash of `kept.jsonl` in the Croissant description."""
    tree = json.loads((folder / "croissant.json").read_text(encoding="utf-8"))
    tree["distribution"][0]["sha256"] = sha256_of(folder / "kept.jsonl")
    write_json(folder / "croissant.json", tree)


def remove_set_aside(path: Path, names: frozenset[str]) -> int:
    """Take the records out of what an older run set aside; how many there were."""
    if not path.is_file():
        return 0
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        count = copy_without(path, temporary, names)
        if count:
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return count


def copy_without(path: Path, target: Path, ids: frozenset[str]) -> int:
    """Copy lines whose record has none of the ids; how many were left out. Raises DataError for an unreadable line."""
    left_out = 0
    with target.open("wb") as file:
        for number, raw in read_lines(as_source(path)):
            fields = object_of(raw) if isinstance(raw, bytes) else None
            if fields is None:
                raise DataError(f"{path}:{number}: cannot be read; restore the file and try again.")
            if names_of(fields) & ids:
                left_out += 1
            else:
                file.write(raw + b"\n")
    return left_out


def holds(path: Path, ids: frozenset[str]) -> bool:
    """Whether a record has one of the ids."""
    return any(
        names_of(object_of(raw) or {}) & ids
        for _, raw in read_lines(as_source(path))
        if isinstance(raw, bytes)
    )


def object_of(raw: bytes) -> dict[str, Any] | None:
    """The JSON object of a line; None where it is none."""
    try:
        fields = json.loads(raw)
    except (ValueError, RecursionError):
        return None
    return fields if isinstance(fields, dict) else None


def names_of(fields: dict[str, Any]) -> set[str]:
    """What a record may be called by: its id, `path:line`, and the digest of all that it says."""
    names = (fields.get("id"), fields.get("_gov", {}).get("where"), id_inside(fields), content_of(fields))
    return {str(name) for name in names if name is not None}


def content_of(fields: dict[str, Any]) -> str:
    """A digest of a record without what governance noted on it."""
    record = {key: value for key, value in fields.items() if key != "_gov"}
    return f"content {hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()}"


def id_inside(fields: dict[str, Any]) -> Any:
    """The id of a record that stands as raw text, because it was no record, when it can be told."""
    if not isinstance(fields.get("raw"), str):
        return None
    item = parse_line(fields["raw"].encode("utf-8", "surrogatepass"), "", 0)
    try:
        value = json.loads(getattr(item, "raw", b"null"))
    except (ValueError, RecursionError):
        return None
    return value.get("id") if isinstance(value, dict) else None


def runs_trained_on(hashes: Sequence[str], runs: Path) -> list[str]:
    """Run folders whose run.json names one of these manifests."""
    if not runs.is_dir():
        return []
    found = []
    for path in sorted(runs.glob("*/run.json")):
        text = path.read_text(encoding="utf-8", errors="replace")
        if any(digest in text for digest in hashes):
            found.append(str(path.parent))
    return found
