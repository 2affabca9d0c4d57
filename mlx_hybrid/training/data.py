"""The records of a run: as they were signed, governed where asked, and split by their use."""

from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlx_hybrid.config import Config
from mlx_hybrid.errors import ConfigError, DataError
from mlx_hybrid.records.record import Record, describe_faults, load_records, read_records
from mlx_hybrid.records.split import Sources, Split, split_records
from mlx_hybrid.run import Run

if TYPE_CHECKING:
    from mlx_hybrid.governance.pipeline import Rejection


@dataclass(frozen=True)
class Data:
    """Records by their use, and those that governance set aside, each with its reason."""

    split: Split
    kept: int
    rejections: "list[Rejection]"

    @property
    def counts(self) -> dict[str, Any]:
        """What governance made of the records."""
        return {
            "kept": self.kept, "rejected": len(self.rejections), "reasons": reason_counts(self.rejections)
        }  # fmt: skip

    @property
    def sizes(self) -> dict[str, int]:
        """Records of each use."""
        return {name: len(getattr(self.split, name)) for name in ("train", "valid", "test")}


def check_manifests(sources: Sources) -> list[str]:
    """sha256 of the manifest of every governed file. Raises DataError for one that changed since it was signed."""
    from mlx_hybrid.governance.folder.manifest import check_source

    found = [check_source(path) for path in (*sources.train, *sources.valid, *sources.test)]
    return sorted({digest for digest in found if digest})


def prepare(config: Config, sources: Sources) -> Data:
    """Govern and split the records; one that holds a text of the validation or test files does not train."""
    records, rejections = governed(apart_from_held_out(config, sources), sources.train)
    valid, test = load_records(sources.valid), load_records(sources.test)
    return Data(split_records(records, valid, test, config.data, config.seed), len(records), rejections)


def check_patience(config: Config, split: Split) -> None:
    """Raise ConfigError where training is to stop by a validation that there is no record for."""
    if config.train.patience and not split.valid:
        raise ConfigError(
            f"train.patience is {config.train.patience}, but no record is held back to validate on: set "
            "data.valid_share or data.valid, or leave train.patience out."
        )


def apart_from_held_out(config: Config, sources: Sources) -> Config:
    """The config whose governance also keeps the run's own validation and test files out of training."""
    from mlx_hybrid.governance.stages import active_stages

    own, held_out = config.governance, map(str, (*sources.test, *sources.valid))
    if not own.enabled or "overlap" not in active_stages(own):
        return config
    against = tuple(dict.fromkeys((*own.against, *held_out)))
    return replace(config, governance=replace(own, against=against))


def governed(config: Config, files: tuple[Path, ...]) -> "tuple[list[Record], list[Rejection]]":
    """Records to use, and those set aside; without governance any fault is an error."""
    if not config.governance.enabled:
        return load_records(files), []
    from mlx_hybrid.governance.pipeline import govern_records

    lines = list(read_records(files))
    if not any(isinstance(line, Record) for line in lines):
        names = ", ".join(str(path) for path in files)
        raise DataError(describe_faults(lines) if lines else f"{names}: no record in there.")
    result = govern_records(lines, config.governance)
    if not result.kept:
        told = ", ".join(f"{reason} {count}" for reason, count in reason_counts(result.rejected).items())
        raise DataError(f"Governance kept none of the records ({told}).")
    return result.kept, result.rejected


def reason_counts(rejections: "list[Rejection]") -> dict[str, int]:
    """How many records went for each reason, the commonest first."""
    return dict(Counter(rejection.reason for rejection in rejections).most_common())


def note_data(config: Config, run: Run, data: Data, manifests: list[str]) -> None:
    """Write into the run what governance decided, and the records it set aside, which stay on this machine."""
    if config.governance.enabled:
        from mlx_hybrid.governance.folder.lines import write_rejections

        run.update(governance=data.counts)
        write_rejections(run.rejected, data.rejections)
    run.update(data_manifests=manifests)
