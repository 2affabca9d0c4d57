"""What a governance pass decided."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlx_hybrid.governance.ledger import Ledger


@dataclass(frozen=True)
class Curated:
    """The decisions on every record; `where` names a record by its number, `output` is None for a dry run."""

    ledger: Ledger
    sources: list[dict[str, Any]]
    where: Callable[[int], str]
    alarms: list[str]
    output: Path | None = None

    @property
    def reasons(self) -> dict[str, int]:
        """How many records were set aside for each reason, the commonest first."""
        return dict(Counter(d.reason for d in self.ledger.decisions if d).most_common())

    @property
    def kept(self) -> int:
        return self.ledger.decisions.count(None)
