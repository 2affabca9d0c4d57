"""What an export did and how it was checked on logits: printed, and kept beside it as `export.json`."""

import math
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from mlx_hybrid.adapters.store import load_adapter
from mlx_hybrid.errors import ConfigError, DataError, MlxHybridError
from mlx_hybrid.evaluation.benchmarks.questions import held_back
from mlx_hybrid.evaluation.scoring import sequence_nll
from mlx_hybrid.exports.adapter import Source
from mlx_hybrid.exports.logits import Comparison, loss_of, mlx_logits, probe_tokens, torch_logits
from mlx_hybrid.exports.weights import ModelWeights, write_dense
from mlx_hybrid.files import new_directory, write_json
from mlx_hybrid.models.base import load_base, tokenizer_for
from mlx_hybrid.records.template import make_examples
from mlx_hybrid.run import Run, memory_bytes

SHOWN = 3
BYTES_A_PARAMETER = 6  # float32 weights, and room for loading and activations
MOST = 200
"""Held-out records that are measured: the loss of so many is known to a few per cent."""
USABLE = 0.6  # share of the memory that other programs leave


class ExportMismatch(MlxHybridError):
    """An export that does not do what the adapter does."""

    exit_code = 3


@dataclass
class Report:
    """What `export.json` keeps, and for who runs it `notes`, `commands` by program and where its files and base are."""

    to: str
    kind: str
    adapter: dict
    base: dict
    facts: dict = field(default_factory=dict)
    checks: dict = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    commands: dict[str, str] = field(default_factory=dict)
    directory: Path = Path()
    base_folder: str = ""

    @property
    def passed(self) -> bool:
        return not self.faults

    def tree(self) -> dict:
        head = {"format": 1, "to": self.to, "kind": self.kind, "adapter": self.adapter, "base": self.base}
        return head | self.facts | {"checks": self.checks, "passed": self.passed, "faults": self.faults}

    def finish(self, folder: Path, directory: Path, *, force: bool, name: str = "export.json") -> None:
        """Keep the report in `folder`, which is to become `directory`. Raises ExportMismatch for faults."""
        self.directory = directory
        write_json(folder / name, self.tree())
        if self.faults and not force:
            more = f" ({len(self.faults)} faults in all)" if len(self.faults) > SHOWN else ""
            told = f"was not written, since the check failed: {'; '.join(self.faults[:SHOWN])}{more}"
            raise ExportMismatch(f"{directory}: {told}; --force writes it all the same.")

    def compare(self, result: Comparison, what: str) -> None:
        """Keep a comparison of logits, and its faults."""
        self.checks["logits"] = result.tree()
        self.faults += ["the adapter changes no logit"] if result.effect == 0 else []
        if not result.passed:
            told = f"logits differ from {what} by up to {result.difference:.2g} (without the adapter "
            told += f"{result.base_difference:.2g}; the adapter changes them by {result.effect:.2g})"
            why = ": the two read the base itself, its config.json, differently"
            self.faults.append(told if result.within(result.base_difference) else told + why)


@contextmanager
def new_folder(directory: Path) -> Iterator[Path]:
    """A folder to fill that becomes `directory` when all went well. Raises ConfigError where something is there."""
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise ConfigError(f"{directory}: exists already; choose another name, or remove it.")
    with new_directory(directory) as folder:
        yield folder


def check_logits(
    report: Report,
    source: Source,
    weights: ModelWeights,
    *,
    merged: Path | None = None,
    adapters: list[Path] | None = None,
    adapt: Callable[[Any], Any] | None = None,
) -> None:
    """Our adapter on `weights` against what was written for them, the `merged` model or what `adapt` puts on a loaded
    one; and that, where `adapters` (none for a merged model) are given, against stock transformers and PEFT.

    What a merged model rounds, and a file with both `adapt` and `adapters` truncates, is measured; the rest is judged.
    """
    report.checks["logits"] = None
    if sum(map(math.prod, weights.shapes.values())) * BYTES_A_PARAMETER > USABLE * memory_bytes():
        report.notes.append("Logits were not compared: the model in float32 does not fit in memory.")
        return
    tokens, own = probe_tokens(weights.folder), partial(load_adapter, directory=source.folder)
    base, ours = mlx_logits(weights.folder, tokens, own)
    if source.base.packed and weights.folder != source.base.folder:
        cost = loss_of(mlx_logits(source.base.folder, tokens, own)[1], ours)
        report.checks["trained_base"] = {"kl_nats_per_token": cost["kl_nats_per_token"]}
    written = mlx_logits(merged or weights.folder, tokens, adapt)[1] if merged or adapt else ours
    if merged or (adapt and adapters):
        lost = loss_of(ours, written) | {"effect_logit": float(np.abs(ours - base).max())}
        report.checks["rounding" if merged else "truncation"] = lost
    elif adapt:
        report.compare(Comparison.of(ours, base, written, base), "what was written")
    if adapters is None:
        return
    if not all(find_spec(name) for name in ("torch", "peft")):
        told = "Logits were not compared with PyTorch, which is not installed"
        report.notes.append(f"{told}: pip install 'mlx-hybrid[peft]'")
        return
    their_base, theirs, faults, half = torch_logits(merged or weights.folder, tokens, adapters)
    report.faults += faults
    report.checks |= {"bf16": half} if half else {}
    result = Comparison.of(written, base, theirs, base if merged else their_base)
    if merged and not result.passed:  # perhaps the libraries differ on this architecture without any adapter
        with unpacked(weights) as folder:
            apart = mlx_logits(folder, tokens)[0] - torch_logits(folder, tokens, [])[0]
        result = replace(result, base_difference=float(np.abs(apart).max()))
    report.compare(result, "transformers and PEFT")


@contextmanager
def unpacked(weights: ModelWeights) -> Iterator[Path]:
    """The folder of the weights; of packed ones an unpacked copy, which goes again."""
    if not weights.packed:
        yield weights.folder
        return
    with tempfile.TemporaryDirectory(prefix="mlx-hybrid-") as name:
        write_dense(weights, Path(name))
        yield Path(name)


def held_out_losses(source: Source, base: Path, packed: Path) -> dict[str, float] | None:
    """Loss, nats a token, of `base`, the adapter on it and the `packed` model on what the adapter's run held out; None
    outside of a run, and where the records are no longer there or have changed."""
    run = Run(source.folder.resolve().parent)
    if not (run.path / "run.json").is_file():
        return None
    config = run.config_here()
    config = replace(config, model=replace(config.model, name=str(source.base.folder)))
    try:
        split = held_back(config, run)
    except (ConfigError, DataError):
        return None
    records, tokenizer = (split.test or split.valid)[:MOST], tokenizer_for(config.model)
    limit = {"max_tokens": config.train.max_tokens, "too_long": config.train.too_long}
    if not (examples := make_examples(records, tokenizer, **limit).examples):
        return None
    model = load_base(str(base), tokenizer=tokenizer).model
    losses = {"base": mean_loss(model, examples)}
    load_adapter(model, source.folder)
    losses["adapter"] = mean_loss(model.eval(), examples)
    del model
    losses["packed"] = mean_loss(load_base(str(packed), tokenizer=tokenizer).model, examples)
    return losses | {"records": len(examples)}


def mean_loss(model: Any, examples: list) -> float:
    nats, counts, _ = sequence_nll(model, [e.tokens for e in examples], [e.trained for e in examples])
    return float(nats.sum() / counts.sum())
