"""The settings of a GGUF file as MLX and transformers name them, and what a file must be to be read."""

from pathlib import Path
from typing import Any

import numpy as np

from mlx_hybrid.errors import ConfigError
from mlx_hybrid.models.gguf.blocks import FIELDS, PLAIN
from mlx_hybrid.models.gguf.file import GgufFile, open_gguf
from mlx_hybrid.models.gguf.names import FAMILIES

CLASSES = {"llama": "Llama", "smollm3": "SmolLM3", "qwen2": "Qwen2", "qwen3": "Qwen3"}
CLASSES |= {"gemma2": "Gemma2", "gemma3_text": "Gemma3", "phi3": "Phi3"}
"""How transformers begins the name of the model of each `model_type`."""
SIZES = {
    "embedding_length": "hidden_size",
    "block_count": "num_hidden_layers",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
}
WIDE_HEADS = {("gemma2", 46), ("gemma3", 62)}
"""The 27B models, whose attention is scaled by width / heads and not by the size of a head, as llama.cpp knows too."""
ENDS = ("eos_token_id", "eot_token_id", "eom_token_id")


def readable(path: Path, name: str) -> Path:
    """The file, or the first part of a split one. Raises ConfigError for one that is no model, or is of a family, a
    format or a make that is not read."""
    file = open_gguf(path)
    family, known = file.architecture, sorted(FAMILIES)
    if file.metadata.get("general.type", "model") == "adapter" or "adapter.type" in file.metadata:
        raise ConfigError(f"{name}: is a LoRA adapter, not a model; name the model that it belongs to.")
    if not file.tensors:
        raise ConfigError(f"{name}: holds no weights.")
    if family not in FAMILIES:
        told = (
            f"is of the architecture {family or 'none'}, and of GGUF files only {', '.join(known)} are read"
        )
        raise ConfigError(f"{name}: {told}.")
    if file.about("expert_count", 0):
        raise ConfigError(
            f"{name}: is a mixture of experts, which is not read from a GGUF file; name its MLX folder."
        )
    for tensor in file.tensors.values():
        if tensor.kind not in (*FIELDS, *PLAIN):
            formats = ", ".join([*FIELDS, *PLAIN])
            raise ConfigError(
                f"{name}: {tensor.name} is {tensor.kind}, which is not read; the formats read: {formats}."
            )
    if not file.metadata.get("tokenizer.ggml.tokens"):
        raise ConfigError(f"{name}: holds no tokenizer; a model folder of the same model has one.")
    if missing := [key for key in SIZES if not isinstance(file.about(key), int | float)]:
        raise ConfigError(
            f"{name}: does not say {family}.{missing[0]} in one number, which the model is built from."
        )
    if "token_embd.weight" not in file.tensors:
        raise ConfigError(f"{name}: holds no tensor token_embd.weight; is it one part of a split file?")
    return file.path


def model_config(file: GgufFile) -> dict[str, Any]:
    """What config.json of the same model says."""
    family, about = file.architecture, file.about
    kind = FAMILIES[family]
    config = {key: about(name) for name, key in SIZES.items()}
    heads = config["num_attention_heads"]
    rotated = about("rope.dimension_count")
    usual = rotated if kind == "llama" and rotated else config["hidden_size"] // heads
    config |= {
        "model_type": kind,
        "architectures": [f"{CLASSES[kind]}ForCausalLM"],
        "num_key_value_heads": about("attention.head_count_kv", heads),
        "head_dim": about("attention.key_length", usual),
        "vocab_size": file.tensors["token_embd.weight"].shape[0],
        "max_position_embeddings": about("context_length", 2048),
        "rope_theta": about("rope.freq_base", 10000.0),
        "rope_scaling": rope_scaling(file),
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "attention_bias": "blk.0.attn_q.bias" in file.tensors,
        "mlp_bias": "blk.0.ffn_down.bias" in file.tensors,
    }
    if kind.startswith("gemma"):
        config |= gemma_config(file, config)
    if kind == "phi3":
        config["partial_rotary_factor"] = (rotated or config["head_dim"]) / config["head_dim"]
        config["original_max_position_embeddings"] = about(
            "rope.scaling.original_context_length", config["max_position_embeddings"]
        )
    ends = dict.fromkeys(file.metadata.get(f"tokenizer.ggml.{key}") for key in ENDS)
    named = {key: file.metadata.get(f"tokenizer.ggml.{name}_token_id") for key, name in NAMED.items()}
    named["eos_token_id"] = [end for end in ends if end is not None]
    return {key: value for key, value in (config | named).items() if value is not None}


