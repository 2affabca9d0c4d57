"""The same tokens through MLX and through stock transformers + PEFT, on the same float32 weights."""

import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import mlx.core as mx
import numpy as np

from mlx_hybrid.errors import ConfigError
from mlx_hybrid.models.base import load_weights, read_tokenizer
from mlx_hybrid.models.gguf.config import config_of

PROMPTS = (
    "The river rose in the night, and by morning the bridge was gone.",
    "La ciudad despierta despacio; los mercados abren antes del amanecer.",
    "Watoto walicheza mpira uwanjani hadi jua likatua.",
    "今天早上下了一场小雨，街上的人都撑着伞。",
)
LENGTH = 24  # tokens of a prompt: enough for every position-dependent part, cheap on a CPU


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
        return bool(self.within(self.difference) or (explained and seen))

    def tree(self) -> dict:
        return {f"{name}_logit": value for name, value in asdict(self).items()} | {"passed": self.passed}


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
    from mlx_hybrid.adapters.frozen import use_fast_products

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


def torch_logits(
    folder: Path, tokens: np.ndarray, adapters: list[Path]
) -> tuple[np.ndarray, np.ndarray, list[str], dict[str, float]]:
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
            model, info = AutoModelForCausalLM.from_pretrained(
                folder, dtype=torch.float32, output_loading_info=True, local_files_only=True
            )
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

    first = adapters[0]
    if len(adapters) == 1:
        return PeftModel.from_pretrained(model, first)
    mixed = PeftMixedModel(model, PeftConfig.from_pretrained(first), first.name)
    for path in adapters:
        mixed.load_adapter(path, adapter_name=path.name)
    mixed.set_adapter([path.name for path in adapters])
    return mixed
