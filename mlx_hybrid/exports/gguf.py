"""GGUF files: an adapter for llama.cpp, a whole model for ollama and LM Studio too, and `Modelfile` for either.

llama.cpp adds alpha / r · B A of `NAME.lora_a` (r, in) and `NAME.lora_b` (out, r), of each tensor's own rank r, to the
weight NAME. The rows of B are in the order in which it keeps those of the weight.
Blocks are those of the `gguf` package, and of the K formats that it only reads: 256 codes and, for groups of 32 or 16,
a scale in 6 or 8 bits of one float16 scale (and so a minimum, in Q4_K and Q5_K), after the group's extremes."""

import os
import re
import struct
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from itertools import pairwise
from pathlib import Path
from shlex import quote
from typing import Any

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFReader, GGUFValueType, GGUFWriter, Keys, quantize

from mlx_hybrid.errors import ConfigError
from mlx_hybrid.exports.adapter import Source
from mlx_hybrid.exports.checks import Report
from mlx_hybrid.exports.forms import Factors, Forms, padded
from mlx_hybrid.exports.weights import GENERATION, GgufWeights
from mlx_hybrid.files import read_json, render, write_text
from mlx_hybrid.models.base import OLLAMA, read_tokenizer, with_template
from mlx_hybrid.models.gguf.config import ARCHITECTURES, gguf_name, is_shifted, mlx_name, reordered
from mlx_hybrid.models.gguf.file import GgufFile, Reader, Tensor

ADAPTER, MODEL = "adapter.gguf", "model.gguf"
ADAPTERS = "LM Studio, and ollama from 0.34.1 on, take no adapters: --merged makes a whole model for them."
S, U, A, V = ("\u2045system\u2046", "\u2045first\u2046", "\u2045answer\u2046", "\u2045second\u2046")
"""Turns that no template changes."""
WRITTEN = ("F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q4_K", "Q5_K", "Q6_K")
GROUPED = {"Q4_K": 15, "Q5_K": 31}  # largest code of formats with a minimum


def heads_of(config: dict) -> dict[str, int]:
    heads = config["num_attention_heads"]
    return {"q": heads, "k": config.get("num_key_value_heads") or heads}


def write_adapter(forms: Forms, config: dict, path: Path, where: str) -> dict[str, Factors]:
    """Write the LoRA of `forms` for a model of this config, in float32 and of one rank, which is alpha; what is read
    back. Raises ConfigError for a model whose names in llama.cpp are not known here."""
    kind = config.get("model_type", "")
    if not (architecture := ARCHITECTURES.get(kind)):
        known = ", ".join(sorted(ARCHITECTURES))
        told = f"GGUF's names of a {kind} model are not known here, only those of {known}"
        raise ConfigError(f"{where}: {told}; make a GGUF with llama.cpp's converter from --to merged.")
    writer = GGUFWriter(path, architecture)
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", float(forms.rank))
    for module, factors in sorted(forms.lora.items()):
        if (name := gguf_name(architecture, f"{module}.weight")) is None:
            told = f"{module} has no place in llama.cpp's {architecture}"
            raise ConfigError(f"{where}: {told}; use --to merged.")
        a, b = (np.ascontiguousarray(part.T, dtype=np.float32) for part in padded(factors, forms.rank))
        b = np.ascontiguousarray(reordered(architecture, name, b, heads_of(config)))
        writer.add_tensor(f"{name}.lora_a", a)
        writer.add_tensor(f"{name}.lora_b", b)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return read_adapter(path, config)


def read_adapter(path: Path, config: dict) -> dict[str, Factors]:
    """A (in, r) and B (r, out) of every module of an adapter file in float64, the scale in B."""
    reader, factors = GGUFReader(path), {}
    keys = ("general.architecture", "adapter.lora.alpha")
    architecture, alpha = (reader.get_field(key).contents() for key in keys)
    stored = {tensor.name: tensor.data.astype(np.float64) for tensor in reader.tensors}
    for name in (key.removesuffix(".lora_a") for key in stored if key.endswith(".lora_a")):
        a, b = stored[f"{name}.lora_a"], stored[f"{name}.lora_b"]
        b = reordered(architecture, name, b, heads_of(config), back=True)
        factors[mlx_name(architecture, name).removesuffix(".weight")] = a.T, alpha / len(a) * b.T
    return factors