NAMED = {"bos_token_id": "bos", "pad_token_id": "padding"}


def config_of(place: Path) -> dict[str, Any]:
    """The config of a model folder or a GGUF file."""
    from mlx_lm.utils import load_config

    return model_config(open_gguf(place)) if place.is_file() else load_config(place)


def gemma_config(file: GgufFile, config: dict[str, Any]) -> dict[str, Any]:
    """What Gemma's attention has of its own; None for what a file leaves to the model's defaults."""
    wide = (file.architecture, config["num_hidden_layers"]) in WIDE_HEADS
    width = config["hidden_size"] // config["num_attention_heads"]
    found = {
        "query_pre_attn_scalar": width if wide else config["head_dim"],
        "attn_logit_softcapping": file.about("attn_logit_softcapping"),
        "final_logit_softcapping": file.about("final_logit_softcapping"),
        "sliding_window": file.about("attention.sliding_window"),
        "hidden_activation": "gelu_pytorch_tanh",
    }
    if file.architecture == "gemma3":
        found["rope_local_base_freq"] = file.about("rope.freq_base_swa", 10000.0)
        found["sliding_window_pattern"] = file.about("attention.sliding_window_pattern", 6)
    return found


def rope_scaling(file: GgufFile) -> dict[str, Any] | None:
    """How a long context stretches the rotations of positions. Raises ConfigError for a way that is not read."""
    kind, original = (
        file.about("rope.scaling.type", "none"),
        file.about("rope.scaling.original_context_length"),
    )
    if "rope_factors_long.weight" in file.tensors:
        factors = {
            f"{name}_factor": file.numbers(f"rope_factors_{name}.weight") for name in ("long", "short")
        }
        return {"type": "longrope", "original_max_position_embeddings": original} | factors
    if "rope_freqs.weight" in file.tensors:
        return llama3_scaling(file)
    factor = file.about("rope.scaling.factor", file.about("rope.scale_linear", 1.0))
    if kind == "none" and factor == 1.0:
        return None
    if kind not in ("none", "linear", "yarn"):
        raise ConfigError(f"{file.path}: scales its rotary positions by {kind}, which is not read.")
    scaling = {"type": "linear" if kind == "none" else kind, "factor": factor}
    scaling["rope_type"] = scaling["type"]
    return scaling | ({"original_max_position_embeddings": original} if kind == "yarn" else {})


def llama3_scaling(file: GgufFile) -> dict[str, Any]:
    """The settings of Llama 3 that make the factors which the file holds. Raises ConfigError for other factors."""
    from mlx_lm.models.rope_utils import initialize_rope

    factors, base = np.array(file.numbers("rope_freqs.weight")), file.about("rope.freq_base", 10000.0)
    found = {
        "rope_type": "llama3",
        "factor": float(factors.max()),
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
    }
    found |= {"original_max_position_embeddings": 8192}
    made = initialize_rope(2 * len(factors), base, False, found)._freqs
    if not np.allclose(made, base ** (np.arange(len(factors)) / len(factors)) * factors, rtol=1e-5):
        raise ConfigError(f"{file.path}: its rope_freqs.weight are not Llama 3's, and are not read.")
    return found
