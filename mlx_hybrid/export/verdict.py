"""What an export did and how it was checked: printed, and kept beside it as `export.json`."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from mlx_hybrid.errors import ConfigError, MlxHybridError
from mlx_hybrid.files import new_directory, write_json

FORMAT = 1
REPORT_FILE = "export.json"
SHOWN = 3


class ExportMismatch(MlxHybridError):
    """An export that does not do what the adapter does."""

    exit_code = 3


@dataclass
class Report:
    """`checks` are figures and verdicts by name, `faults` what failed, `notes` lines for a person. `directory` and
    `base_folder`, a base that has no name elsewhere, are of this machine, and not kept."""

    to: str
    kind: str
    adapter: dict
    base: dict
    facts: dict = field(default_factory=dict)
    checks: dict = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    directory: Path = Path()
    base_folder: str = ""

    @property
    def passed(self) -> bool:
        return not self.faults

    def tree(self) -> dict:
        return {
            "format": FORMAT, "to": self.to, "kind": self.kind, "adapter": self.adapter, "base": self.base,
            **self.facts, "checks": self.checks, "passed": self.passed, "faults": self.faults,
        }  # fmt: skip

    def write(self, folder: Path, name: str = REPORT_FILE) -> None:
        write_json(folder / name, self.tree())

    def refuse(self, directory: Path) -> None:
        """Raise ExportMismatch naming the first faults."""
        if self.faults:
            more = f" ({len(self.faults)} faults in all)" if len(self.faults) > SHOWN else ""
            raise ExportMismatch(
                f"{directory}: was not written, since the check failed: {'; '.join(self.faults[:SHOWN])}{more}; "
                "--force writes it all the same."
            )


@contextmanager
def new_folder(directory: Path) -> Iterator[Path]:
    """A folder to fill that becomes `directory` when all went well. Raises ConfigError where something is there."""
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise ConfigError(f"{directory}: exists already; choose another name, or remove it.")
    with new_directory(directory) as folder:
        yield folder
