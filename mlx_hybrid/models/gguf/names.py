"""What GGUF calls architectures and tensors, what MLX calls them, and how the rows of some are ordered.

llama.cpp rotates neighbouring features of a head, (0, 1), (2, 3), …; MLX those half a head apart, (0, d/2), …. For some
families a GGUF therefore holds q and k with the rows of each head reordered.
"""

from pathlib import Path
from typing import Any

FAMILIES = {"llama": "llama", "mistral": "llama", "gemma3": "gemma3_text"}
FAMILIES |= {name: name for name in ("smollm3", "qwen2", "qwen3", "gemma2", "phi3")}
"""MLX's `model_type` of each architecture that is read."""
ARCHITECTURES = {kind: name for name, kind in FAMILIES.items() if name != "mistral"} | {"mistral": "llama"}
"""GGUF's architecture of each `model_type`; llama.cpp's converter writes Mistral as llama."""

ROWS = [line.split("\t") for line in Path(__file__).with_name("names.tsv").read_text().splitlines()]
"""GGUF's name of a module, MLX's, and the families that have it so, where not all do."""
REORDERED = ("llama", "mistral", "smollm3")
SHIFTED = ("gemma2", "gemma3")


def modules(architecture: str) -> dict[str, str]:
    return {gguf: mlx for gguf, mlx, own in ROWS if not own or architecture in own.split()}


def mlx_name(architecture: str, name: str) -> str | None:
    """`blk.0.attn_q.weight` as `model.layers.0.self_attn.q_proj.weight`; None for what the model has no place for."""
    return renamed(name, "blk.", "model.layers.", modules(architecture))


def gguf_name(architecture: str, name: str) -> str | None:
    """The way back: `model.layers.0.self_attn.q_proj.weight` as `blk.0.attn_q.weight`, or None."""
    back = {mlx: gguf for gguf, mlx in modules(architecture).items()}
    return renamed(name, "model.layers.", "blk.", back)


def renamed(name: str, begin: str, other: str, names: dict[str, str]) -> str | None:
    module, _, leaf = name.rpartition(".")
    place = ""
    if module.startswith(begin):
        number, module = module.removeprefix(begin).split(".", 1)
        place = f"{other}{number}."
    return f"{place}{names[module]}.{leaf}" if module in names else None


def is_reordered(architecture: str, name: str) -> bool:
    """Whether the rows of this tensor, a weight or a bias, are in llama.cpp's order."""
    return architecture in REORDERED and (".attn_q." in name or ".attn_k." in name)


def is_shifted(architecture: str, name: str) -> bool:
    """Whether this GGUF tensor is a norm's weight that MLX and transformers hold less 1, as Gemma's."""
    return architecture in SHIFTED and name.endswith("norm.weight")


def rows_to_gguf(rows: Any, heads: int) -> Any:
    """Rows (heads · d, …) of q or k, or of a LoRA's B (out, r), from MLX's order to llama.cpp's."""
    return rows.reshape(heads, 2, -1, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def rows_from_gguf(rows: Any, heads: int) -> Any:
    """The way back of `rows_to_gguf`."""
    return rows.reshape(heads, -1, 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)
