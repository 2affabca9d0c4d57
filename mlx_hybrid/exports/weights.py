"""The weights of a model folder, one tensor at a time, so that no model need fit in memory."""

import shutil
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
from mlx_lm.utils import make_shards

from mlx_hybrid.errors import ConfigError
from mlx_hybrid.files import read_header, read_json, write_json
from mlx_hybrid.models.base import read_tokenizer
from mlx_hybrid.models.gguf.config import config_of, is_shifted, mlx_name
from mlx_hybrid.models.gguf.file import open_gguf
from mlx_hybrid.models.gguf.load import read_dense
from mlx_hybrid.models.gguf.tokenizer import write_tokenizer
from mlx_hybrid.models.templates import named_ends, unnamed_end

SHARD_GB = 2
GENERATION = "generation_config.json"  # transformers, vLLM and mlx-lm read ends from it before config.json
COMPANIONS = (  # what a model folder holds beside config and weights, and a copy of it should too
    *("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt", "*.tiktoken"),
    *("*.jinja", GENERATION, "LICENSE*", "NOTICE*"),
)
Stored = Callable[[str], dict[str, mx.array]]  # what is written for a tensor: itself, or its packed parts


class ModelWeights:
    """Tensors of a model folder by name, read when asked for; a packed layer is one tensor, `X.weight`.
    `files` holds every stored tensor, `shapes` those of a dense model. `stack` is a tensor of three or more dimensions
    in MLX's own layout, if there is one: a file says by its `format` who wrote it, mlx-lm `mlx`, transformers `pt`."""

    def __init__(self, folder: Path):
        self.folder, self.config = folder, read_json(folder / "config.json")
        self.files: dict[str, Path] = {}
        stored, stacks = {}, []
        for path in sorted(folder.glob("model*.safetensors")):
            metadata, shapes = read_header(path)
            self.files |= dict.fromkeys(shapes, path)
            stored |= shapes
            if metadata.get("format") != "pt":
                stacks += [name for name, shape in shapes.items() if len(shape) > 2]
        self.stack = stacks[0] if stacks else None
        self.packed = any(name.endswith(".scales") for name in stored)
        self.shapes = {}
        for name in (name for name in stored if not name.endswith((".scales", ".biases"))):
            shape, bits = stored[name], self.packing(name).get("bits")
            self.shapes[name] = (*shape[:-1], shape[-1] * 32 // bits) if bits else shape

    def packing(self, name: str) -> dict:
        """group_size, bits and mode of a tensor that MLX packed; nothing for another."""
        module = name.removesuffix(".weight")
        if f"{module}.scales" not in self.files:
            return {}
        stored = self.config.get("quantization") or self.config.get("quantization_config") or {}
        own = stored.get(module)
        chosen = {"mode": "affine", **stored, **(own if isinstance(own, dict) else {})}
        if "bits" not in chosen:
            raise ConfigError(f"{self.folder}/config.json: does not say how {module} is quantised.")
        return {key: chosen[key] for key in ("group_size", "bits", "mode") if key in chosen}

    def read(self, name: str) -> mx.array:
        """One stored tensor as it is."""
        if name not in self.files:
            raise ConfigError(f"{self.folder}: holds no tensor {name}.")
        return self.load(name)

    def load(self, name: str) -> mx.array:
        return mx.load(str(self.files[name]))[name]

    def parts(self, name: str) -> dict[str, mx.array]:
        """One tensor as it is stored, with its scales and biases where it is packed."""
        module = name.removesuffix(".weight")
        packed = [own for own in (f"{module}.scales", f"{module}.biases") if own in self.files]
        return {own: self.read(own) for own in (name, *packed)}

    def unpacked(self, name: str) -> mx.array:
        """One tensor as it is stored, or dequantised in float32, whatever the scales are."""
        value, *packed = self.parts(name).values()
        if not packed:
            return value
        packed = [p.astype(mx.float32) if mx.issubdtype(p.dtype, mx.floating) else p for p in packed]
        return mx.dequantize(value, *packed, **self.packing(name)).astype(mx.float32)

    def dense(self, name: str, dtype: mx.Dtype = mx.float32) -> mx.array:
        """One tensor, dequantised where it is packed, in `dtype`."""
        return self.unpacked(name).astype(dtype)

    def from_model(self, name: str, value: mx.array, one: int = 1) -> mx.array:
        """A tensor of the loaded model as the base's layout has it; the way back where `one` is −1."""
        return value


class GgufWeights(ModelWeights):
    """Tensors of a GGUF file under Hugging Face's names and in its layout, unpacked to float32."""

    packed, stack = True, None

    def __init__(self, path: Path):
        self.folder, self.file, self.config = path, open_gguf(path), config_of(path)
        named = {mlx_name(self.file.architecture, name): t for name, t in self.file.tensors.items()}
        self.tensors = {name: tensor for name, tensor in named.items() if name}
        self.files = dict.fromkeys(self.tensors, path)
        self.shapes = {name: tensor.shape for name, tensor in self.tensors.items()}

    def load(self, name: str) -> mx.array:
        return read_dense(self.file, self.tensors[name])

    def from_model(self, name: str, value: mx.array, one: int = 1) -> mx.array:
        """The norms of Gemma, which the model holds as the file does, less 1."""
        return value - one if is_shifted(self.file.architecture, self.tensors[name].name) else value


def weights_of(place: Path) -> ModelWeights:
    """The tensors of a model folder or a GGUF file."""
    return GgufWeights(place) if place.is_file() else ModelWeights(place)


def write_shards(folder: Path, shapes: dict[str, tuple], stored: Stored, form: str) -> None:
    """Write what is `stored` for each name of `shapes`, as files of about 2 GiB of bf16, one in memory at a time, with
    an index. `form` is who reads it: `pt` is Hugging Face's layout, `mlx` that of MLX alone."""
    shards = make_shards({name: mx.zeros(shape, mx.bfloat16) for name, shape in shapes.items()}, SHARD_GB)
    total, places = 0, {}
    for index, names in enumerate(shards, 1):
        tensors: dict[str, mx.array] = {}
        for name in names:
            tensors |= stored(name)
            mx.eval(tensors)
        part = f"-{index:05d}-of-{len(shards):05d}" if len(shards) > 1 else ""
        mx.save_safetensors(str(folder / f"model{part}.safetensors"), tensors, metadata={"format": form})
        total += sum(value.nbytes for value in tensors.values())
        places |= dict.fromkeys(tensors, f"model{part}.safetensors")
        mx.clear_cache()
    if len(shards) > 1:
        tree = {"metadata": {"total_size": total}, "weight_map": dict(sorted(places.items()))}
        write_json(folder / "model.safetensors.index.json", tree)


def write_dense(weights: ModelWeights, folder: Path, dtype: mx.Dtype = mx.bfloat16) -> None:
    """The model as an ordinary Hugging Face folder, unpacked."""
    write_model(weights, folder, lambda name: {name: weights.dense(name, dtype)}, dtype)


def write_model(
    weights: ModelWeights, folder: Path, stored: Stored, dtype: mx.Dtype | None, *, for_mlx: bool = False
) -> None:
    """The model with these tensors, in `dtype` or, without one, packed as it was, and what lies beside: tokenizer,
    settings, licences. Raises ConfigError for what no Hugging Face model can be, unless it is `for_mlx`."""
    if weights.stack and not for_mlx:
        told = f"{weights.stack} is stored as MLX lays it out (stacked experts, or a convolution)"
        way_out = "name the original model with --base-id, or make a model for MLX with fuse"
        raise ConfigError(f"{weights.folder}: {told}; {way_out}.")
    method = (weights.config.get("quantization_config") or {}).get("quant_method")
    if method and not for_mlx:
        told = f"is packed by {method}, which is not unpacked here; name the 16-bit model with --base-id."
        raise ConfigError(f"{weights.folder}: {told}")
    write_shards(folder, weights.shapes, stored, "mlx" if for_mlx else "pt")
    tree = weights.config
    if dtype:
        name = str(dtype).removeprefix("mlx.core.")
        tree = {key: value for key, value in tree.items() if not key.startswith("quantization")}
        tree |= {key: name for key in ("torch_dtype", "dtype") if key in tree} or {"dtype": name}
    write_json(folder / "config.json", tree)
    if weights.folder.is_file():
        write_tokenizer(open_gguf(weights.folder), folder)
    for path in (path for pattern in COMPANIONS for path in weights.folder.glob(pattern)):
        if path.is_file() and not (folder / path.name).exists():
            shutil.copyfile(path, folder / path.name)
    name_end(folder)


def name_end(folder: Path) -> None:
    """Have the generation settings of a model name the token that ends answers, if nothing did."""
    if end := end_of_answers(folder):
        path, config = folder / GENERATION, read_json(folder / "config.json")
        known = {key: config[key] for key in ("bos_token_id", "pad_token_id") if key in config}
        write_json(path, (read_json(path) if path.is_file() else known) | {"eos_token_id": end[1]})


def end_of_answers(folder: Path) -> tuple[str, list[int]] | None:
    """The token that ends answers in `folder` where its settings do not name it, and the ids of all that end them."""
    try:
        tokenizer = read_tokenizer(str(folder), folder)
    except ConfigError:
        return None
    text = unnamed_end(tokenizer, folder)
    return (text, [*named_ends(tokenizer, folder), tokenizer.convert_tokens_to_ids(text)]) if text else None
