"""What an export did and how it was checked on logits: printed, and kept beside it as `export.json`."""

import dataclasses
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mlx_hybrid.adapters.store import load_adapter
from mlx_hybrid.errors import ConfigError, MlxHybridError
from mlx_hybrid.exports.adapter import Source
from mlx_hybrid.exports.logits import Comparison, compare, mean_kl, mlx_logits, probe_tokens, torch_logits
from mlx_hybrid.exports.weights import ModelWeights, write_dense
from mlx_hybrid.files import new_directory, write_json
from mlx_hybrid.run import memory_bytes

FORMAT = 1
REPORT_FILE = "export.json"
SHOWN = 3
INSTALL = "pip install 'mlx-hybrid[peft]'"
BYTES_A_PARAMETER = 6  # float32 weights, and room for loading and activations
USABLE = 0.6  # share of the memory that other programs leave

Adapt = Callable[[Any], None]
"""Puts an adapter on a loaded model."""


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
            "format": FORMAT,
            **{key: getattr(self, key) for key in ("to", "kind", "adapter", "base")},
            **self.facts,
            **{key: getattr(self, key) for key in ("checks", "passed", "faults")},
        }

    def finish(self, folder: Path, directory: Path, *, force: bool, name: str = REPORT_FILE) -> None:
        """Keep the report in `folder`, which is to become `directory`. Raises ExportMismatch for faults."""
        self.directory = directory
        write_json(folder / name, self.tree())
        if self.faults and not force:
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


class Own(NamedTuple):
    """Logits of the base, and of the adapter by our own loader, on the weights that an export is compared on."""

    tokens: np.ndarray
    base: np.ndarray
    adapted: np.ndarray


def own_logits(report: Report, source: Source, weights: ModelWeights) -> Own | None:
    """The logits to compare with, and what leaving the base that was trained on costs; None without the memory.

    That cost is the KL from the packed base to the weights exported for: something to know, without a pass mark.
    """
    if weights.parameter_count() * BYTES_A_PARAMETER > USABLE * memory_bytes():
        skip(report, "Logits were not compared: the model in float32 does not fit in memory.")
        return None
    tokens, adapt = probe_tokens(weights.folder), lambda model: load_adapter(model, source.folder)
    base, adapted = mlx_logits(weights.folder, tokens, adapt)
    if source.base.packed and weights.folder != source.base.folder:
        _, trained = mlx_logits(source.base.folder, tokens, adapt)
        report.checks["trained_base"] = {"kl_nats_per_token": mean_kl(trained, adapted)}
    return Own(tokens, base, adapted)


def check_peft_logits(
    report: Report, source: Source, weights: ModelWeights, adapters: list[Path], cut: Adapt | None = None
) -> None:
    """Ours against stock PEFT on the weights exported for; `cut` puts a truncated LoRA on, to be what is compared."""
    if (own := own_logits(report, source, weights)) is None:
        return
    ours = own.adapted
    if cut:
        _, ours = mlx_logits(weights.folder, own.tokens, cut)
        effect = {"effect_logit": float(np.abs(own.adapted - own.base).max())}
        report.checks["truncation"] = loss_of(own.adapted, ours) | effect
    if with_torch(report):
        their_base, theirs, faults = torch_logits(weights.folder, own.tokens, adapters)
        report.faults += faults
        record(report, compare(ours, own.base, theirs, their_base))


def check_merged_logits(report: Report, source: Source, weights: ModelWeights, folder: Path) -> None:
    """The merged model in both libraries, and what rounding to its dtype changes."""
    if (own := own_logits(report, source, weights)) is None:
        return
    merged, _ = mlx_logits(folder, own.tokens)
    report.checks["rounding"] = loss_of(own.adapted, merged)
    if with_torch(report):
        theirs, _, faults = torch_logits(folder, own.tokens, [])
        report.faults += faults
        result = compare(merged, own.base, theirs, own.base)
        if not result.passed:  # perhaps the libraries differ on this architecture without any adapter
            result = dataclasses.replace(result, base_difference=base_difference(weights, own.tokens))
        record(report, result)


def base_difference(weights: ModelWeights, tokens: np.ndarray) -> float:
    """max |Δ logit| between the libraries on the base itself."""
    with unpacked(weights) as folder:
        ours, _ = mlx_logits(folder, tokens)
        theirs, _, _ = torch_logits(folder, tokens, [])
    return float(np.abs(ours - theirs).max())


@contextmanager
def unpacked(weights: ModelWeights) -> Iterator[Path]:
    """The folder of the weights; of packed ones an unpacked copy, which goes again."""
    if not weights.packed:
        yield weights.folder
        return
    with tempfile.TemporaryDirectory(prefix="mlx-hybrid-") as name:
        write_dense(weights, Path(name))
        yield Path(name)


def check_mlx_logits(
    report: Report, source: Source, folder: Path, adapt: Adapt | None, *, exact: bool
) -> None:
    """Ours against `folder` as stock mlx-lm loads it, all on the base that was trained on."""
    if (own := own_logits(report, source, source.base)) is None:
        return
    _, theirs = mlx_logits(folder, own.tokens, adapt)
    if exact:
        record(report, compare(own.adapted, own.base, theirs, own.base), "mlx-lm")
    else:
        report.checks["rounding"] = loss_of(own.adapted, theirs)


def record(report: Report, result: Comparison, what: str = "transformers and PEFT") -> None:
    report.checks["logits"] = result.tree()
    if result.effect == 0.0:
        report.faults.append("the adapter changes no logit")
    if not result.passed:
        report.faults.append(
            f"logits differ from {what} by up to {result.difference:.2g} (without the adapter "
            f"{result.base_difference:.2g}; the adapter changes them by {result.effect:.2g})"
        )


def loss_of(adapted: np.ndarray, other: np.ndarray) -> dict[str, float]:
    """How far other logits are from those of adapter and base side by side."""
    difference = float(np.abs(adapted - other).max())
    return {"difference_logit": difference, "kl_nats_per_token": mean_kl(adapted, other)}


def with_torch(report: Report) -> bool:
    available = all(find_spec(name) for name in ("torch", "peft"))
    if not available:
        skip(report, f"Logits were not compared with PyTorch, which is not installed: {INSTALL}")
    return available


def skip(report: Report, why: str) -> None:
    report.notes.append(why)
    report.checks["logits"] = None
