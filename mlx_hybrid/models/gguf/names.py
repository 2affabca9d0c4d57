"""What GGUF calls architectures and tensors, what MLX calls them, and how the rows of some are ordered.

llama.cpp rotates neighbouring features of a head, (0, 1), (2, 3), …; MLX and transformers rotate those half a head
apart, (0, d/2), (1, d/2 + 1), …. For the families that llama.cpp treats so, a GGUF holds q and k with the rows of each
head reordered.
"""

from typing import Any

FAMILIES = {
    "llama": "llama",
    "mistral": "llama",
    "smollm3": "smollm3",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "gemma2": "gemma2",
    "gemma3": "gemma3_text",
    "phi3": "phi3",
}
"""MLX's `model_type` of each architecture that is read."""
ARCHITECTURES = {kind: name for name, kind in FAMILIES.items() if name != "mistral"} | {"mistral": "llama"}
"""GGUF's architecture of each `model_type`; llama.cpp's converter writes Mistral as llama."""

OUTSIDE = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
IN_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_qkv": "self_attn.qkv_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
GEMMA = IN_LAYER | {
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
PHI = IN_LAYER | {"ffn_up": "mlp.gate_up_proj"}
LAYERS = {"gemma2": GEMMA, "gemma3": GEMMA, "phi3": PHI}

REORDERED = ("llama", "mistral", "smollm3")
SHIFTED = ("gemma2", "gemma3")


def mlx_name(architecture: str, name: str) -> str | None:
    """A GGUF tensor's name in MLX, `blk.0.attn_q.weight` as `model.layers.0.self_attn.q_proj.weight`; None for one
    that the model has no place for."""
    module, _, leaf = name.rpartition(".")
    if not module.startswith("blk."):
        found = OUTSIDE.get(module)
        return found and f"{found}.{leaf}"
    _, number, part = module.split(".", 2)
    found = LAYERS.get(architecture, IN_LAYER).get(part)
    return found and f"model.layers.{number}.{found}.{leaf}"


def gguf_name(architecture: str, name: str) -> str | None:
    """The way back: `model.layers.0.self_attn.q_proj.weight` as `blk.0.attn_q.weight`, or None."""
    module, _, leaf = name.rpartition(".")
    if not module.startswith("model.layers."):
        found = {mlx: gguf for gguf, mlx in OUTSIDE.items()}.get(module)
        return found and f"{found}.{leaf}"
    number, part = module.removeprefix("model.layers.").split(".", 1)
    found = {mlx: gguf for gguf, mlx in LAYERS.get(architecture, IN_LAYER).items()}.get(part)
    return found and f"blk.{number}.{found}.{leaf}"


def is_reordered(architecture: str, name: str) -> bool:
    """Whether the rows of this GGUF tensor, a weight or a bias, are in llama.cpp's order."""
    return architecture in REORDERED and (".attn_q." in name or ".attn_k." in name)


def is_shifted(architecture: str, name: str) -> bool:
    """Whether this GGUF tensor is a norm's weight that MLX and transformers hold less 1, as Gemma's."""
    return architecture in SHIFTED and name.endswith("norm.weight")


def rows_to_gguf(rows: Any, heads: int) -> Any:
    """Rows (heads · d, …) of q (or of k, with its own count of heads) from MLX's order to llama.cpp's; for a LoRA,
    the rows of B (out, r). NumPy or MLX arrays."""
    return rows.reshape(heads, 2, -1, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def rows_from_gguf(rows: Any, heads: int) -> Any:
    """The way back of `rows_to_gguf`."""
    return rows.reshape(heads, -1, 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)
