"""The settings and tensors of a GGUF file as MLX names them, how it orders rows, and what it must be to be read.

llama.cpp rotates neighbouring features of a head, (0, 1), (2, 3), …; MLX those half a head apart, (0, d/2), …. For some
families a GGUF therefore holds q and k with the rows of each head reordered.
"""

from pathlib import Path
from typing import Any

import numpy as np

from mlx_hybrid.errors import ConfigError
from mlx_hybrid.models.gguf.blocks import FIELDS, PLAIN
from mlx_hybrid.models.gguf.file import GgufFile, open_gguf

FAMILIES = {"llama": "llama", "mistral": "llama", "gemma3": "gemma3_text"}
FAMILIES |= {name: name for name in ("smollm3", "qwen2", "qwen3", "gemma2", "phi3")}
"""MLX's `model_type` of each architecture that is read."""
ARCHITECTURES = {kind: name for name, kind in FAMILIES.items() if name != "mistral"} | {"mistral": "llama"}
"""GGUF's architecture of each `model_type`; llama.cpp's converter writes Mistral as llama."""

ROWS = [line.split("\t") for line in Path(__file__).with_name("names.tsv").read_text().splitlines()]
"""GGUF's name of a module, MLX's, and the families that have it so, where not all do."""
REORDERED, SHIFTED = ("llama", "mistral", "smollm3"), ("gemma2", "gemma3")

SIZES = {
    "embedding_length": "hidden_size",
    "block_count": "num_hidden_layers",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
}
WIDE_HEADS = {("gemma2", 46), ("gemma3", 62)}
"""The 27B models, whose attention is scaled by width / heads and not by the size of a head, as llama.cpp knows too."""


def readable(path: Path, name: str) -> Path:
    """The file, or the first part of a split one. Raises ConfigError for one that is not read."""
    file = open_gguf(path)
    if told := fault(file):
        raise ConfigError(f"{name}: {told}.")
    return file.path


def fault(file: GgufFile) -> str | None:
    family, formats = file.architecture, [*FIELDS, *PLAIN]
    if file.metadata.get("general.type") == "adapter" or "adapter.type" in file.metadata:
        return "is a LoRA adapter, not a model; name the model that it belongs to"
    if family not in FAMILIES:
        known = ", ".join(sorted(FAMILIES))
        return f"is of the architecture {family or 'none'}, and of GGUF files only {known} are read"
    if file.about("expert_count", 0):
        return "is a mixture of experts, which is not read from a GGUF file; name its MLX folder"
    if odd := next((tensor for tensor in file.tensors.values() if tensor.kind not in formats), None):
        return f"{odd.name} is {odd.kind}, which is not read; the formats read: {', '.join(formats)}"
    if "token_embd.weight" not in file.tensors:
        return "holds no tensor token_embd.weight, so it is no whole model"
    parts = ("tokens", "merges") if file.tokenizer("model") == "gpt2" else ("tokens",)
    if missing := next((part for part in parts if not file.tokenizer(part)), None):
        return f"holds no {missing} of a tokenizer; a model folder of the same model has them"
    if missing := [key for key in SIZES if not isinstance(file.about(key), int | float)]:
        return f"does not say {family}.{missing[0]} in one number, which the model is built from"
    if family != "phi3" and head_size(file) != file.about("rope.dimension_count", head_size(file)):
        return f"rotates a part of each head ({family}.rope.dimension_count), which is not read"
    return None


def head_size(file: GgufFile) -> int:
    usual = file.about("embedding_length") // file.about("attention.head_count")
    rotated = file.about("rope.dimension_count") if FAMILIES[file.architecture] == "llama" else None
    return file.about("attention.key_length", rotated or usual)


def config_of(place: Path) -> dict[str, Any]:
    from mlx_lm.utils import load_config

    return model_config(open_gguf(place)) if place.is_file() else load_config(place)


