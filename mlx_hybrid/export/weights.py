"""The weights of a model folder, one tensor at a time, so that no model need fit in memory."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import mlx.core as mx

from mlx_hybrid.errors import ConfigError
from mlx_hybrid.export.ends import end_of_answers, name_end
from mlx_hybrid.files import read_json, write_json

SHARD_BYTES = 2 << 30
PACKED_PARTS = ("scales", "biases")
COMPANIONS = (
    "tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt", "*.tiktoken",
    "*.jinja", "generation_config.json", "LICENSE*", "NOTICE*",
)  # fmt: skip
"""What a model folder holds beside config and weights, and a copy of it should too."""


class ModelWeights:
    """Tensors of a model folder by name, read when asked for; a packed layer is one tensor, `X.weight`.

    Raises ConfigError for a name that is not there.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.config = read_json(folder / "config.json")
        self.files: dict[str, Path] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        for path in sorted(folder.glob("model*.safetensors")):
            for name, entry in tensor_headers(path).items():
                self.files[name], self.shapes[name] = path, tuple(entry["shape"])

    @property
    def packed(self) -> bool:
        """Whether any layer is quantised as MLX packs it."""
        return any(name.endswith(".scales") for name in self.files)

    def names(self) -> list[str]:
        """Tensors as a dense model has them, in file order."""
        return [name for name in self.files if not self._is_part(name)]

    def read(self, name: str) -> mx.array:
        """One stored tensor as it is."""
        if name not in self.files:
            raise ConfigError(f"{self.folder}: holds no tensor {name}.")
        return mx.load(str(self.files[name]))[name]

    def dense(self, name: str, dtype: mx.Dtype) -> mx.array:
        """One tensor, dequantised where it is packed, in `dtype`."""
        return self.unpacked(name).astype(dtype)

    def unpacked(self, name: str) -> mx.array:
        """One tensor as it is stored, or dequantised to float32. The arithmetic is float32, whatever the scales are."""
        value = self.read(name)
        module = name.removesuffix(".weight")
        if f"{module}.scales" not in self.files or not name.endswith(".weight"):
            return value
        scales, biases = self.read(f"{module}.scales"), None
        if f"{module}.biases" in self.files:
            biases = self.read(f"{module}.biases").astype(mx.float32)
        if mx.issubdtype(scales.dtype, mx.floating):
            scales = scales.astype(mx.float32)
        return mx.dequantize(value, scales, biases, **self.packing(module)).astype(mx.float32)

    def dense_shape(self, name: str) -> tuple[int, ...]:
        """The shape of `dense(name)`."""
        shape = self.shapes[name]
        module = name.removesuffix(".weight")
        if f"{module}.scales" not in self.files:
            return shape
        return (*shape[:-1], shape[-1] * 32 // self.packing(module)["bits"])

    def packing(self, module: str) -> dict:
        """group_size, bits and mode of a packed module."""
        stored = self.config.get("quantization") or self.config.get("quantization_config") or {}
        own = stored.get(module)
        chosen = {**stored, **own} if isinstance(own, dict) else stored
        if "bits" not in chosen:
            raise ConfigError(f"{self.folder}/config.json: does not say how {module} is quantised.")
        return {
            "group_size": chosen["group_size"],
            "bits": chosen["bits"],
            "mode": chosen.get("mode", "affine"),
        }

    def parameter_count(self) -> int:
        total = 0
        for name in self.names():
            size = 1
            for length in self.dense_shape(name):
                size *= length
            total += size
        return total

    def _is_part(self, name: str) -> bool:
        module, _, part = name.rpartition(".")
        return part in PACKED_PARTS and f"{module}.scales" in self.files


def tensor_headers(path: Path) -> dict[str, dict]:
    """Name → dtype, shape and place of the tensors in a safetensors file. Raises ConfigError for a broken one."""
    try:
        with path.open("rb") as file:
            tree = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    except (OSError, ValueError, MemoryError) as error:
        raise ConfigError(f"{path}: not a safetensors file, or cut off ({error}).") from None
    tree.pop("__metadata__", None)
    return tree


class ShardWriter:
    """Writes tensors into numbered safetensors files of about 2 GiB with an index, as transformers reads them."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.pending: dict[str, mx.array] = {}
        self.bytes = self.total = 0
        self.shards: list[list[str]] = []

    def add(self, name: str, value: mx.array) -> None:
        if self.pending and self.bytes + value.nbytes > SHARD_BYTES:
            self._flush()
        self.pending[name] = value
        self.bytes += value.nbytes

    def close(self) -> None:
        """Write what is left, name the files by their number, and write the index."""
        self._flush()
        count, weight_map = len(self.shards), {}
        for index, names in enumerate(self.shards):
            final = "model.safetensors" if count == 1 else f"model-{index + 1:05d}-of-{count:05d}.safetensors"
            self._part(index).rename(self.folder / final)
            weight_map |= dict.fromkeys(names, final)
        if count > 1:
            tree = {"metadata": {"total_size": self.total}, "weight_map": dict(sorted(weight_map.items()))}
            write_json(self.folder / "model.safetensors.index.json", tree)

    def _part(self, index: int) -> Path:
        return self.folder / f"part-{index}.safetensors"

    def _flush(self) -> None:
        if self.pending:
            mx.save_safetensors(str(self._part(len(self.shards))), self.pending, metadata={"format": "pt"})
            self.shards.append(list(self.pending))
            self.total += self.bytes
            self.pending, self.bytes = {}, 0
            mx.clear_cache()


def write_dense(weights: ModelWeights, folder: Path, dtype: mx.Dtype = mx.bfloat16) -> None:
    """The model as an ordinary Hugging Face folder, unpacked. Raises ConfigError for stacked experts."""
    refuse_experts(weights)
    writer = ShardWriter(folder)
    for name, value in dense_tensors(weights, dtype):
        writer.add(name, value)
    writer.close()
    write_dense_config(weights.config, folder, dtype)
    copy_companions(weights.folder, folder)


def dense_tensors(weights: ModelWeights, dtype: mx.Dtype) -> Iterator[tuple[str, mx.array]]:
    for name in weights.names():
        yield name, weights.dense(name, dtype)


def refuse_experts(weights: ModelWeights) -> None:
    """MLX stacks the experts of a layer into one tensor; transformers does not read them so."""
    if stacked := stacked_experts(weights):
        raise ConfigError(
            f"{weights.folder}: {stacked} holds stacked experts, which cannot be written as a Hugging Face model "
            "yet; name the original model with --base-id, or make a model for MLX with fuse."
        )


def stacked_experts(weights: ModelWeights) -> str | None:
    """A tensor of stacked experts, if there is one."""
    return next((name for name in weights.names() if "switch_mlp" in name), None)


def write_dense_config(config: dict, folder: Path, dtype: mx.Dtype = mx.bfloat16) -> None:
    """config.json of an unpacked copy: no quantisation, and the dtype that is stored."""
    name = str(dtype).removeprefix("mlx.core.")
    tree = {k: v for k, v in config.items() if k not in ("quantization", "quantization_config")}
    tree |= {key: name for key in ("torch_dtype", "dtype") if key in config} or {"dtype": name}
    write_json(folder / "config.json", tree)


def copy_companions(source: Path, target: Path) -> None:
    """Tokenizer, generation settings and licences; the settings name the token that ends answers, if none did."""
    for pattern in COMPANIONS:
        for path in source.glob(pattern):
            if path.is_file() and not (target / path.name).exists():
                shutil.copyfile(path, target / path.name)
    if end := end_of_answers(source):
        name_end(target, end)
