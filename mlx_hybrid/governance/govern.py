"""From files to a folder that can be signed for: two passes over the lines, a few hundred bytes a record between.

The first pass parses and inspects, spread over processes; the stages that compare records follow; the second pass
copies each line, untouched but for what was decided on it, to `kept.jsonl` or `rejected.jsonl`.
"""

import dataclasses
from array import array
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from mlx_hybrid.config import GovernanceConfig
from mlx_hybrid.errors import ConfigError, DataError
from mlx_hybrid.files import new_directory, sha256_of
from mlx_hybrid.governance.curated import Curated
from mlx_hybrid.governance.folder.lines import note_of, write_kept, write_rejected
from mlx_hybrid.governance.folder.manifest import write_outputs
from mlx_hybrid.governance.inspection import Inspected
from mlx_hybrid.governance.ledger import Ledger
from mlx_hybrid.governance.spread import Places, inspect_lines, read_sources
from mlx_hybrid.governance.stages import Decision
from mlx_hybrid.records.files import find_files
from mlx_hybrid.records.record import File, Source, another_kind


def govern_files(
    files: Sequence[File],
    output: Path | None,
    config: GovernanceConfig,
    *,
    replace: bool = False,
    progress: Callable[[int], None] = lambda records: None,
) -> Curated:
    """Govern files into the new folder `output`, or, with None, only say what would be decided.

    The same input and config give the same bytes whatever `config.workers` is. Raises ConfigError for settings and
    paths, DataError when a small language would suffer (a dry run returns the alarms instead), MlxHybridError when the
    disk is full.
    """
    sources = find_files(files)
    if output:
        check_place(output, replace=replace)
    with new_directory(output) if output else nullcontext() as folder:
        curated = decide(sources, config, progress)
        if folder is None:
            return curated
        if curated.alarms:
            raise DataError(describe_alarms(curated.alarms, config))
        copy_lines(sources, curated.ledger, folder, redacts=config.redact)
        check_unchanged(sources, curated.sources)
        curated = dataclasses.replace(curated, output=output)
        write_outputs(folder, curated, config)
    return curated


def check_place(output: Path, *, replace: bool) -> None:
    """Raise ConfigError for a folder that is there already, unless govern made it and it may be replaced."""
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return
    if not replace:
        raise ConfigError(f"{output}: is there already; name another folder, or add --replace.")
    if not (output / "manifest.json").is_file():
        raise ConfigError(f"{output}: was not made by govern, so it is not replaced; name another folder.")


def decide(sources: Sequence[Source], config: GovernanceConfig, progress: Callable[[int], None]) -> Curated:
    """Inspect every line, then compare."""
    described = [describe_source(source) for source in sources]
    ledger = Ledger(config)
    numbers = array("q")  # source and line of each record, flat: a list of pairs takes ten times the memory
    kinds: dict[int, str] = {}
    names = [source.name for source in sources]
    total = sum(source["bytes"] for source in described)
    for chunk, inspected in inspect_lines(sources, config, total):
        keep_one_kind(chunk, inspected, kinds)
        ledger.add(inspected)
        numbers.extend(chain.from_iterable(chunk))
        progress(len(numbers) // 2)
    places = np.frombuffer(numbers, np.int64).reshape(-1, 2)
    for number, source in enumerate(described):
        source["records"] = int((places[:, 0] == number).sum())

    def where(index: int) -> str:
        return f"{names[places[index, 0]]}:{places[index, 1]}"

    ledger.decide(where)
    return Curated(ledger, described, where, ledger.alarms())


def describe_source(source: Source) -> dict[str, Any]:
    told = {"path": source.name, "bytes": source.path.stat().st_size, "sha256": sha256_of(source.path)}
    return told | ({"revision": source.revision} if source.revision else {})


def check_unchanged(sources: Sequence[Source], described: list[dict[str, Any]]) -> None:
    for source, before in zip(sources, described):
        if sha256_of(source.path) != before["sha256"]:
            raise DataError(f"{source.name}: changed while it was read; nothing was written. Run it again.")


def keep_one_kind(chunk: Places, inspected: Inspected, kinds: dict[int, str]) -> None:
    """A file holds records of the kind of its first; others are set aside."""
    for (source, _), item in zip(chunk, inspected.items):
        if item.kind and (other := another_kind(item.kind, kinds.setdefault(source, item.kind))):
            item.decision, item.flags = Decision("structure", "mixed_kinds", other), ()


def describe_alarms(alarms: Sequence[str], config: GovernanceConfig) -> str:
    return (
        f"Stopped to protect small languages: {'; '.join(alarms)}. Look at the records with `mlx-hybrid govern "
        f"--dry-run`; to go on all the same set governance.max_reject_share (now {config.max_reject_share:g}) to 1, "
        "or leave the stage out with governance.skip."
    )


def copy_lines(sources: Sequence[Source], ledger: Ledger, folder: Path, *, redacts: bool) -> None:
    """Every line to one of the two files, with what was decided under `_gov`."""
    with (folder / "kept.jsonl").open("wb") as kept, (folder / "rejected.jsonl").open("wb") as rejected:
        for item, (number, line, raw) in zip(ledger.items, read_sources(sources)):
            note = note_of(f"{sources[number].name}:{line}", item.language, item.decision)
            if item.decision:
                write_rejected(rejected, raw, note)
            else:
                write_kept(kept, raw, note, item.flags, redacts)
