"""The weights of a model folder, one tensor at a time, so that no model need fit in memory."""

import math
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import mlx.core as mx
from mlx_lm.utils import make_shards

from mlx_hybrid.errors import ConfigError
from mlx_hybrid.files import read_header, read_json, write_json
from mlx_hybrid.models.answer_end import named_ends, unnamed_end
from mlx_hybrid.models.base import read_tokenizer
from mlx_hybrid.models.gguf.config import config_of
from mlx_hybrid.models.gguf.file import open_gguf
from mlx_hybrid.models.gguf.load import read_dense
from mlx_hybrid.models.gguf.names import is_shifted, mlx_name
from mlx_hybrid.models.gguf.tokenizer import write_tokenizer

SHARD_GB = 2
GENERATION = "generation_config.json"
"""transformers, vLLM and mlx-lm read ends from it before config.json."""
PACKED_PARTS = ("scales", "biases")
COMPANIONS = (
    *("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt", "*.tiktoken"),
    *("*.jinja", GENERATION, "LICENSE*", "NOTICE*"),
)
"""What a model folder holds beside config and weights, and a copy of it should too."""


class ModelWeights:
    """Tensors of a model folder by name, read when asked for; a packed layer is one tensor, `X.weight`."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.config = read_json(folder / "config.json")
        self.files: dict[str, Path] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.for_mlx: dict[str, Path] = {}
        for path in sorted(folder.glob("model*.safetensors")):
            header = read_header(path)
            own = dict.fromkeys(header.shapes, path)
            self.files |= own
            self.shapes |= header.shapes
            self.for_mlx |= own if header.metadata.get("format") != "pt" else {}

    @property
    def packed(self) -> bool:
        """Whether any layer is quantised as MLX packs it."""
        return any(name.endswith(".scales") for name in self.files)

    def names(self) -> list[str]:
        """Tensors as a dense model has them, in file order."""
        packed = {name.removesuffix("scales") for name in self.files if name.endswith(".scales")}
        parts = {f"{module}{part}" for module in packed for part in PACKED_PARTS}
        return [name for name in self.files if name not in parts]

    def read(self, name: str) -> mx.array:
        """One stored tensor as it is."""
        if name not in self.files:
            raise ConfigError(f"{self.folder}: holds no tensor {name}.")
        return mx.load(str(self.files[name]))[name]

    def parts(self, name: str) -> dict[str, mx.array]:
        """One tensor as it is stored, with its scales and biases where it is packed."""
        module = name.removesuffix(".weight")
        packed = name.endswith(".weight") and f"{module}.scales" in self.files
        names = [name, *(f"{module}.{part}" for part in PACKED_PARTS if packed)]
        return {own: self.read(own) for own in names if own in self.files}

    def dense(self, name: str, dtype: mx.Dtype) -> mx.array:
        """One tensor, dequantised where it is packed, in `dtype`."""
        return self.unpacked(name).astype(dtype)

    def unpacked(self, name: str) -> mx.array:
        """One tensor as it is stored, or dequantised in float32, whatever the scales are."""
        value, *packed = self.parts(name).values()
        if not packed:
            return value
        packed = [p.astype(mx.float32) if mx.issubdtype(p.dtype, mx.floating) else p for p in packed]
        packing = self.packing(name.removesuffix(".weight"))
        return mx.dequantize(value, *packed, **packing).astype(mx.float32)

    def from_model(self, name: str, value: mx.array) -> mx.array:
        """A tensor of the loaded model as the base's layout has it."""
        return value

    def dense_shape(self, name: str) -> tuple[int, ...]:
        """The shape of `dense(name)`."""
        shape = self.shapes[name]
        module = name.removesuffix(".weight")
        if f"{module}.scales" not in self.files:
            return shape
        return (*shape[:-1], shape[-1] * 32 // self.packing(module)["bits"])

    def stack(self) -> str | None:
        """A tensor of three or more dimensions in MLX's own layout, if there is one: stacked experts, a convolution.

        A file says by its `format` who wrote it: mlx-lm says `mlx`, transformers `pt`.
        """
        return next((name for name in self.for_mlx if len(self.shapes[name]) > 2), None)

    def packing(self, module: str) -> dict:
        """group_size, bits and mode of a packed module."""
        stored = self.config.get("quantization") or self.config.get("quantization_config") or {}
        own = stored.get(module)
        chosen = {**stored, **own} if isinstance(own, dict) else stored
        if "bits" not in chosen:
            raise ConfigError(f"{self.folder}/config.json: does not say how {module} is quantised.")
        return {"mode": "affine"} | {k: chosen[k] for k in ("group_size", "bits", "mode") if k in chosen}

    def dense_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes by the names of a dense model."""
        return {name: self.dense_shape(name) for name in self.names()}


class GgufWeights(ModelWeights):
    """Tensors of a GGUF file under Hugging Face's names and in its layout, unpacked to float32."""

    packed = True

    def __init__(self, path: Path):
        self.folder, self.file = path, open_gguf(path)
        self.config, self.for_mlx = config_of(path), {}
        named = {mlx_name(self.file.architecture, name): t for name, t in self.file.tensors.items()}
        self.tensors = {name: tensor for name, tensor in named.items() if name}
        self.files = dict.fromkeys(self.tensors, path)
        self.shapes = {name: tensor.shape for name, tensor in self.tensors.items()}

    def read(self, name: str) -> mx.array:
        if name not in self.tensors:
            raise ConfigError(f"{self.folder}: holds no tensor {name}.")
        return read_dense(self.file, self.tensors[name])

    def from_model(self, name: str, value: mx.array) -> mx.array:
        """The norms of Gemma, which the model holds as the file does, less 1."""
        shifted = is_shifted(self.file.architecture, self.tensors[name].name)
        return value - 1 if shifted else value


def weights_of(place: Path) -> ModelWeights:
    """The tensors of a model folder or a GGUF file."""
    return GgufWeights(place) if place.is_file() else ModelWeights(place)


def write_shards(
    folder: Path, shapes: dict[str, tuple], tensors: Callable[[str], dict[str, mx.array]], form: str
) -> None:
    """Write what `tensors` gives for each name of `shapes`, as files of about 2 GiB of bf16 with an index.

    One file is in memory at a time. `form` is who reads it: `pt` is Hugging Face's layout, `mlx` that of MLX alone.
    """
    sizes = {name: SimpleNamespace(nbytes=2 * math.prod(shape)) for name, shape in shapes.items()}
    shards = make_shards(sizes, SHARD_GB)
    total, places = 0, {}
    for index, names in enumerate(shards, 1):
        stored: dict[str, mx.array] = {}
        for name in names:
            made = tensors(name)
            mx.eval(list(made.values()))
            stored |= made
        part = f"-{index:05d}-of-{len(shards):05d}" if len(shards) > 1 else ""
        file = f"model{part}.safetensors"
        mx.save_safetensors(str(folder / file), stored, metadata={"format": form})
        total += sum(value.nbytes for value in stored.values())
        places |= dict.fromkeys(stored, file)
        mx.clear_cache()
    if len(shards) > 1:
        tree = {"metadata": {"total_size": total}, "weight_map": dict(sorted(places.items()))}
        write_json(folder / "model.safetensors.index.json", tree)


def write_dense(weights: ModelWeights, folder: Path, dtype: mx.Dtype = mx.bfloat16) -> None:
    """The model as an ordinary Hugging Face folder, unpacked. Raises ConfigError as `refuse_layout` does."""
    refuse_layout(weights)
    write_shards(folder, weights.dense_shapes(), lambda name: {name: weights.dense(name, dtype)}, "pt")
    write_dense_config(weights.config, folder, dtype)
    copy_companions(weights.folder, folder)


def refuse_layout(weights: ModelWeights) -> None:
    """Raise ConfigError for weights that cannot be written as a Hugging Face model by unpacking them."""
    if stack := weights.stack():
        raise ConfigError(
            f"{weights.folder}: {stack} is stored as MLX lays it out (stacked experts, or a convolution), which cannot "
            "be written as a Hugging Face model yet; name the original model with --base-id, or make a model for MLX "
            "with fuse."
        )
    if method := (weights.config.get("quantization_config") or {}).get("quant_method"):
        raise ConfigError(
            f"{weights.folder}: is packed by {method}, which is not unpacked here; name the 16-bit model with "
            "--base-id."
        )


def write_dense_config(config: dict, folder: Path, dtype: mx.Dtype = mx.bfloat16) -> None:
    """config.json of an unpacked copy: no quantisation, and the dtype that is stored."""
    name = str(dtype).removeprefix("mlx.core.")
    tree = {k: v for k, v in config.items() if k not in ("quantization", "quantization_config")}
    tree |= {key: name for key in ("torch_dtype", "dtype") if key in config} or {"dtype": name}
    write_json(folder / "config.json", tree)


def copy_companions(source: Path, target: Path) -> None:
    """Tokenizer, generation settings and licences."""
    if source.is_file():
        write_tokenizer(open_gguf(source), target)
    for pattern in COMPANIONS:
        for path in source.glob(pattern):
            if path.is_file() and not (target / path.name).exists():
                shutil.copyfile(path, target / path.name)
    name_end(target)


def name_end(folder: Path) -> None:
    """Have the generation settings of a model name the token that ends answers, if nothing did."""
    if end := end_of_answers(folder):
        path, config = folder / GENERATION, read_json(folder / "config.json")
        known = {key: config[key] for key in ("bos_token_id", "pad_token_id") if key in config}
        write_json(path, (read_json(path) if path.is_file() else known) | {"eos_token_id": end[1]})


def end_of_answers(folder: Path) -> tuple[str, list[int]] | None:
    """The token that ends answers in `folder` where its settings do not name it, and the ids of all that end them."""
    try:
        tokenizer = read_tokenizer(folder, str(folder))
    except ConfigError:
        return None
    if not (text := unnamed_end(tokenizer, folder)):
        return None
    return text, [*named_ends(tokenizer, folder), tokenizer.convert_tokens_to_ids(text)]
