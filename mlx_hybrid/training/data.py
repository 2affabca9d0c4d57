"""The records of a run: as they were signed, governed where asked, and split by their use."""

import tempfile
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from mlx_hybrid.config import Config
from mlx_hybrid.errors import ConfigError, DataError
from mlx_hybrid.governance.folder.lines import read_folder_lines
from mlx_hybrid.governance.folder.manifest import check_source
from mlx_hybrid.governance.govern import govern_files
from mlx_hybrid.governance.rules import active_stages
from mlx_hybrid.records.lines import Source
from mlx_hybrid.records.record import Record, Split, load_records, read_records, shapes_of, split_records
from mlx_hybrid.records.shapes import describe_read


class Data(NamedTuple):
    """Records by their use, how many governance kept and set aside, and which files were read as what."""

    split: Split
    counts: dict[str, Any]
    read_as: str

    @property
    def sizes(self) -> dict[str, int]:
        """Records of each use."""
        return {use: len(part) for use, part in self.split._asdict().items()}


def check_manifests(sources: Split) -> list[str]:
    """sha256 of the manifest of every governed file. Raises DataError for one that changed since it was signed."""
    return sorted(filter(None, {check_source(source.path) for part in sources for source in part}))


def prepare(config: Config, sources: Split, folder: Path | None = None) -> Data:
    """Govern and split the records; one that holds a text of the validation or test files does not train. What
    governance decided stays in `folder`, where one is given, as `govern` writes it."""
    records, reasons, read_as = governed(apart_from_held_out(config, sources), sources.train, folder)
    valid, test = load_records(sources.valid), load_records(sources.test)
    counts = {"kept": len(records), "rejected": sum(reasons.values()), "reasons": reasons}
    return Data(split_records(records, valid, test, config.data, config.seed), counts, read_as)


def check_held_back(config: Config, split: Split) -> None:
    """Raise ConfigError where a setting is to follow from a validation that there is no record for."""
    train = config.train
    asked = {"patience": train.patience, "strength": not train.strength and "auto", "average": train.average}
    for key, value in asked.items() if not split.valid else ():
        if value and value != "none":
            told = f"train.{key} is {value}, but no record is held back to validate on"
            raise ConfigError(f"{told}: set data.valid_share or data.valid, or leave train.{key} out.")


def apart_from_held_out(config: Config, sources: Split) -> Config:
    """The config whose governance also keeps the run's own validation and test files out of training."""
    own, held_out = config.governance, (str(s.path) for s in (*sources.test, *sources.valid))
    if not own.enabled or "overlap" not in active_stages(own):
        return config
    return replace(config, governance=replace(own, against=tuple(dict.fromkeys((*own.against, *held_out)))))


def governed(
    config: Config, files: Sequence[Source], folder: Path | None = None
) -> tuple[list[Record], dict[str, int], str]:
    """Records to use, how many were set aside by reason, and what was read as what; ungoverned, a fault is an error."""
    if not config.governance.enabled:
        records = load_records(files)
        return records, {}, shapes_of(records)
    if not any(isinstance(line, Record) for line in read_records(files)):
        load_records(files)  # which says what is wrong with the lines, if there are any
        raise DataError(f"{', '.join(file.name for file in files)}: no record in there.")
    with nullcontext(folder) if folder else tempfile.TemporaryDirectory(prefix="governed-") as place:
        ledger = govern_files(files, Path(place), config.governance)
        records = [Record(line.row, *line.place) for line in read_folder_lines(Path(place) / "kept.jsonl")]
    if not records:
        told = ", ".join(f"{reason} {count}" for reason, count in ledger.reasons.items())
        raise DataError(f"Governance kept none of the records ({told}).")
    read_as = describe_read([(source["path"], source["shapes"]) for source in ledger.sources])
    return records, ledger.reasons, read_as
