"""A model from a GGUF file, its weights as the file has them, each format in the layer that holds it exactly; Q6_K,
Q3_K and Q2_K as they are packed, in groups of 16, which MLX refuses, unpacked whenever they are used."""

import importlib
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten, tree_unflatten

from mlx_hybrid.adapters.frozen import FAST, FastQuantizedEmbedding, FastQuantizedLinear, dense_weight, on_cpu
from mlx_hybrid.errors import ConfigError, check_known
from mlx_hybrid.models.gguf.blocks import BITS, FIELDS, PACKED, plain, unpack
from mlx_hybrid.models.gguf.config import gguf_name, is_shifted, mlx_name, model_config, reordered
from mlx_hybrid.models.gguf.file import GgufFile, Tensor

EMBEDDING = "token_embd.weight"
PLACELESS = {"rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"}
"""These make settings."""
OFFSETS = {BITS[kind]: offset for kind, offset in PACKED.items()}
CHUNK = 128  # codes that MLX unpacks with one scale, of 1, so that they come out as they are
LEAVES = nn.Linear | nn.QuantizedLinear | nn.RMSNorm | nn.Embedding | nn.QuantizedEmbedding


def build(file: GgufFile, *, lazy: bool = False) -> tuple[nn.Module, dict[str, Any]]:
    """The model, whose `weight_of(name)` unpacks any tensor, and its config; `lazy`, with no weight read. Raises
    ConfigError for a tensor too many or too few."""
    config = model_config(file)
    kind = importlib.import_module(f"mlx_lm.models.{config['model_type']}")
    model = kind.Model(kind.ModelArgs.from_dict(config))
    if config["tie_word_embeddings"] and "lm_head" in model:
        model.tie_word_embeddings = True
        model.pop("lm_head")
    modules, layers = dict(model.named_modules()), {}
    for name, tensor in places(file, model).items():
        path, _, leaf = name.rpartition(".")
        parts = read_parts(file, tensor, lazy=lazy)
        if leaf == "weight":
            layers[path] = held_as(modules[path], tensor.kind, parts)
        else:
            layers[path][leaf] = parts["weight"]
    model.update_modules(tree_unflatten(list(layers.items())))
    keep_types(model, config)
    model.weight_of = partial(weight_of, model, file)
    mx.clear_cache()
    return model, config


def places(file: GgufFile, model: nn.Module) -> dict[str, Tensor]:
    """The tensor of each parameter, weights first. Raises ConfigError for one missing, misshapen, or left over."""
    found = {}
    for name, value in sorted(tree_flatten(model.parameters()), key=lambda item: item[0].endswith(".bias")):
        own = gguf_name(file.architecture, name)
        if own not in file.tensors:
            raise ConfigError(f"{file.path}: holds no tensor {own or name}, which the model needs.")
        found[name] = file.tensors[own]
        if found[name].shape != value.shape:
            raise ConfigError(f"{file.path}: {own} is {found[name].shape}, and should be {value.shape}.")
    if extra := file.tensors.keys() - {tensor.name for tensor in found.values()} - PLACELESS:
        raise ConfigError(f"{file.path}: holds {min(extra)}, which the model has no place for.")
    return found


def read_parts(file: GgufFile, tensor: Tensor, *, lazy: bool = False) -> dict[str, mx.array]:
    """The arrays of a tensor's layer, rows in MLX's order."""
    pieces = [np.zeros((1, tensor.row), np.uint8)] if lazy else file.blocks(tensor)
    read = [arrays_of(tensor, piece) for piece in pieces]
    parts = {name: mx.concatenate([part[name] for part in read]) for name in read[0]}
    if lazy:
        rows = tensor.size // tensor.row
        parts = {name: mx.zeros((rows, *value.shape[1:]), value.dtype) for name, value in parts.items()}
    if len(tensor.shape) == 1:
        parts = {name: value.reshape(tensor.shape) for name, value in parts.items()}
    order = partial(reordered, file.architecture, tensor.name, heads=file.heads, back=True)
    parts = {name: order(value) for name, value in parts.items()}
    mx.eval([] if lazy else parts)
    return parts


def read_dense(file: GgufFile, tensor: Tensor) -> mx.array:
    """A tensor unpacked to float32 as a Hugging Face folder has it: rows in its order, Gemma's norms less 1."""
    layer = held_as(nn.Linear(1, 1, bias=False), tensor.kind, read_parts(file, tensor))
    value = dense_weight(layer, mx.float32).astype(mx.float32)
    return value - 1 if is_shifted(file.architecture, tensor.name) else value


def arrays_of(tensor: Tensor, rows: np.ndarray) -> dict[str, mx.array]:
    """The arrays of some rows; on a GPU scales and biases that MLX casts are float16 where that loses nothing."""
    if tensor.kind not in FIELDS:
        value = mx.array(plain(tensor.kind, rows))
        half = mx.bfloat16 if tensor.kind == "BF16" else value.dtype
        return {"weight": value.astype(mx.float32 if on_cpu() else half)}
    parts = unpack(tensor.kind, rows)
    if not on_cpu() and "K" not in tensor.kind and tensor.name != EMBEDDING:
        half = {name: parts[name].astype(np.float16) for name in ("scales", "biases")}
        parts |= half if all(np.array_equal(half[name], parts[name]) for name in half) else {}
    return {name: mx.array(value) for name, value in parts.items()}


