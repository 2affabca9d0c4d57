"""What a model and its adapter weigh, from config.json and the headers of the weight files alone: the model is built of
lazy arrays, and of one on the Hub, of which no more is fetched, a sparse file stands in for the weights."""

import json
import shutil
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
from huggingface_hub import HfApi, try_to_load_from_cache
from huggingface_hub.errors import HTTPError, NotASafetensorsRepoError
from mlx.utils import tree_flatten

from mlx_hybrid.adapters.attach import attach, hybrid_layers, trainable_count
from mlx_hybrid.adapters.frozen import linear_shape, on_cpu, unpacked_bytes, use_fast_products
from mlx_hybrid.config import Config
from mlx_hybrid.errors import ConfigError
from mlx_hybrid.files import HUB_ID, first_line, hub_endpoint
from mlx_hybrid.models.base import find_model, load_weights
from mlx_hybrid.models.head import find_parts


class UnknownShapeError(ConfigError):
    """A config.json that does not name the sizes an estimate needs."""


@dataclass(frozen=True)
class ModelShape:
    """Bytes of the weights, and the sizes that activations follow from."""

    base_bytes: int
    unpacked_bytes: int  # of packed weights that are there unpacked too, on a CPU with room for them
    adapter_bytes: int
    trainable_bytes: int
    moment_bytes: int  # of one moment of every trainable entry: float32, whatever the entry is
    layers: int
    width: int
    heads: int
    vocabulary: int
    mlp_outputs: int  # of all products of one layer outside its attention
    widest: int  # in + out features of all adapted products of the model
    outputs: int  # out features of them
    activation_bytes: int  # of one activation
    packed_head: bool  # whether the head is packed, on the CPU
    head_gradient_bytes: int  # of the head's leaves, summed in float32; 0 where it is frozen
    chunks_logits: bool  # whether logits are formed some targets at a time, or those of every token at once

    @property
    def unpacks_head(self) -> bool:
        """Whether a packed head is dequantised whole for each product."""
        return self.packed_head and not self.unpacked_bytes


def model_shape(config: Config) -> ModelShape:
    """The shape of a run's model with its adapter. Raises ConfigError for a model that cannot be had or built."""
    name = config.model.name
    with tempfile.TemporaryDirectory() as place:
        return shape_of(local_folder(name) or stand_in(name, Path(place)), config)


def local_folder(model: str) -> Path | None:
    """The folder of a model whose weights are on this machine; None for one that the Hub alone may have."""
    here = Path(model).expanduser().exists() or not HUB_ID.fullmatch(model)
    return find_model(model) if here else cached_folder(model)


def cached_folder(repo: str) -> Path | None:
    """The folder of a Hub model whose weights are on this machine already."""
    found = try_to_load_from_cache(repo, "config.json")
    folder = Path(found).parent if isinstance(found, str) else None
    return folder if folder and list(folder.glob("model*.safetensors")) else None


def stand_in(repo: str, folder: Path) -> Path:
    """A model folder with a Hub model's config and, for its weights, a file of holes under their true header."""
    api = HfApi(endpoint=hub_endpoint())
    try:
        shutil.copy(api.hf_hub_download(repo, "config.json"), folder / "config.json")
        files = api.get_safetensors_metadata(repo).files_metadata
    except (HTTPError, NotASafetensorsRepoError, ValueError, OSError) as error:
        told = f"{repo}: its config and headers cannot be had from the Hub: {first_line(error)}."
        raise ConfigError(told) from None
    tensors = [tensor for file in files.values() for tensor in file.tensors.items()]
    sizes = [(name, t.dtype, t.shape, t.data_offsets[1] - t.data_offsets[0]) for name, t in tensors]
    write_holes(folder / "model.safetensors", sizes)
    return folder


def write_holes(path: Path, tensors: Iterable[tuple]) -> None:
    """A safetensors file of holes, which take no room on the disk, for tensors of (name, dtype, shape, bytes)."""
    header, end = {}, 0
    for name, dtype, shape, size in tensors:
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)


def shape_of(folder: Path, config: Config) -> ModelShape:
    """Sizes of the lazily loaded model in `folder`, before and after its adapter."""
    model, settings = load_weights(folder, config.model.name, lazy=True)
    settings = settings | settings.get("text_config", {})
    base = byte_count(use_fast_products(model).parameters())
    dtypes = [value.dtype for _, value in tree_flatten(model.parameters())]
    mlp = [layer_outputs(layer, settings) for layer in model.layers]
    attach(model, config.adapter, seed=config.seed)
    parts = find_parts(model)
    head = parts[1] if parts else None
    adapted = [linear_shape(layer.linear) for layer in hybrid_layers(model).values()]
    return ModelShape(
        base_bytes=base,
        unpacked_bytes=unpacked_bytes(model),
        adapter_bytes=byte_count(model.parameters()) - base,
        trainable_bytes=byte_count(model.trainable_parameters()),
        moment_bytes=4 * trainable_count(model),
        layers=len(model.layers),
        width=first_known(settings, ("hidden_size", "n_embd", "d_model", "dim")),
        heads=first_known(settings, ("num_attention_heads", "n_head", "n_heads")),
        vocabulary=first_known(settings, ("vocab_size",)),
        mlp_outputs=sum(mlp) // max(1, len(mlp)),
        widest=sum(sum(shape) for shape in adapted),
        outputs=sum(d_out for _, d_out in adapted),
        activation_bytes=4 if on_cpu() else min(d.size for d in dtypes if mx.issubdtype(d, mx.floating)),
        packed_head=on_cpu() and head is not None and head.packed(),
        head_gradient_bytes=4 * sum(leaf.size for leaf in head.leaves().values()) if head else 0,
        chunks_logits=head is not None,
    )


def byte_count(tree: Any) -> int:
    return sum(value.nbytes for _, value in tree_flatten(tree))


def layer_outputs(layer: Any, settings: dict) -> int:
    """Output features of one transformer layer's products outside its attention; of experts, those that run."""
    modules = [m for name, m in layer.named_modules() if "attn" not in name and "attention" not in name]
    weights = [module.weight for module in modules if "weight" in module and module.weight.ndim > 1]
    named = ("num_experts_per_tok", "num_experts_per_token", "moe_topk", "top_k_experts")
    routed = first_known(settings, named, 1)
    return sum(weight.shape[-2] * (routed if weight.ndim == 3 else 1) for weight in weights)


def first_known(settings: dict, names: tuple[str, ...], default: int | None = None) -> int:
    found = next((int(settings[name]) for name in names if settings.get(name)), default)
    if found is None:
        told = f"none of {', '.join(names)} is there, so memory cannot be estimated"
        raise UnknownShapeError(f"config.json: {told}.")
    return found
