"""`manifest.json`: what went in, by which rules, what came out, each file by its hash; no date and no worker count."""

import hashlib
import json
import platform
from collections.abc import Callable
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

from mlx_hybrid import __version__
from mlx_hybrid.errors import ConfigError, DataError
from mlx_hybrid.files import new_directory, read_json, sha256_of, write_json
from mlx_hybrid.governance.checks.engines import load_engine
from mlx_hybrid.governance.folder.lines import DATA, maps_of, read_folder_lines
from mlx_hybrid.governance.folder.reports import dataset_card, report_page, summarise, summary_of
from mlx_hybrid.governance.inspection import Ledger

FORMAT = 1
PACKAGES = ("numpy", "regex", "ftfy", "phonenumberslite", "pyarrow")


def write_outputs(folder: Path, ledger: Ledger) -> None:
    """Reports, card and, last, the manifest that hashes them all."""
    summary = summarise(ledger)
    tree = summary["config"]
    # Manifests beside the inputs are the links of the chain back to the first source.
    paths = [Path(source["path"]) for source in ledger.sources]
    beside = [path.with_name("manifest.json") for path in paths if path.name in DATA]
    installed = {name: found.version for name in PACKAGES for found in [*distributions(name=name)][:1]}
    manifest = {
        "format": FORMAT,
        "tool": "mlx-hybrid govern",
        "versions": {"mlx_hybrid": __version__, "python": platform.python_version(), **installed},
        "config": tree,
        "config_sha256": hash_of(tree),
        "stages": list(ledger.stages),
        "engine": load_engine(tree["engine"]).describe() if "language" in ledger.stages else None,
        "inputs": summary["sources"],
        "parents": [{"path": str(path), "sha256": sha256_of(path)} for path in beside if path.is_file()],
        "against": [describe_file(Path(path), path) for path in tree["against"]],
    }
    write_papers(folder, summary, manifest)


def write_papers(folder: Path, summary: dict[str, Any], manifest: dict[str, Any]) -> None:
    write_json(folder / "report.json", summary)
    (folder / "report.html").write_text(report_page(folder, summary), encoding="utf-8")
    (folder / "README.md").write_text(dataset_card(summary), encoding="utf-8")
    outputs = [describe_file(path, path.name) for path in sorted(folder.iterdir())]
    for output in (output for output in outputs if output["path"] in DATA):
        with (folder / output["path"]).open("rb") as file:
            output["lines"] = sum(1 for _ in file)
    told = {"counts": summary["counts"], "flags": summary["flags"], "outputs": outputs}
    write_json(folder / "manifest.json", manifest | told)


def rewrite(folder: Path, change: Callable[[Path], dict[str, Any]]) -> None:
    """Replace a governed folder by the two files that `change` writes into a new one, and papers that count them. It
    returns what the manifest is to note; the new manifest names the old one as a parent."""
    manifest = verify(folder)
    old = {"path": "manifest.json", "sha256": sha256_of(folder / "manifest.json")}
    with new_directory(folder) as scratch:
        noted = change(scratch)
        maps = maps_of(manifest["inputs"])
        items = [line.item() for name in DATA for line in read_folder_lines(scratch / name, maps)]
        order = {path: place for place, path in enumerate(maps)}
        items.sort(key=lambda item: (order.get(item.path, 0), item.line))
        summary = summary_of(items, manifest["config"], manifest["inputs"])
        manifest |= {"inputs": summary["sources"], "parents": [*manifest.get("parents", []), old]}
        manifest |= {key: [*manifest.get(key, []), value] for key, value in noted.items()}
        write_papers(scratch, summary, manifest)


def hash_of(tree: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()


def describe_file(path: Path, name: str) -> dict[str, Any]:
    return {"path": name, "bytes": path.stat().st_size, "sha256": sha256_of(path)}


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a governed folder. Raises ConfigError where there is none that can be read."""
    path = folder / "manifest.json"
    if not path.exists():
        raise ConfigError(f"{folder}: holds no manifest.json, so it was not made by govern.")
    manifest = read_json(path)
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT or "outputs" not in manifest:
        raise ConfigError(f"{path}: is no govern manifest of format {FORMAT}.")
    return manifest


def verify(folder: Path) -> dict[str, Any]:
    """The manifest, once its settings and every file have the hash it records and no other file stands beside them.
    Raises DataError naming each that has not."""
    manifest = read_manifest(folder)
    wrong = [problem for output in manifest["outputs"] if (problem := compare(folder, output))]
    if manifest.get("config_sha256") != hash_of(manifest.get("config", {})):
        wrong.append("the settings in manifest.json have changed since it was written")
    known = {"manifest.json", ".DS_Store", *(output["path"] for output in manifest["outputs"])}
    strange = {path.name for path in folder.iterdir()} - known
    wrong += [f"{name} is not in the manifest" for name in sorted(strange)]
    if wrong:
        raise DataError(f"{folder}: {'; '.join(wrong)}. Govern the sources again, or restore the files.")
    return manifest


def compare(folder: Path, output: dict[str, Any]) -> str:
    """What is wrong with a file that a manifest describes; empty where nothing is."""
    name, size, digest = output["path"], output["bytes"], output["sha256"]
    if not (path := folder / name).is_file():
        return f"{name} is missing"
    found = path.stat().st_size
    told = f", {found} bytes instead of {size}" if found != size else ""
    return f"{name} has changed since the manifest{told}" if sha256_of(path) != digest else ""


def check_source(path: Path) -> str | None:
    """The sha256 of the manifest beside a governed data file, or None for a file that no manifest names. Raises
    DataError when the file is no longer what the manifest says: training would not be on what was signed."""
    folder = path.parent
    if path.name not in DATA or not (folder / "manifest.json").is_file():
        return None
    told = [output for output in read_manifest(folder)["outputs"] if output["path"] == path.name]
    if told and (problem := compare(folder, told[0])):
        raise DataError(f"{folder}: {problem}. Govern the sources again, or pass --allow-changed-data.")
    return sha256_of(folder / "manifest.json") if told else None
