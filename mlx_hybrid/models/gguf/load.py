"""A model from a GGUF file, its weights as the file has them, each format in the layer that holds it exactly."""

import importlib
from collections import Counter
from functools import partial
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten, tree_unflatten

from mlx_hybrid.adapters.frozen import FastQuantizedEmbedding, FastQuantizedLinear, dense_weight, on_cpu
from mlx_hybrid.errors import ConfigError, nearest
from mlx_hybrid.models.gguf.blocks import BITS, FIELDS, PACKED, plain, unpack
from mlx_hybrid.models.gguf.config import model_config
from mlx_hybrid.models.gguf.file import GgufFile, Tensor
from mlx_hybrid.models.gguf.names import (
    gguf_name,
    is_reordered,
    is_shifted,
    mlx_name,
    rows_from_gguf,
    rows_to_gguf,
)
from mlx_hybrid.models.gguf.packed import PackedEmbedding, PackedLinear

GROUP = 32
PLACELESS = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")
"""What settings are made from."""


def build(file: GgufFile, *, lazy: bool = False) -> tuple[nn.Module, dict[str, Any]]:
    """The model and its config; `lazy`, with arrays of the right shapes that nothing was read for.

    `model.weight_of(name)` gives any tensor of the file unpacked. Raises ConfigError for a tensor too many or too few.
    """
    config = model_config(file)
    module = importlib.import_module(f"mlx_lm.models.{config['model_type']}")
    model = module.Model(module.ModelArgs.from_dict(config))
    if config["tie_word_embeddings"] and "lm_head" in model:
        model.tie_word_embeddings = True
        model.pop("lm_head")
    wanted = {name: gguf_name(file.architecture, name) for name, _ in tree_flatten(model.parameters())}
    if missing := [name for name in wanted.values() if name not in file.tensors]:
        raise ConfigError(f"{file.path}: holds no tensor {missing[0]}, which the model needs.")
    if extra := file.tensors.keys() - wanted.values() - {*PLACELESS}:
        raise ConfigError(f"{file.path}: holds {sorted(extra)[0]}, which the model has no place for.")
    modules = dict(model.named_modules())
    layers: dict[str, nn.Module] = {}
    for name, own in sorted(wanted.items(), key=lambda item: (not item[0].endswith(".weight"), item[0])):
        path, _, leaf = name.rpartition(".")
        parts = read_parts(file, file.tensors[own], lazy=lazy)
        if leaf == "weight":
            layers[path] = held_as(modules[path], file.tensors[own].kind, parts)
        else:
            layers[path][leaf] = parts["weight"]
    model.update_modules(tree_unflatten(list(layers.items())))
    if config["model_type"] == "gemma3_text":
        scale_exactly(model.model.embed_tokens, config["hidden_size"])
    if not on_cpu():
        keep_types(model)
    model.weight_of = partial(weight_of, model, file)
    mx.clear_cache()
    return model, config


def read_parts(file: GgufFile, tensor: Tensor, *, lazy: bool = False) -> dict[str, mx.array]:
    """The arrays of a tensor's layer, rows in MLX's order."""
    pieces = [np.zeros((1, tensor.row), np.uint8)] if lazy else file.blocks(tensor)
    read = [arrays_of(tensor, piece) for piece in pieces]
    parts = {name: mx.concatenate([part[name] for part in read]) for name in read[0]}
    if lazy:
        rows = tensor.size // tensor.row
        parts = {name: mx.zeros((rows, *value.shape[1:]), value.dtype) for name, value in parts.items()}
    if heads := reordered_heads(file, tensor.name):
        parts = {name: rows_from_gguf(value, heads) for name, value in parts.items()}
    if len(tensor.shape) == 1:
        parts = {name: value.reshape(tensor.shape) for name, value in parts.items()}
    mx.eval([] if lazy else parts)
    return parts


def read_dense(file: GgufFile, tensor: Tensor) -> mx.array:
    """A tensor unpacked to float32 as a Hugging Face folder has it: rows in its order, Gemma's norms less 1."""
    parts = read_parts(file, tensor)
    plain_place = nn.Linear(1, 1, bias=False)
    value = (
        dense_weight(held_as(plain_place, tensor.kind, parts), mx.float32)
        if "scales" in parts
        else parts["weight"]
    )
    return value.astype(mx.float32) - is_shifted(file.architecture, tensor.name)


def arrays_of(tensor: Tensor, rows: np.ndarray) -> dict[str, mx.array]:
    """The arrays of some rows. On a GPU scales and biases of products, which MLX casts, become float16 where that loses
    nothing."""
    if tensor.kind not in FIELDS:
        rows = rows.reshape(-1, rows.size) if len(tensor.shape) == 1 else rows
        value = mx.array(plain(tensor.kind, rows))
        half = mx.bfloat16 if tensor.kind == "BF16" else value.dtype
        return {"weight": value.astype(mx.float32 if on_cpu() else half)}
    parts = unpack(tensor.kind, rows)
    if not on_cpu() and "K" not in tensor.kind and tensor.name != "token_embd.weight":
        half = {name: parts[name].astype(np.float16) for name in ("scales", "biases")}
        if all(np.array_equal(half[name], parts[name]) for name in half):
            parts |= half
    return {name: mx.array(value) for name, value in parts.items()}