def model_config(file: GgufFile) -> dict[str, Any]:
    """What config.json of the same model says."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    family, about, tokenizer = file.architecture, file.about, file.tokenizer
    kind, head, context = FAMILIES[family], head_size(file), about("context_length", 2048)
    ends = dict.fromkeys(tokenizer(f"{end}_token_id") for end in ("eos", "eot", "eom"))
    config = {key: about(name) for name, key in SIZES.items()} | {
        "model_type": kind,
        "architectures": [MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[kind]],
        "num_key_value_heads": about("attention.head_count_kv", about("attention.head_count")),
        "head_dim": head,
        "vocab_size": file.tensors["token_embd.weight"].shape[0],
        "max_position_embeddings": context,
        "rope_theta": about("rope.freq_base", 10000.0),
        "rope_scaling": rope_scaling(file),
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "attention_bias": "blk.0.attn_q.bias" in file.tensors,
        "mlp_bias": "blk.0.ffn_down.bias" in file.tensors,
        "bos_token_id": tokenizer("bos_token_id"),
        "pad_token_id": tokenizer("padding_token_id"),
        "eos_token_id": [end for end in ends if end is not None],
    }
    if family in ("gemma2", "gemma3"):
        wide = (family, config["num_hidden_layers"]) in WIDE_HEADS
        width = config["hidden_size"] // config["num_attention_heads"]
        config |= {
            "query_pre_attn_scalar": width if wide else head,
            "hidden_activation": "gelu_pytorch_tanh",
            "attn_logit_softcapping": about("attn_logit_softcapping"),
            "final_logit_softcapping": about("final_logit_softcapping"),
            "sliding_window": about("attention.sliding_window"),
        }
    if family == "gemma3":
        config["rope_local_base_freq"] = about("rope.freq_base_swa", 10000.0)
        config["sliding_window_pattern"] = about("attention.sliding_window_pattern", 6)
    if family == "phi3":
        config["partial_rotary_factor"] = about("rope.dimension_count", head) / head
        config["original_max_position_embeddings"] = about("rope.scaling.original_context_length", context)
    return {key: value for key, value in config.items() if value is not None}


def rope_scaling(file: GgufFile) -> dict[str, Any] | None:
    """How a long context stretches the rotations of positions. Raises ConfigError for a way that is not read."""
    kind, factor = file.about("rope.scaling.type", "none"), file.about("rope.scaling.factor")
    original = {"original_max_position_embeddings": file.about("rope.scaling.original_context_length")}
    if "rope_factors_long.weight" in file.tensors:
        factors = {f"{n}_factor": file.numbers(f"rope_factors_{n}.weight") for n in ("long", "short")}
        return {"type": "longrope"} | original | factors
    if "rope_freqs.weight" in file.tensors:
        return llama3_scaling(file)
    factor = factor or file.about("rope.scale_linear", 1.0)
    if kind == "none" and factor == 1.0:
        return None
    if kind not in ("none", "linear", "yarn"):
        raise ConfigError(f"{file.path}: scales its rotary positions by {kind}, which is not read.")
    kind = "linear" if kind == "none" else kind
    return {"type": kind, "rope_type": kind, "factor": factor} | (original if kind == "yarn" else {})


def llama3_scaling(file: GgufFile) -> dict[str, Any]:
    """The settings of Llama 3 that make the factors which the file holds. Raises ConfigError for other factors."""
    from mlx_lm.models.rope_utils import initialize_rope

    factors, base = np.array(file.numbers("rope_freqs.weight")), file.about("rope.freq_base", 10000.0)
    found = {"rope_type": "llama3", "factor": float(factors.max()), "low_freq_factor": 1.0}
    found |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
    made = initialize_rope(2 * len(factors), base, False, found)._freqs
    if not np.allclose(made, base ** (np.arange(len(factors)) / len(factors)) * factors, rtol=1e-5):
        raise ConfigError(f"{file.path}: its rope_freqs.weight are not Llama 3's, and are not read.")
    return found


def mlx_name(architecture: str, name: str) -> str | None:
    """`blk.0.attn_q.weight` as `model.layers.0.self_attn.q_proj.weight`; None for what the model has no place for."""
    return renamed(architecture, name, ("blk.", "model.layers."))


def gguf_name(architecture: str, name: str) -> str | None:
    """The way back: `model.layers.0.self_attn.q_proj.weight` as `blk.0.attn_q.weight`, or None."""
    return renamed(architecture, name, ("model.layers.", "blk."), -1)


def renamed(architecture: str, name: str, begins: tuple[str, str], way: int = 1) -> str | None:
    names = dict(row[:2][::way] for row in ROWS if not row[2] or architecture in row[2].split())
    module, _, leaf = name.rpartition(".")
    place = ""
    if module.startswith(begins[0]):
        number, module = module.removeprefix(begins[0]).split(".", 1)
        place = f"{begins[1]}{number}."
    return f"{place}{names[module]}.{leaf}" if module in names else None


def is_shifted(architecture: str, name: str) -> bool:
    """Whether this GGUF tensor is a norm's weight that MLX and transformers hold less 1, as Gemma's."""
    return architecture in SHIFTED and name.endswith("norm.weight")


def reordered(architecture: str, name: str, rows: Any, heads: dict[str, int], *, back: bool = False) -> Any:
    """The rows of a tensor, or of a LoRA's B (out, r), from MLX's order to llama.cpp's, or `back`: those (heads · d, …)
    of q or k, weight or bias, by the numbers of `heads`; all others stay as they are."""
    part = next((part for part in heads if f".attn_{part}." in name), None)
    if architecture not in REORDERED or part is None:
        return rows
    halves = (heads[part], -1, 2) if back else (heads[part], 2, -1)
    return rows.reshape(*halves, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)
