"""From files to a folder that can be signed for: a pass that decides, and one that copies each line as it is."""

from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from pathlib import Path

from mlx_hybrid.config import GovernanceConfig
from mlx_hybrid.errors import ConfigError, DataError
from mlx_hybrid.files import new_directory, sha256_of
from mlx_hybrid.governance.checks.personal import kinds_to_redact
from mlx_hybrid.governance.folder.lines import KEPT, REJECTED, write_kept, write_rejected
from mlx_hybrid.governance.folder.manifest import describe_file, write_outputs
from mlx_hybrid.governance.folder.papers import counted
from mlx_hybrid.governance.inspection import Inspection
from mlx_hybrid.governance.ledger import Ledger
from mlx_hybrid.governance.rules import Decision
from mlx_hybrid.governance.spread import inspect_lines, read_sources
from mlx_hybrid.records.files import find_files
from mlx_hybrid.records.lines import File, Source
from mlx_hybrid.records.record import another_kind, is_kept


def govern_files(
    files: Sequence[File],
    output: Path | None,
    config: GovernanceConfig,
    *,
    replace: bool = False,
    renames: Sequence[str] = (),
    progress: Callable[[int], None] = lambda records: None,
) -> Ledger:
    """Govern files into the new folder `output`, or, with None, only say what would be decided.

    `renames` say what keys are read as, as question=prompt. The same input and config give the same bytes whatever
    `config.workers` is. Raises ConfigError for settings and paths, DataError when a small language would suffer (a dry
    run returns the alarms instead), MlxHybridError when the disk is full.
    """
    sources = find_files(files, renames=renames)
    if output:
        check_place(output, replace=replace)
    with new_directory(output) if output else nullcontext() as folder:
        ledger = decide(sources, config, progress)
        if folder is None:
            return ledger
        if ledger.alarms:
            raise DataError(describe_alarms(ledger.alarms, config))
        copy_lines(sources, ledger, folder)
        for source, before in zip(sources, ledger.sources):
            if sha256_of(source.path) != before["sha256"]:
                raise DataError(
                    f"{source.name}: changed while it was read; nothing was written. Run it again."
                )
        write_outputs(folder, ledger)
    return ledger


def check_place(output: Path, *, replace: bool) -> None:
    """Raise ConfigError for a folder that is there already, unless govern made it and it may be replaced."""
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return
    if not replace:
        raise ConfigError(f"{output}: is there already; name another folder, or add --replace.")
    if not (output / "manifest.json").is_file():
        raise ConfigError(f"{output}: was not made by govern, so it is not replaced; name another folder.")


def decide(sources: Sequence[Source], config: GovernanceConfig, progress: Callable[[int], None]) -> Ledger:
    """Inspect every line, then compare."""
    described = [describe_file(source.path, source.name) for source in sources]
    ledger = Ledger(config, described)
    kinds: dict[str, str] = {}
    several = {source.name for source in sources if is_kept(source.path)}
    for items in inspect_lines(sources, config, sum(source["bytes"] for source in described)):
        keep_one_kind((item for item in items if item.path not in several), kinds)
        ledger.add(items)
        progress(len(ledger.items))
    if missing := sorted(set(config.keep) - {item.keep for item in ledger.items}):
        raise ConfigError(f'governance.keep: no record has the id or the place "{missing[0]}".')
    ledger.decide()
    for source, told in zip(sources, described):
        told |= {"revision": source.revision} if source.revision else {}
        told |= {"map": source.renames} if source.renames else {}
    ledger.sources = counted(described, ledger.items)
    return ledger


def keep_one_kind(items: Iterable[Inspection], kinds: dict[str, str]) -> None:
    """A file holds records of the kind of its first; others are set aside."""
    for item in items:
        if item.kind and (other := another_kind(item.kind, kinds.setdefault(item.path, item.kind))):
            item.decision, item.flags = Decision("structure", "mixed_kinds", other), ()


def describe_alarms(alarms: Sequence[str], config: GovernanceConfig) -> str:
    return (
        f"Stopped to protect small languages, and nothing was written: {'; '.join(alarms)}. Name single records with "
        "--keep (governance.keep), or go on all the same with --max-reject-share 1 (governance.max_reject_share, now "
        f"{config.max_reject_share:g}), look at the report and bring back what is good with `mlx-hybrid rescue`."
    )


def copy_lines(sources: Sequence[Source], ledger: Ledger, folder: Path) -> None:
    """Every line to one of the two files, with what was decided under `_gov`."""
    renames = {source.name: source.renames for source in sources}
    redacts = kinds_to_redact(vars(ledger.config))
    with (folder / KEPT).open("wb") as kept, (folder / REJECTED).open("wb") as rejected:
        for item, (name, _, raw) in zip(ledger.items, read_sources(sources)):
            if item.decision:
                write_rejected(rejected, raw, item)
            else:
                write_kept(kept, raw, item, redacts=redacts, renames=renames[name])
