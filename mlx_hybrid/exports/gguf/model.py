"""A GGUF model written again, with the changed tensors in the place of its own."""

import struct
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

from mlx_hybrid.exports.gguf.quantise import WRITTEN, encode
from mlx_hybrid.exports.weights import GgufWeights
from mlx_hybrid.models.gguf.config import is_shifted, reordered
from mlx_hybrid.models.gguf.file import GgufFile, Reader, Tensor

MODEL = "model.gguf"

Part = tuple[Tensor, str, Callable[[Tensor], Iterable[np.ndarray]]]
"""A tensor, the type that it is written in, and what gives its rows of blocks."""


def write_model(
    weights: GgufWeights, path: Path, merged: dict[str, Callable[[], Any]], *, half: bool = False
) -> list[str]:
    """The file of `weights` again, with the tensors of `merged` in their own type or, with `half`, in F16; the names of
    those whose type is not written here, and that are in F16 therefore."""
    parts, lost, names = [], [], {tensor.name: name for name, tensor in weights.tensors.items()}
    for tensor in weights.file.tensors.values():
        name, kind, blocks = names.get(tensor.name), tensor.kind, weights.file.blocks
        if name in merged:
            kind = "F16" if kind not in WRITTEN or (half and kind != "F32") else kind
            lost += [] if kind == tensor.kind or half else [name]
            blocks = partial(encoded, weights, merged[name], kind)
        parts.append((tensor, kind, blocks))
    write_file(path, weights.file, parts)
    return lost


def encoded(weights: GgufWeights, value: Callable[[], Any], kind: str, tensor: Tensor) -> list[np.ndarray]:
    """The blocks of a tensor whose value has its rows in MLX's order."""
    file = weights.file
    rows = np.array(value()) + (1 if is_shifted(file.architecture, tensor.name) else 0)
    rows = reordered(file.architecture, tensor.name, rows, file.heads)
    return [encode(kind, np.ascontiguousarray(rows.reshape(-1, rows.shape[-1]), dtype=np.float32))]


def write_file(path: Path, file: GgufFile, parts: list[Part]) -> None:
    """A GGUF file with the metadata of another, and these tensors."""
    align, records = int(file.metadata.get("general.alignment", 32)), list(metadata_records(file.path))
    infos, offset = [], 0
    for tensor, kind, _ in parts:
        number = GGMLQuantizationType[kind]
        block, size = GGML_QUANT_SIZES[number]
        name, shape = tensor.name.encode(), tensor.shape[::-1]
        sizes = struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, number, offset)
        infos.append(struct.pack("<Q", len(name)) + name + sizes)
        offset += -(-int(np.prod(shape)) // block * size // align) * align
    with path.open("wb") as out:
        out.write(struct.pack("<4sIQQ", b"GGUF", 3, len(parts), len(records)))
        out.writelines([*records, *infos])
        for tensor, _, blocks in parts:
            out.write(bytes(-out.tell() % align))
            for rows in blocks(tensor):
                out.write(np.ascontiguousarray(rows).tobytes())
        out.write(bytes(-out.tell() % align))


def metadata_records(path: Path) -> Iterator[bytes]:
    """Each key of a file's metadata with its value, as it is stored; but for what says that a file is split."""
    reader = Reader(path)
    starts = {field.offset: key for key, field in reader.fields.items() if not key.startswith("GGUF.")}
    last = min(tensor.field.offset for tensor in reader.tensors)
    for start, end in pairwise([*sorted(starts), last]):
        if not starts[start].startswith("split."):
            yield bytes(reader.data[start:end])
