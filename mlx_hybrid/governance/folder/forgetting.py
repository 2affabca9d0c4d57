"""A person's records out of a governed folder, and the runs that saw them."""

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlx_hybrid.errors import DataError
from mlx_hybrid.files import write_json
from mlx_hybrid.governance.checks.engines import sha256_of
from mlx_hybrid.governance.folder.manifest import DATA, describe_files, verify
from mlx_hybrid.governance.staging import staged
from mlx_hybrid.records.record import parse_line, read_lines


@dataclass(frozen=True)
class Forgotten:
    """How many records went from each file; the runs that were trained on the folder; how many went from what each of
    them had set aside; and other runs that set such a record aside, which are not touched."""

    removed: dict[str, int]
    runs: list[str]
    removed_from_runs: dict[str, int]
    other_runs: list[str]


def forget(folder: Path, ids: Sequence[str], runs: Path) -> Forgotten:
    """Take the records with these ids (or `path:line`) out of the folder and out of what its runs set aside.

    The folder is replaced whole; its new manifest names the old one as parent and counts what was forgotten, by hash
    of the id, not by the id. Raises DataError when no record has any of the ids.
    """
    manifest, names = verify(folder), frozenset(ids)
    seen = names | contents_of(folder / "kept.jsonl", names)
    old = sha256_of(folder / "manifest.json")
    removed = dict.fromkeys(DATA, 0)
    with staged(folder, replace=True) as scratch:
        for path in sorted(folder.iterdir()):
            target = scratch / path.name
            if path.name in DATA:
                removed[path.name] = copy_without(path, target, names)
            elif path.name != "manifest.json":
                target.write_bytes(path.read_bytes())
        renew_hash(scratch)
        if not any(removed.values()):
            raise DataError(f"{folder}: no record has the id {', '.join(ids)}; nothing was changed.")
        hashes = [hashlib.sha256(name.encode()).hexdigest() for name in ids]
        manifest["forgotten"] = [*manifest.get("forgotten", []), {"ids_sha256": hashes, "records": removed}]
        manifest["parents"] = [*manifest.get("parents", []), {"path": "manifest.json", "sha256": old}]
        manifest["outputs"] = describe_files(scratch)
        write_json(scratch / "manifest.json", manifest)
    trained = runs_trained_on([old, *(parent["sha256"] for parent in manifest["parents"])], runs)
    from_runs = {run: count for run in trained if (count := remove_set_aside(Path(run), seen))}
    others = [path for path in sorted(runs.glob("*/rejected.jsonl")) if str(path.parent) not in trained]
    return Forgotten(removed, trained, from_runs, [str(path.parent) for path in others if holds(path, seen)])


def contents_of(kept: Path, ids: frozenset[str]) -> frozenset[str]:
    """Digests of the records with these ids: a run knows them by places in `kept.jsonl`, which move when it is cut."""
    lines = (fields for _, raw in read_lines(kept) if isinstance(raw, bytes) and (fields := object_of(raw)))
    return frozenset(content_of(fields) for fields in lines if names_of(fields) & ids)


def renew_hash(folder: Path) -> None:
    """The new hash of `kept.jsonl` in the Croissant description."""
    tree = json.loads((folder / "croissant.json").read_text(encoding="utf-8"))
    tree["distribution"][0]["sha256"] = sha256_of(folder / "kept.jsonl")
    write_json(folder / "croissant.json", tree)


def remove_set_aside(run: Path, ids: frozenset[str]) -> int:
    """Take the records out of a run's rejected.jsonl; how many there were."""
    path = run / "rejected.jsonl"
    if not path.is_file():
        return 0
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        count = copy_without(path, temporary, ids)
        if count:
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return count


def copy_without(path: Path, target: Path, ids: frozenset[str]) -> int:
    """Copy lines whose record has none of the ids; how many were left out. Raises DataError for an unreadable line."""
    left_out = 0
    with target.open("wb") as file:
        for number, raw in read_lines(path):
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
    return any(names_of(object_of(raw) or {}) & ids for _, raw in read_lines(path) if isinstance(raw, bytes))


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
