"""An adapted model and its base, side by side on the same weights."""

import copy
from dataclasses import dataclass
from typing import Any

from mlx_hybrid.errors import ConfigError, MlxHybridError
from mlx_hybrid.models.adapted import Loaded, load_any
from mlx_hybrid.models.base import load_base

SAME = 1e-2  # settled rotations round differently: the change may move by this share of itself
NO_LIMIT = 1 << 20  # tokenizers without a limit of their own give numbers beyond any context


@dataclass
class Pair:
    """What was asked for as `model`, and the model under it as `base`; one and the same where no adapter is on."""

    loaded: Loaded
    context: int
    """Most tokens of prompt and answer together."""
    _base: Any = None

    @property
    def model(self) -> Any:
        return self.loaded.model

    @property
    def tokenizer(self) -> Any:
        return self.loaded.tokenizer

    @property
    def adapted(self) -> bool:
        return self.loaded.modules > 0

    @property
    def base_name(self) -> str:
        return self.loaded.base["id"]

    def base(self) -> Any:
        """The model without the adapter. Its weights are shared, except after full fine-tuning, which loads it anew."""
        if self._base is None:
            self._base = find_base(self.loaded)
        return self._base

    def describe(self) -> str:
        """One line that says what is loaded."""
        where = f" Base: {self.base_name}." if self.adapted else ""
        return f"{self.loaded.describe()}.{where} Context: {self.context:,} tokens."


def open_pair(name: str, *, context: int | None = None, base_name: str | None = None) -> Pair:
    """Load a run, an adapter or a model, ready to answer.

    Raises ConfigError for what cannot be found, and for a context longer than the model's.
    """
    import mlx.core as mx

    from mlx_hybrid.adapters.attach import settle

    loaded = load_any(name, base_name=base_name)
    settle(loaded.model)
    mx.eval(loaded.model.parameters())
    limit = context_limit(loaded.model, loaded.tokenizer)
    if context is not None and not 16 <= context <= limit:
        raise ConfigError(f"--context: {context}, but this model takes 16 to {limit} tokens.")
    return Pair(loaded, limit if context is None else context)


def context_limit(model: Any, tokenizer: Any) -> int:
    """Most tokens that the model was made for, by its config or else its tokenizer."""
    values = dict(getattr(getattr(model, "args", None), "__dict__", {}))
    values |= values.get("text_config") or {}
    limit = values.get("max_position_embeddings") or getattr(tokenizer, "model_max_length", None) or NO_LIMIT
    return int(min(limit, NO_LIMIT))


def find_base(loaded: Loaded) -> Any:
    """The base of a loaded adapter. Raises MlxHybridError where taking the adapter off does not undo its change."""
    from mlx_hybrid.adapters.attach import hybrid_layers
    from mlx_hybrid.adapters.store import logit_change, probe_logits

    if not loaded.modules:
        return loaded.model
    if not hybrid_layers(loaded.model):
        return load_base(loaded.source).model
    base = without_adapter(loaded.model)
    change = logit_change(probe_logits(base), loaded.model)
    if abs(change - loaded.change) > SAME * loaded.change:
        raise MlxHybridError(
            f"{loaded.name}: taking the adapter off changes logits by {change:.3g}, not by {loaded.change:.3g}, "
            "so the base cannot be shown beside it."
        )
    return base


def without_adapter(model: Any) -> Any:
    """The model with every adapted layer replaced by the layer under it: shallow copies of the modules, same arrays."""
    import mlx.nn as nn

    from mlx_hybrid.adapters.layer import HybridLinear

    seen: dict[int, Any] = {}

    def view(value: Any) -> Any:
        if isinstance(value, HybridLinear):
            return value.linear
        if isinstance(value, nn.Module) and id(value) not in seen:
            seen[id(value)] = copied = copy.copy(value)
            for key, child in value.items():
                dict.__setitem__(copied, key, view(child))
            parts = {key: view(part) for key, part in vars(value).items() if isinstance(part, nn.Module)}
            copied.__dict__.update(parts)
        if isinstance(value, nn.Module):
            return seen[id(value)]
        if isinstance(value, list | tuple):
            return type(value)(view(child) for child in value)
        return {key: view(child) for key, child in value.items()} if isinstance(value, dict) else value

    return view(model)
