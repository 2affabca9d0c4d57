"""An adapted model and its base, side by side on the same weights."""

import copy
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from mlx_hybrid.errors import ConfigError, MlxHybridError
from mlx_hybrid.models.adapted import Loaded, load_any
from mlx_hybrid.models.base import load_base
from mlx_hybrid.models.templates import template_text
from mlx_hybrid.run import memory_bytes

SAME = 1e-2  # settled rotations round differently: the change may move by this share of itself
UNPACKED_SHARE = 0.25  # of the machine's memory, that weights may take that are unpacked once
NO_LIMIT = 1 << 20  # tokenizers without a limit of their own give numbers beyond any context


@dataclass(eq=False)
class Pair(Loaded):
    """What was asked for, and the base under it; `context` is the most tokens of prompt and answer together."""

    context: int = NO_LIMIT

    @property
    def adapted(self) -> bool:
        return self.modules > 0

    @property
    def base_name(self) -> str:
        return self.identity["id"]

    def base(self) -> Any:
        """The model without the adapter, itself where none is on.

        Its weights are shared, except after full fine-tuning, which loads it anew. Raises MlxHybridError where taking
        the adapter off does not undo its change.
        """
        return self._base

    @cached_property
    def _base(self) -> Any:
        from mlx_hybrid.adapters.attach import hybrid_layers
        from mlx_hybrid.adapters.store import logit_change, probe_logits

        if not self.modules:
            return self.model
        if not hybrid_layers(self.model):
            return load_base(self.source).model
        base = without_adapter(self.model)
        change = logit_change(probe_logits(base), self.model)
        if abs(change - self.change) > SAME * self.change:
            told = f"taking the adapter off changes logits by {change:.3g}, not by {self.change:.3g}"
            raise MlxHybridError(f"{self.name}: {told}, so the base cannot be shown beside it.")
        return base

    def describe(self) -> str:
        """One line that says what is loaded."""
        where = f" Base: {self.base_name}." if self.adapted else ""
        return f"{super().describe()}.{where} Context: {self.context:,} tokens."


def open_pair(
    name: str,
    *,
    context: int | None = None,
    base_name: str | None = None,
    template: str | None = None,
    compact: bool = False,
) -> Pair:
    """Load a run, an adapter or a model, ready to answer; with `template` in place of its own chat template; `compact`,
    a GGUF file's weights in no more memory than they need.

    Raises ConfigError for what cannot be found, and for a context longer than the model's.
    """
    import mlx.core as mx

    from mlx_hybrid.adapters.attach import settle
    from mlx_hybrid.adapters.frozen import unpack

    loaded = load_any(name, base_name=base_name)
    if template:
        loaded.tokenizer.use_template(template_text(template))
    if not (compact and hasattr(loaded.model, "weight_of")):
        unpack(loaded.model, UNPACKED_SHARE * memory_bytes())
    mx.eval(settle(loaded.model))
    limit = context_limit(loaded.model, loaded.tokenizer)
    if context is not None and not 16 <= context <= limit:
        raise ConfigError(f"--context: {context}, but this model takes 16 to {limit} tokens.")
    return Pair(**vars(loaded), context=context or limit)


def context_limit(model: Any, tokenizer: Any) -> int:
    """Most tokens that the model was made for, by its config or else its tokenizer."""
    values = dict(getattr(getattr(model, "args", None), "__dict__", {}))
    values |= values.get("text_config") or {}
    limit = values.get("max_position_embeddings") or getattr(tokenizer, "model_max_length", None) or NO_LIMIT
    return int(min(limit, NO_LIMIT))


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
