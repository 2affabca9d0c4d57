"""What an export did and how it was checked: the same tokens through MLX and through stock transformers + PEFT, on the
same float32 weights. It is printed, and kept beside the export as `export.json`."""

import math
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Self

import mlx.core as mx
import numpy as np

from mlx_hybrid.adapters.frozen import use_fast_products
from mlx_hybrid.adapters.store import load_adapter
from mlx_hybrid.errors import ConfigError, MlxHybridError
from mlx_hybrid.exports.adapter import Source
from mlx_hybrid.exports.weights import ModelWeights, write_dense
from mlx_hybrid.files import new_directory, write_json
from mlx_hybrid.models.base import load_weights, read_tokenizer
from mlx_hybrid.models.gguf.config import config_of
from mlx_hybrid.run import memory_bytes

PROMPTS = (
    "The river rose in the night, and by morning the bridge was gone.",
    "La ciudad despierta despacio; los mercados abren antes del amanecer.",
    "Watoto walicheza mpira uwanjani hadi jua likatua.",
    "今天早上下了一场小雨，街上的人都撑着伞。",
)
LENGTH = 24  # tokens of a prompt: enough for every position-dependent part, cheap on a CPU
SHOWN = 3  # faults of a failed check that are told one by one
BYTES_A_PARAMETER = 6  # float32 weights, and room for loading and activations
USABLE = 0.6  # share of the memory that other programs leave


@dataclass(frozen=True)
class Comparison:
    """max |Δ logit| between two libraries with and without the adapter, the adapter's own, and the largest logit."""

    difference: float
    base_difference: float
    effect: float
    largest: float

    TOLERANCE = 1e-4  # of the largest logit beyond 1: float32 sums in another order, measured at 1e-6 to 3e-5
    ROOM = 4.0  # the libraries may already differ on the base by more; the adapter may add a little to that
    PROOF = 100.0  # how many times larger the effect must then be to be seen through it

    @classmethod
    def of(cls, ours: np.ndarray, our_base: np.ndarray, theirs: np.ndarray, their_base: np.ndarray) -> Self:
        """Figures from logits (prompts, tokens, vocabulary)."""
        apart = (ours - theirs, our_base - their_base, ours - our_base, ours)
        return cls(*(float(np.abs(difference).max()) for difference in apart))

    def within(self, difference: float) -> bool:
        return difference <= self.TOLERANCE * max(1.0, self.largest)

    @property
    def passed(self) -> bool:
        explained = self.difference <= self.ROOM * self.base_difference
        seen = self.effect >= self.PROOF * self.difference
        return self.within(self.difference) or (explained and seen)


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
        figures = {f"{name}_logit": value for name, value in asdict(result).items()}
        self.checks["logits"] = figures | {"passed": result.passed}
        self.faults += ["the adapter changes no logit"] if result.effect == 0 else []
        if not result.passed:
            told = f"logits differ from {what} by up to {result.difference:.2g} (without the adapter "
            told += f"{result.base_difference:.2g}; the adapter changes them by {result.effect:.2g})"
            why = ": the two read the base itself, its config.json, differently"
            self.faults.append(told if result.within(result.base_difference) else told + why)


def new_folder(directory: Path) -> AbstractContextManager[Path]:
    """A folder to fill that becomes `directory` when all went well. Raises ConfigError where something is there."""
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise ConfigError(f"{directory}: exists already; choose another name, or remove it.")
    return new_directory(directory)


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
    What a merged model rounds, and a file with `adapt` and `adapters` truncates, is measured; the rest is judged."""
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
        told = "Logits were not compared with PyTorch, which is not installed: pip install 'mlx-hybrid[peft]'"
        report.notes.append(told)
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


def loss_of(reference: np.ndarray, other: np.ndarray) -> dict[str, float]:
    """How far logits are from a reference: max |Δ|, and the mean KL(reference ‖ other) in nats a token."""
    wide = (logits.astype(np.float64) for logits in (reference, other))
    p, q = (logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True) for logits in wide)
    kl = float((np.exp(p) * (p - q)).sum(axis=-1).mean())
    return {"difference_logit": float(np.abs(reference - other).max()), "kl_nats_per_token": kl}


def probe_tokens(folder: Path) -> np.ndarray:
    """Token ids (prompts, tokens): fixed sentences where the folder has a tokenizer, else fixed random ids."""
    config = config_of(folder)
    vocabulary = config.get("vocab_size") or config.get("text_config", {}).get("vocab_size", 256)
    tokens = np.random.default_rng(0).integers(0, vocabulary, (len(PROMPTS), LENGTH))
    with suppress(ConfigError):
        tokenizer = read_tokenizer(str(folder), folder)
        for row, text in zip(tokens, PROMPTS, strict=True):
            ids = [i for i in tokenizer.started(text) if i < vocabulary][:LENGTH]
            row[: len(ids)] = ids
    return tokens


def mlx_logits(folder: Path, tokens: np.ndarray, adapt: Callable[[Any], Any] | None = None) -> tuple:
    """Logits (prompts, tokens, vocabulary) of a model as it is and after `adapt`; float32 on the CPU, as in PyTorch."""

    def forward() -> np.ndarray:
        return np.array(model.eval()(mx.array(tokens.astype(np.int32))).astype(mx.float32))

    with mx.stream(mx.cpu):
        model, _ = load_weights(folder, str(folder))
        if folder.is_dir():
            model.set_dtype(mx.float32)
        use_fast_products(model)
        plain = forward()
        if not adapt:
            return plain, plain
        adapt(model)
        return plain, forward()


def torch_logits(folder: Path, tokens: np.ndarray, adapters: list[Path]) -> tuple:
    """Logits of stock transformers without and with PEFT's `adapters` in float32, names missing or not expected, and
    what bf16, in which servers run, costs beside the base alone."""
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    ids = torch.from_numpy(tokens.astype(np.int64))
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        try:
            how = {"dtype": torch.float32, "output_loading_info": True, "local_files_only": True}
            model, info = AutoModelForCausalLM.from_pretrained(folder, **how)
        except (ValueError, KeyError, OSError, RuntimeError) as error:
            raise ConfigError(f"{folder}: transformers cannot load it ({error}).") from error
        faults = [f"transformers lacks {name}" for name in sorted(info["missing_keys"])]
        faults += [f"transformers does not know {name}" for name in sorted(info["unexpected_keys"])]
        base = model.eval()(ids).logits.numpy()
        if not adapters:
            return base, base, faults, {}
        model = put_on(model, adapters).eval()
        adapted = model(ids).logits.numpy()
        half = loss_of(adapted, model.to(torch.bfloat16)(ids).logits.float().numpy())
        with model.disable_adapter():
            noise = loss_of(base, model(ids).logits.float().numpy())
    return base, adapted, faults, half | {"base_kl_nats_per_token": noise["kl_nats_per_token"]}


def put_on(model: Any, adapters: list[Path]) -> Any:
    """One adapter through PeftModel; several side by side, as the export's own README loads them."""
    from peft import PeftConfig, PeftMixedModel, PeftModel

    if len(adapters) == 1:
        return PeftModel.from_pretrained(model, adapters[0])
    mixed = PeftMixedModel(model, PeftConfig.from_pretrained(adapters[0]), adapters[0].name)
    for path in adapters:
        mixed.load_adapter(path, adapter_name=path.name)
    mixed.set_adapter([path.name for path in adapters])
    return mixed