def held_as(module: nn.Module, kind: str, parts: dict[str, mx.array]) -> nn.Module:
    """The layer in the place of `module` that holds these parts. A norm's weight stays the file's own, Gemma's too,
    where MLX would subtract 1 and add it again."""
    embedding = isinstance(module, nn.Embedding)
    if kind not in FIELDS:
        vector = parts["weight"].ndim == 1
        layer = nn.RMSNorm(parts["weight"].shape[0], module.eps) if vector else module
        layer.weight = parts["weight"]
        return layer
    if kind in PACKED:
        make = PackedEmbedding if embedding else PackedLinear
    else:
        make = FastQuantizedEmbedding if embedding else FastQuantizedLinear
    layer = make.__new__(make)
    nn.Module.__init__(layer)
    layer.group_size, layer.bits, layer.mode = 16 if kind in PACKED else GROUP, BITS[kind], "affine"
    layer.num_embeddings, layer.dims = parts["weight"].shape[0], parts["weight"].shape[1] * 32 // BITS[kind]
    for name, value in parts.items():
        layer[name] = value
    layer.freeze()
    return layer


def scale_exactly(embedding: nn.Module, width: int) -> None:
    """Undo that MLX rounds √width, which Gemma 3 scales its embeddings by, to bfloat16, as no other program does."""
    own, scale = type(embedding), width**0.5
    exact = scale / mx.array(scale, mx.bfloat16).item()
    embedding.__class__ = type(
        own.__name__, (own,), {"__call__": lambda self, x: own.__call__(self, x) * exact}
    )


def keep_types(model: nn.Module) -> None:
    """On a GPU, let activations be bfloat16 whatever the weights are: each layer's output has its input's type."""
    for _, module in model.named_modules():
        if isinstance(
            module, nn.Linear | nn.QuantizedLinear | nn.RMSNorm | nn.Embedding | nn.QuantizedEmbedding
        ):
            own = type(module)
            own_call = own.__call__

            def call(self: nn.Module, x: mx.array, own_call: Any = own_call) -> mx.array:
                return own_call(self, x).astype(
                    x.dtype if mx.issubdtype(x.dtype, mx.floating) else mx.bfloat16
                )

            module.__class__ = type(own.__name__, (own,), {"__call__": call})


def weight_of(model: nn.Module, file: GgufFile, name: str) -> mx.array:
    """A tensor of the file by its GGUF name, as the model holds it, unpacked to float32: to the bit what
    `gguf.dequantize` gives. Raises ConfigError for a name that the file does not hold."""
    if name not in file.tensors:
        raise ConfigError(f'{file.path}: holds no tensor "{name}"; {nearest(name, file.tensors)}')
    found = mlx_name(file.architecture, name)
    if found is None:
        return mx.array(file.numbers(name))
    path, _, leaf = found.rpartition(".")
    module = model
    for part in path.split("."):
        module = module[int(part)] if part.isdigit() else module[part]
    module = module.get("linear", module)  # under an adapter
    value = dense_weight(module, mx.float32) if leaf == "weight" else module[leaf]
    value = value.astype(mx.float32)
    return rows_to_gguf(value, heads) if (heads := reordered_heads(file, name)) else value


def reordered_heads(file: GgufFile, name: str) -> int | None:
    """The heads in whose rows a tensor is reordered; None for one that is not."""
    if not is_reordered(file.architecture, name):
        return None
    heads = file.about("attention.head_count")
    return file.about("attention.head_count_kv", heads) if ".attn_k." in name else heads


def holdings(file: GgufFile) -> list[dict[str, Any]]:
    """How each type of tensor is held, with how many there are, and their bytes in the file and in memory."""
    tensors, stored, held = Counter(), Counter(), Counter()
    for tensor in file.tensors.values():
        tensors[tensor.kind] += 1
        stored[tensor.kind] += tensor.size
        held[tensor.kind] += sum(part.nbytes for part in read_parts(file, tensor, lazy=True).values())
    return [
        {"type": kind, "tensors": n, "file_bytes": stored[kind], "bytes": held[kind], "held": how_held(kind)}
        for kind, n in tensors.most_common()
    ]


def how_held(kind: str) -> str:
    if kind in PACKED:
        return "as it is packed, unpacked a layer at a time"
    if kind not in FIELDS:
        return "as it is" if kind == "F32" or not on_cpu() else "as float32, which is exact"
    scales = "float32" if on_cpu() or "K" in kind else "float16"
    return f"{BITS[kind]} bits in groups of {GROUP}, {scales} scales and biases"