def write_model(
    weights: GgufWeights, path: Path, source: Source, merged: Callable[[str], tuple], *, half: bool
) -> list[str]:
    """The file of `weights` again, with W' of `merged`, (W, W') by name, for what `source` changed in its own type or,
    with `half`, in F16; the names of those whose type is not written here, and that are in F16 therefore."""
    parts, lost, named = [], [], {weights.tensors[name].name: name for name in source.changed(weights)}
    for tensor in weights.file.tensors.values():
        name, kind, blocks = named.get(tensor.name), tensor.kind, weights.file.blocks
        if name:
            kind = "F16" if kind not in WRITTEN or (half and kind != "F32") else kind
            lost += [] if kind == tensor.kind or half else [name]
            blocks = partial(encoded, weights, lambda name=name: merged(name)[1], kind)
        parts.append((tensor, kind, blocks))
    write_file(path, weights.file, parts, source.info.conversations.get("chat_template", ""))
    return lost


def encoded(weights: GgufWeights, value: Callable[[], Any], kind: str, tensor: Tensor) -> list[np.ndarray]:
    """The blocks of a tensor whose value has its rows in MLX's order."""
    file = weights.file
    rows = np.array(value()) + (1 if is_shifted(file.architecture, tensor.name) else 0)
    rows = reordered(file.architecture, tensor.name, rows, file.heads)
    return [encode(kind, np.ascontiguousarray(rows.reshape(-1, rows.shape[-1]), dtype=np.float32))]


