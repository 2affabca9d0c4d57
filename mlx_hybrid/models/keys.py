"""The keys of config.json: transformers' newer ones in the words that mlx-lm reads, none that matters left unread."""

import inspect
import json
from pathlib import Path
from typing import Any

from mlx_hybrid.errors import ConfigError

TABLE = [row.split("\t") for row in Path(__file__).with_name("keys.tsv").read_text().splitlines()]
NEUTRAL = {key: json.loads(values) for keys, values in TABLE for key in keys.split()}
"""Keys that change a forward pass, and the values with which they do not, beside none at all."""
GATED = ("llama", "mistral", "qwen2", "qwen3", "phi3", "smollm3")  # of which hidden_act is as above
WIDE_WINDOW = 2047  # Phi-3-mini's: up to as many tokens are read alike, and such models are much used
SLIDING, FULL = "sliding_attention", "full_attention"
NO_LIMIT = 1 << 20  # tokenizers without a limit of their own give numbers beyond any context


def mended(config: dict[str, Any]) -> dict[str, Any]:
    """The config with what transformers 5 keeps elsewhere under the names that mlx-lm reads as well."""
    new = dict(config)
    if isinstance(inner := config.get("text_config"), dict):
        new["text_config"] = mended(inner)
    rope = config.get("rope_parameters")
    if isinstance(rope, dict):
        main = dict(rope.get(FULL, rope))
        new = {key: main.pop(key) for key in ("rope_theta", "partial_rotary_factor") if key in main} | new
        if main.get("rope_type", "default") != "default":
            new["rope_scaling"] = new.get("rope_scaling") or main
        if "rope_theta" in rope.get(SLIDING, {}):
            new.setdefault("rope_local_base_freq", rope[SLIDING]["rope_theta"])
    kinds = config.get("layer_types") or []
    if SLIDING in kinds and FULL in kinds:
        every = kinds.index(FULL) + 1
        if kinds == [FULL if (i + 1) % every == 0 else SLIDING for i in range(len(kinds))]:
            new.setdefault("sliding_window_pattern", every)
    if dtype := config.get("dtype", config.get("torch_dtype")):
        new = {"dtype": dtype, "torch_dtype": dtype} | new
    return new


def read_keys(config: dict[str, Any]) -> dict[str, Any] | None:
    """The keys that the model's class reads, with their defaults; None for a model that mlx-lm does not know."""
    from mlx_lm.utils import _get_classes

    try:
        _, arguments = _get_classes(config)
    except (KeyError, ValueError):
        return None
    return {name: field.default for name, field in inspect.signature(arguments).parameters.items()}


def check_keys(config: dict[str, Any], where: str) -> None:
    """Raise ConfigError for a key that changes the forward pass and that the model's class does not read."""
    while isinstance(inner := config.get("text_config"), dict):
        config = inner
    known, new = read_keys(config), mended(config)
    rope = config.get("rope_parameters") or {}
    own = rope.get(FULL, rope).get("rope_theta", new.get("rope_theta"))
    if own != new.get("rope_theta"):
        told = f"says rope_theta {new['rope_theta']} and rope_parameters {own}; take the wrong one out."
        raise ConfigError(f"{where}: config.json {told}")
    for key in new if known else ():
        if key in NEUTRAL and key not in known and matters(key, new, known):
            told = f"says {key} {new[key]!r}, which mlx-lm's {config.get('model_type')} does not read, so it would"
            told += " compute something else; take it out to allow that."
            raise ConfigError(f"{where}: config.json {told}")


def matters(key: str, config: dict[str, Any], known: dict[str, Any]) -> bool:
    value, kind = config[key], config.get("model_type")
    width, heads = config.get("hidden_size", 0), config.get("num_attention_heads", 1)
    if not value or value in NEUTRAL[key] or (key == "hidden_act" and kind not in GATED):
        return False
    if key == "head_dim":
        return value != width // heads
    if key == "query_pre_attn_scalar":
        return value != config.get("head_dim", width // heads)
    if key == "layer_types":
        return set(value) != {FULL} and "sliding_window_pattern" not in (known.keys() & config.keys())
    if key == "sliding_window":
        used = config.get("use_sliding_window", True) and SLIDING in (config.get("layer_types") or [SLIDING])
        return used and value < min(config.get("max_position_embeddings", value), WIDE_WINDOW)
    return True


def forward_keys(config: dict[str, Any]) -> str | None:
    """What decides the forward pass besides the weights, as text; None for a model that mlx-lm does not know."""
    known, new = read_keys(config), mended(config)
    if known is None:
        return None
    packing = config.get("quantization") or config.get("quantization_config")
    told = {key: new[key] for key, default in known.items() if key in new and new[key] != default}
    if not told.get("rope_scaling"):
        told.pop("max_position_embeddings", None)  # a limit, then, and no part of the arithmetic
    # 10000 and 10000.0 are one number
    return json.dumps(json.loads(json.dumps([told, packing]), parse_int=float), sort_keys=True)


def context_limit(model: Any, tokenizer: Any) -> int:
    """Most tokens that the model was made for, by its config or else its tokenizer."""
    values = dict(getattr(getattr(model, "args", None), "__dict__", {}))
    values |= values.get("text_config") or {}
    limit = values.get("max_position_embeddings") or getattr(tokenizer, "model_max_length", None) or NO_LIMIT
    return int(min(limit, NO_LIMIT))