def held_as(module: nn.Module, kind: str, parts: dict[str, mx.array]) -> nn.Module:
    """The layer in the place of `module` that holds these parts. A norm's weight stays the file's own, Gemma's too."""
    weight = parts["weight"]
    if kind not in FIELDS:
        layer = module if weight.ndim > 1 else nn.RMSNorm(weight.size, getattr(module, "eps", 1e-5))
        layer.weight = weight
        return layer
    linear, table = (PackedLinear, PackedEmbedding) if kind in PACKED else FAST.values()
    own = table if isinstance(module, nn.Embedding) else linear
    layer = own.__new__(own)
    nn.Module.__init__(layer)
    layer.group_size, layer.bits, layer.mode = 16 if kind in PACKED else 32, BITS[kind], "affine"
    layer.num_embeddings, layer.dims = weight.shape[0], weight.shape[1] * 32 // BITS[kind]
    dict.update(layer, parts)
    return layer.freeze()


def keep_types(model: nn.Module, config: dict[str, Any]) -> None:
    """Let the embeddings of Gemma 3 be scaled by √width, which MLX alone rounds to bfloat16; and on a GPU, give the
    output of each layer its input's type, bfloat16 from the embeddings on, whatever type the weights have."""
    if config["model_type"] == "gemma3_text":
        scale = config["hidden_size"] ** 0.5
        exact = scale / mx.array(scale, mx.bfloat16).item()
        then(model.model.embed_tokens, lambda x, y: y * exact)
    floating = (mx.float32, mx.float16, mx.bfloat16)
    for _, module in [] if on_cpu() else model.named_modules():
        if isinstance(module, LEAVES):
            then(module, lambda x, y: y.astype(x.dtype if x.dtype in floating else mx.bfloat16))


def then(module: nn.Module, change: Callable[[mx.array, mx.array], mx.array]) -> None:
    """Change what a layer makes of x, in place."""
    own = type(module)
    call = {"__call__": lambda self, x: change(x, own.__call__(self, x))}
    module.__class__ = type(own.__name__, (own,), call)


def weight_of(model: nn.Module, file: GgufFile, name: str) -> mx.array:
    """A tensor by its GGUF name, as the model holds it, unpacked to float32, to the bit as `gguf.dequantize` does."""
    check_known(name, file.tensors, f"{file.path}: holds no tensor")
    if name in PLACELESS:
        return mx.array(file.numbers(name))
    path, _, leaf = mlx_name(file.architecture, name).rpartition(".")
    module = dict(model.named_modules())[path]
    module = module.get("linear", module)  # under an adapter
    value = (dense_weight(module, mx.float32) if leaf == "weight" else module[leaf]).astype(mx.float32)
    return reordered(file.architecture, name, value, file.heads)


def holdings(file: GgufFile) -> list[dict[str, Any]]:
    """How many tensors of each type there are, and their bytes in the file and in memory."""
    found: dict[str, Counter] = {}
    for tensor in file.tensors.values():
        held = sum(part.nbytes for part in read_parts(file, tensor, lazy=True).values())
        row = {"tensors": 1, "file_bytes": tensor.size, "bytes": held}
        found.setdefault(tensor.kind, Counter()).update(row)
    ordered = sorted(found.items(), key=lambda item: -item[1]["tensors"])
    return [{"type": kind, **row} for kind, row in ordered]


class Packed(nn.Module):
    """What both layers share. `weight` holds the codes, `scales` and `d` what they are multiplied by."""

    def dense(self, codes: mx.array, rows: Any = slice(None)) -> mx.array:
        """The weights (…, in) of some rows in float32, from their codes."""
        part = {name: self[name][rows] for name in ("scales", "d", "mins", "dmin") if name in self}
        width = 16 * part["scales"].shape[-1]
        ones = mx.ones((*codes.shape[:-1], width // CHUNK))
        whole = mx.dequantize(codes, ones, -OFFSETS[self.bits] * ones, group_size=CHUNK, bits=self.bits)
        whole = whole.reshape(*codes.shape[:-1], -1, 16) * fine(part["scales"], part["d"])
        if "mins" in part:
            whole = whole - fine(part["mins"], part["dmin"])
        return whole.reshape(*codes.shape[:-1], width)

    def unpacked_layer(self) -> nn.Module:
        embedding = isinstance(self, nn.QuantizedEmbedding)
        layer = nn.Embedding(1, 1) if embedding else nn.Linear(1, 1, bias="bias" in self)
        layer.update({"weight": self.dense(self.weight)} | ({"bias": self.bias} if "bias" in self else {}))
        return layer

    def product(self, x: mx.array) -> mx.array:
        """x Wᵀ without unpacking: two products with the same codes in groups of 32, each with the scales of one half of
        every group, and with zeros in x where the other half is."""
        scales = fine(self.scales, self.d)
        biases = -fine(self.mins, self.dmin) if "mins" in self else -OFFSETS[self.bits] * scales
        half, total = mx.arange(x.shape[-1]) // 16 % 2, 0
        for side in (0, 1):
            own = (scales[:, side::2, 0], biases[:, side::2, 0])
            part = mx.where(half == side, x, 0)
            total = total + mx.quantized_matmul(part, self.weight, *own, group_size=32, bits=self.bits)
        return total


def fine(scales: mx.array, d: mx.array) -> mx.array:
    """What each group of 16 is scaled by, (…, groups, 1): its own scale times that of its block of 256."""
    product = scales.reshape(*d.shape, 16).astype(mx.float32) * d.astype(mx.float32)[..., None]
    return product.reshape(*scales.shape, 1)


class PackedLinear(Packed, FastQuantizedLinear):
    """A linear layer that carries adapters as a QuantizedLinear does."""


class PackedEmbedding(Packed, FastQuantizedEmbedding):
    """An embedding, and a tied head."""

    def __call__(self, x: mx.array) -> mx.array:
        return self.dense(self.weight[x], x)