def write_file(path: Path, file: GgufFile, parts: list[tuple], template: str = "") -> None:
    """A GGUF file with the metadata of another, but for what says that it is split and a chat `template` of its own,
    and these `parts`: tensors, each with the type that it is written in and what gives its rows of blocks."""
    reader, infos, offset = Reader(file.path), [], 0
    starts = ((field.offset, key) for key, field in reader.fields.items() if not key.startswith("GGUF."))
    ends = [*sorted(starts), (min(tensor.field.offset for tensor in reader.tensors), "")]
    key, align = Keys.Tokenizer.CHAT_TEMPLATE, int(file.metadata.get("general.alignment", 32))
    left_out = ("split.", key) if template else "split."
    records = [reader.data[i:j] for (i, key), (j, _) in pairwise(ends) if not key.startswith(left_out)]
    texts = [struct.pack("<Q", len(text)) + text for text in (key.encode(), template.encode())]
    records += [struct.pack("<I", GGUFValueType.STRING).join(texts)] if template else []
    for tensor, kind, _ in parts:
        number = GGMLQuantizationType[kind]
        block, size = GGML_QUANT_SIZES[number]
        name, shape = tensor.name.encode(), tensor.shape[::-1]
        sizes = struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, number, offset)
        infos.append(struct.pack("<Q", len(name)) + name + sizes)
        offset += -(-int(np.prod(shape)) // block * size // align) * align
    with path.open("wb") as out:
        out.write(struct.pack("<4sIQQ", b"GGUF", 3, len(parts), len(records)))
        out.writelines([*map(bytes, records), *infos])
        for tensor, _, blocks in parts:
            out.write(bytes(-out.tell() % align))
            for rows in blocks(tensor):
                out.write(np.ascontiguousarray(rows).tobytes())
        out.write(bytes(-out.tell() % align))


def encode(kind: str, rows: np.ndarray) -> np.ndarray:
    """Rows (n, in) of float32 as blocks, (n, bytes) of uint8, in one of the formats WRITTEN."""
    if kind in GROUPED:
        return with_minima(kind, rows.reshape(len(rows), -1, 8, 32))
    if kind == "Q6_K":
        return q6_k(rows.reshape(len(rows), -1, 16, 16))
    return quantize(rows, GGMLQuantizationType[kind]).view(np.uint8)


def with_minima(kind: str, groups: np.ndarray) -> np.ndarray:
    """w = d · s · code − dmin · m with s and m in 6 bits, of groups (n, blocks, 8, 32)."""
    low, most = np.minimum(groups.min(-1), 0), GROUPED[kind]
    scales, minima = (groups.max(-1) - low).clip(0) / most, -low
    d, s = shared(scales, 63)
    dmin, m = shared(minima, 63)
    step, shift = (d * s)[..., None], (dmin * m)[..., None]
    codes = np.round(divided(groups + shift, step)).clip(0, most).astype(np.uint8)
    s, m = s.astype(np.uint8), m.astype(np.uint8)
    first, second = s[..., :4] | s[..., 4:] >> 4 << 6, m[..., :4] | m[..., 4:] >> 4 << 6
    packed = np.concatenate([first, second, s[..., 4:] & 15 | (m[..., 4:] & 15) << 4], axis=-1)
    codes = codes.reshape(*codes.shape[:2], 256)
    high = [laid(codes >> 4, 32, 1)] if kind == "Q5_K" else []
    return joined([as_half(d), as_half(dmin), packed, *high, laid(codes & 15, 32, 4)])


def q6_k(groups: np.ndarray) -> np.ndarray:
    """w = d · s · (code − 32) with s in 8 bits, of groups (n, blocks, 16, 16)."""
    largest = np.take_along_axis(groups, np.abs(groups).argmax(-1)[..., None], -1)[..., 0]
    scales = largest / -32  # the largest gets the code 0, the one that reaches furthest
    d = np.float16(np.abs(scales).max(-1, keepdims=True) / 127).astype(np.float32)
    s = np.round(divided(scales, d)).clip(-128, 127)
    codes = (np.round(divided(groups, (d * s)[..., None])).clip(-32, 31) + 32).astype(np.uint8)
    codes = codes.reshape(*codes.shape[:2], 256)
    s = s.astype(np.int8).view(np.uint8)
    return joined([laid(codes & 15, 64, 4), laid(codes >> 4, 32, 2), s, as_half(d)])


def shared(values: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
    """One float16 scale a block, and what each value is of it in whole steps up to `most`."""
    d = np.float16(values.max(-1, keepdims=True) / most).astype(np.float32)
    return d, np.round(divided(values, d)).clip(0, most)


def divided(values: np.ndarray, by: np.ndarray) -> np.ndarray:
    """The quotient, and 0 by 0."""
    nothing = np.zeros(np.broadcast_shapes(values.shape, by.shape), np.float32)
    return np.divide(values, by, out=nothing, where=by != 0)


def as_half(d: np.ndarray) -> np.ndarray:
    return d.astype("<f2").view(np.uint8)


def laid(codes: np.ndarray, chunk: int, bits: int) -> np.ndarray:
    """Codes (…, n) in bytes: of every `chunk` bytes the lowest bits hold the first codes, and so on."""
    parts = codes.reshape(*codes.shape[:-1], -1, 8 // bits, chunk) & np.uint8((1 << bits) - 1)
    shifts = np.arange(0, 8, bits, dtype=np.uint8)[:, None]
    return np.bitwise_or.reduce(parts << shifts, axis=-2).reshape(*codes.shape[:-1], -1)


def joined(parts: list[np.ndarray]) -> np.ndarray:
    """Blocks (n, bytes) from their parts (n, blocks, …)."""
    whole = np.concatenate(parts, axis=-1)
    return whole.reshape(len(whole), -1)


def write_modelfile(report: Report, source: Source, folder: Path, directory: Path) -> None:
    """Write the Modelfile of `folder`, which is to become `directory`, and say what runs the export in two programs."""
    tokenizer = with_template(read_tokenizer(source.name, source.base.folder), source.info.conversations)
    generation = source.base.folder / GENERATION
    settings = read_json(generation) if generation.is_file() else {}
    temperature = source.info.extra.get("temperature", settings.get("temperature"))
    own, base = next(folder.glob("*.gguf")), report.base["id"]
    place = f"path/to/{Path(base).name}.gguf"
    if base.startswith(OLLAMA):
        place = base.removeprefix(OLLAMA)
    elif report.base_folder:
        place = os.path.relpath(report.base_folder, folder)
    adapter = own.name == ADAPTER
    lines = [f"FROM {place}", f"ADAPTER ./{own.name}"] if adapter else [f"FROM ./{own.name}"]
    template = go_template(tokenizer) if tokenizer.has_chat_template else "{{ .Prompt }}"
    lines += [f'TEMPLATE """{template}"""'] if template is not None else []
    lines += [f'PARAMETER stop "{end}"' for end in tokenizer.end_markers]
    lines += [f"PARAMETER temperature {temperature}"] if temperature is not None else []
    write_text(folder / "Modelfile", "\n".join(lines) + "\n")
    if template is None:
        told = "Modelfile has no TEMPLATE: Go's language cannot say this one, so ollama takes the base's own."
        report.notes.append(told)
    report.notes += [ADAPTERS] if adapter else []
    if adapter and not report.base_folder:
        told = "stands in Modelfile for the base's GGUF file: write where it is, or name it with --base-id."
        report.notes.append(f"{place} {told}")
    name, made = re.sub(r"[^a-z0-9._-]+", "-", directory.name.lower()), quote(str(directory / own.name))
    create = f"ollama create {name} -f {quote(str(directory / 'Modelfile'))}"
    report.commands["ollama before 0.34.1" if adapter else "ollama"] = f"{create} && ollama run {name}"
    loads = f"{quote(report.base_folder or place)} --lora {made}" if adapter else made
    if adapter and source.info.conversations.get("chat_template"):
        loads += f" --jinja --chat-template-file {quote(str(directory / 'chat_template.jinja'))}"
    report.commands["llama.cpp"] = f"llama-cli -m {loads}"


def go_template(tokenizer: Any) -> str | None:
    """The chat template in Go's language, from what it writes around the turns of a conversation; None where that
    depends on more than a turn's place: ollama then takes the template of the base's own file."""
    asked = (("user", U), ("assistant", A), ("user", V))
    user, answer, second = ({"role": role, "content": text} for role, text in asked)
    begin = "".join(map(tokenizer.convert_ids_to_tokens, tokenizer.begun([])))  # the engine writes it itself
    try:
        opened = tokenizer.render([user, answer, second], opened=True).removeprefix(begin)
        head, between, turn, opening = pieces(opened, U, A, V)
        end = pieces(tokenizer.render([user, answer]), A)[1]
    except (ConfigError, ValueError):
        return None
    before, system, first = turn.removeprefix(end), None, ""
    if not turn.startswith(end) or not head.endswith(before):
        return None
    with suppress(ConfigError, ValueError):  # a template without a place for a system turn
        told = tokenizer.render([{"role": "system", "content": S}, user], opened=True).removeprefix(begin)
        start, middle, _ = pieces(told, S, U)
        if middle.endswith(before):
            system = start, middle.removesuffix(before)
        elif start == before:  # it stands in the first user turn
            first = middle
    turns = {"before": before, "first": first, "between": between, "opening": opening, "end": end}
    turns |= {"system": system, "default": head.removesuffix(before)}
    text = render(Path(__file__).with_name("template.go.jinja"), turns).removesuffix("\n")
    return None if '"""' in text else text


def pieces(text: str, *marks: str) -> list[str]:
    """The text between the marks, each of which stands in it once. Raises ValueError where one does not."""
    found = re.split(f"({'|'.join(marks)})", text)
    if found[1::2] != [*marks]:
        raise ValueError(text)
    return found[::2]
