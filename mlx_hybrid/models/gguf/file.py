"""GGUF files: their metadata, and where each tensor lies; and where ollama keeps them."""

import hashlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFReader, GGUFValueType

from mlx_hybrid.errors import ConfigError
from mlx_hybrid.files import HUB_ID, read_json
from mlx_hybrid.models.gguf.blocks import plain

OLLAMA = "ollama:"
PIECE = 1 << 24  # bytes of a tensor that are read at once
SPLIT = re.compile(r"-(\d{5})-of-(\d{5})\.gguf$")
SOURCES = ("general.source.huggingface.repository", "general.source.repo_url", "general.repo_url")


@dataclass(frozen=True)
class Tensor:
    """A tensor (…, in) of GGML's type `kind`, stored row by row in `path` from the byte `start` on."""

    name: str
    kind: str
    shape: tuple[int, ...]
    path: Path
    start: int
    size: int

    @property
    def row(self) -> int:
        return self.size * self.shape[-1] // prod(self.shape)


@dataclass
class GgufFile:
    """An open GGUF model: what it says of itself, and its tensors by name, of all parts of a split file."""

    path: Path
    metadata: dict[str, Any]
    tensors: dict[str, Tensor]
    digests: dict[str, str] = field(default_factory=dict)  # sha256 of the tensors that have been read

    @property
    def architecture(self) -> str:
        return str(self.metadata.get("general.architecture", ""))

    @property
    def original(self) -> str | None:
        """The Hub id of the model that was packed, where the file names it."""
        named = [str(self.metadata.get(key, "")).removeprefix("https://huggingface.co/") for key in SOURCES]
        return next((name for name in named if HUB_ID.fullmatch(name)), None)

    def about(self, key: str, default: Any = None) -> Any:
        """A setting of the architecture, as `attention.head_count`."""
        return self.metadata.get(f"{self.architecture}.{key}", default)

    @property
    def heads(self) -> dict[str, int]:
        heads = self.about("attention.head_count")
        return {"q": heads, "k": self.about("attention.head_count_kv", heads)}

    def tokenizer(self, key: str, default: Any = None) -> Any:
        return self.metadata.get(f"tokenizer.ggml.{key}", default)

    def blocks(self, tensor: Tensor) -> Iterator[np.ndarray]:
        """The rows of a tensor as they are stored, (rows, bytes) of uint8, some at a time."""
        digest, step = hashlib.sha256(), max(1, PIECE // tensor.row) * tensor.row
        for start in range(0, tensor.size, step):
            count = min(step, tensor.size - start)
            piece = np.fromfile(tensor.path, np.uint8, count, offset=tensor.start + start)
            digest.update(piece)
            yield piece.reshape(-1, tensor.row)
        self.digests[tensor.name] = digest.hexdigest()

    def numbers(self, name: str) -> list[float]:
        tensor = self.tensors[name]
        return [x for rows in self.blocks(tensor) for x in plain(tensor.kind, rows).ravel().tolist()]

    def fingerprint(self) -> str:
        """sha256 of every weight with its name, type and shape; what was read already is not read again."""
        whole = hashlib.sha256()
        for name, tensor in sorted(self.tensors.items()):
            if name not in self.digests:
                for _ in self.blocks(tensor):
                    pass
            whole.update(f"{name} {tensor.kind} {tensor.shape} {self.digests[name]}\n".encode())
        return whole.hexdigest()


class Reader(GGUFReader):
    """gguf's reader, but for arrays, of which it keeps a NumPy array an entry: 13 s for the tokens of Gemma 3."""

    def _get_field_parts(self, orig_offs: int, raw_type: int) -> tuple[int, list, list[int], list]:
        if raw_type != GGUFValueType.ARRAY:
            return super()._get_field_parts(orig_offs, raw_type)
        kind, count = self._get(orig_offs, np.uint32)[0], int(self._get(orig_offs + 4, np.uint64)[0])
        at, values, raw = orig_offs + 12, [], memoryview(self.data)
        if kind != GGUFValueType.STRING:
            values = self._get(at, dtype := self.gguf_scalar_to_np[kind], count).tolist()
            at += count * np.dtype(dtype).itemsize
        while kind == GGUFValueType.STRING and len(values) < count and at < len(raw):
            start = at + 8
            at = start + int.from_bytes(raw[at:start], "little")
            values.append(str(raw[start:at], "utf-8"))
        if len(values) < count or at > len(raw):
            raise ValueError("a list goes beyond its end")
        return at - orig_offs, [values], [0], [GGUFValueType.ARRAY]


def open_gguf(path: Path) -> GgufFile:
    """The GGUF file at `path`, all parts of a split one, of which the headers are read. Raises ConfigError."""
    path = first_part(path)
    if not path.is_file():
        raise ConfigError(f"{path}: no such file.")
    return _opened(path, path.stat().st_mtime_ns)


def first_part(path: Path) -> Path:
    return path.with_name(SPLIT.sub(r"-00001-of-\2.gguf", path.name))


@lru_cache(maxsize=2)
def _opened(path: Path, _: int) -> GgufFile:
    metadata, tensors = read_header(path)
    count = int((SPLIT.search(path.name) or (0, 0, 1))[2])
    for number in range(2, count + 1):
        part = path.with_name(SPLIT.sub(rf"-{number:05d}-of-\2.gguf", path.name))
        if not part.is_file():
            raise ConfigError(f"{part}: is missing; all {count} parts of a split file must lie side by side.")
        tensors |= read_header(part)[1]
    return GgufFile(path, metadata, tensors)


def read_header(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    with path.open("rb") as file:
        begin = file.read(8)
    if begin[:4] != b"GGUF":
        raise ConfigError(f"{path}: is no GGUF file; name one, or a folder with config.json and weights.")
    if begin[4:6] == b"\0\0":
        raise ConfigError(f"{path}: is a big-endian GGUF file, and only little-endian ones are read.")
    try:
        read = Reader(path)
    except (ValueError, LookupError, OverflowError, MemoryError) as error:
        if "GGMLQuantizationType" in str(error):
            kind = re.findall(r"\d+", str(error))[-1]
            raise ConfigError(f"{path}: holds a tensor of the unknown type {kind}.") from None
        if version := re.search(r"to be (version \d+)", str(error)):
            raise ConfigError(f"{path}: is GGUF in {version[1]}, and only 2 and 3 are read.") from None
        raise ConfigError(f"{path}: is cut off or damaged; fetch the file again.") from error
    fields = [(name, part.parts[-1], part) for name, part in read.fields.items()]
    metadata = {name: own if isinstance(own, list) else part.contents() for name, own, part in fields}
    places = [(t, (tuple(t.shape.tolist()[::-1]), path, t.data_offset, t.n_bytes)) for t in read.tensors]
    return metadata, {t.name: Tensor(t.name, t.tensor_type.name, *place) for t, place in places}


def is_gguf_name(name: str) -> bool:
    return name.startswith(OLLAMA) or name.lower().endswith(".gguf")


def only_gguf(folder: Path, name: str) -> Path | None:
    """The GGUF model in a folder that is no MLX one, as LM Studio keeps them. Raises ConfigError for several."""
    if (folder / "config.json").is_file():
        return None
    found = {first_part(path) for path in folder.glob("*.gguf") if "mmproj" not in path.name}
    if len(found) > 1:
        names = ", ".join(sorted(path.name for path in found))
        raise ConfigError(f"{name}: holds several GGUF files; name one of them: {names}.")
    return found.pop() if found else None


def ollama_file(name: str) -> Path:
    """The file that ollama keeps for `ollama:NAME`, by its manifest. Raises ConfigError where it has none."""
    root = Path(os.environ.get("OLLAMA_MODELS") or "~/.ollama/models").expanduser()
    model, tag = re.fullmatch(r"(.*?)(?::([^/:]*))?", name.removeprefix(OLLAMA)).groups()
    parts = ["registry.ollama.ai", "library"][: 2 - model.count("/")] + model.split("/")
    try:
        layers = read_json(root.joinpath("manifests", *parts, tag or "latest"))["layers"]
        blobs = {layer["mediaType"].rpartition(".")[2]: layer["digest"] for layer in layers}
        blob = root / "blobs" / blobs["model"].replace(":", "-")
    except (ConfigError, KeyError, TypeError, AttributeError):
        told = f"ollama has no such model in {root}; `ollama list` shows those it has."
        raise ConfigError(f"{name}: {told}") from None
    if "adapter" in blobs:
        raise ConfigError(f"{name}: is a model with an adapter on it; name the model under it.")
    if not blob.is_file():
        raise ConfigError(f"{name}: its weights, {blob}, are missing; `ollama pull` fetches them again.")
    return blob
