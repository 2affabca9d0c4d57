"""A person's records out of a governed folder, and the runs that saw them."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mlx_hybrid.errors import DataError
from mlx_hybrid.files import write_json
from mlx_hybrid.governance.engines import sha256_of
from mlx_hybrid.governance.manifest import DATA, describe_files, verify
from mlx_hybrid.governance.records import parse_line, read_lines
from mlx_hybrid.governance.staging import staged


def forget(folder: Path, ids: Sequence[str], runs: Path) -> tuple[dict[str, int], list[str]]:
    """Take the records with these ids (or `path:line`) out of the folder; how many by file, and the runs that saw them.

    The folder is replaced whole; its new manifest names the old one as parent and counts what was forgotten, by hash
    of the id, not by the id. Raises DataError when no record has any of the ids.
    """
    manifest = verify(folder)
    old = sha256_of(folder / "manifest.json")
    removed = dict.fromkeys(DATA, 0)
    with staged(folder, replace=True) as scratch:
        for path in sorted(folder.iterdir()):
            target = scratch / path.name
            if path.name in DATA:
                removed[path.name] = copy_without(path, target, frozenset(ids))
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
    chain = [old, *(parent["sha256"] for parent in manifest["parents"])]
    return removed, runs_trained_on(chain, runs)


def renew_hash(folder: Path) -> None:
    """The new hash of `kept.jsonl` in the Croissant description."""
    tree = json.loads((folder / "croissant.json").read_text(encoding="utf-8"))
    tree["distribution"][0]["sha256"] = sha256_of(folder / "kept.jsonl")
    write_json(folder / "croissant.json", tree)


def copy_without(path: Path, target: Path, ids: frozenset[str]) -> int:
    """Copy lines whose record has none of the ids; how many were left out."""
    left_out = 0
    with target.open("wb") as file:
        for number, raw in read_lines(path):
            fields = json.loads(raw) if isinstance(raw, bytes) else {}
            names = {str(fields.get("id")), fields.get("_gov", {}).get("where"), id_inside(fields)}
            if names & ids:
                left_out += 1
            elif isinstance(raw, bytes):
                file.write(raw + b"\n")
            else:
                raise DataError(f"{path}:{number}: cannot be read; restore the file and try again.")
    return left_out


def id_inside(fields: dict[str, Any]) -> str | None:
    """The id of a record that stands as raw text, because it was no record, when it can be told."""
    if not isinstance(fields.get("raw"), str):
        return None
    item = parse_line(fields["raw"].encode("utf-8", "surrogatepass"), "", 0)
    try:
        value = json.loads(getattr(item, "raw", b"null"))
    except (ValueError, RecursionError):
        return None
    return str(value.get("id")) if isinstance(value, dict) else None


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
