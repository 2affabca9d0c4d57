"""GGUF's block formats as arrays that MLX unpacks, by pure functions on NumPy arrays.

A row of n weights becomes `weight`, its codes as MLX packs them, n · bits / 32 words of 32 bits, and
- affine formats: `scales` and `biases` (n / 32) in float32, w = scale · code + bias, one rounding, as `gguf` does it;
- Q6_K, Q3_K and Q2_K, whose groups of 16 MLX refuses: `scales` (n / 16) in 8 bits and `d` (n / 256) in float16,
  w = d · scale · (code − offset), and for Q2_K `mins` and `dmin` beside them, w = d · scale · code − dmin · min.
"""

import numpy as np

FIELDS = {
    "Q4_0": [("d", "<f2"), ("qs", "u1", 16)],
    "Q4_1": [("d", "<f2"), ("m", "<f2"), ("qs", "u1", 16)],
    "Q5_0": [("d", "<f2"), ("qh", "u1", 4), ("qs", "u1", 16)],
    "Q5_1": [("d", "<f2"), ("m", "<f2"), ("qh", "u1", 4), ("qs", "u1", 16)],
    "Q8_0": [("d", "<f2"), ("qs", "u1", 32)],
    "Q2_K": [("scales", "u1", 16), ("qs", "u1", 64), ("d", "<f2"), ("dmin", "<f2")],
    "Q3_K": [("qh", "u1", 32), ("qs", "u1", 64), ("scales", "u1", 12), ("d", "<f2")],
    "Q4_K": [("d", "<f2"), ("dmin", "<f2"), ("scales", "u1", 12), ("qs", "u1", 128)],
    "Q5_K": [("d", "<f2"), ("dmin", "<f2"), ("scales", "u1", 12), ("qh", "u1", 32), ("qs", "u1", 128)],
    "Q6_K": [("qs", "u1", 128), ("qh", "u1", 64), ("scales", "i1", 16), ("d", "<f2")],
}
"""What a block holds, in order; `qs` are the lower bits of its codes, and `qh` the upper ones."""
BITS = {kind: int(kind[1]) for kind in FIELDS}
PLAIN = {"F32": "<f4", "F16": "<f2", "BF16": "<u2"}
"""Formats of single numbers; NumPy has no bfloat16, which is the upper half of a float32."""
OFFSETS = {"Q4_0": 8, "Q5_0": 16, "Q8_0": 128}
PACKED = {"Q6_K": 32, "Q3_K": 4, "Q2_K": 0}
"""Formats whose layers are unpacked as they are used (load.py), and the offsets of their codes."""


def unpack(kind: str, rows: np.ndarray) -> dict[str, np.ndarray]:
    """The parts of a layer from its rows of blocks, (rows, bytes) of uint8."""
    block = rows.view(np.dtype(FIELDS[kind]))
    parts = {"weight": pack(codes(kind, block).reshape(len(rows), -1), BITS[kind])}
    found = (packed_scales if kind in PACKED else affine)(kind, block)
    return parts | {name: np.ascontiguousarray(value.reshape(len(rows), -1)) for name, value in found.items()}


def plain(kind: str, rows: np.ndarray) -> np.ndarray:
    """Numbers that are no blocks, in their own type; bfloat16 as float32."""
    values = rows.view(PLAIN[kind])
    return (values.astype("<u4") << 16).view("<f4") if kind == "BF16" else values


def codes(kind: str, block: np.ndarray) -> np.ndarray:
    """The codes of blocks, one a byte and in the order of the weights."""
    if kind == "Q8_0":
        return block["qs"] ^ 128  # signed, here from 0 on
    bits = {"Q2_K": 2, "Q3_K": 2}.get(kind, 4)
    chunk = 64 if kind == "Q6_K" else 32 if "K" in kind else 16
    low = planes(block["qs"], chunk, bits)
    if "qh" not in block.dtype.names:
        return low
    return low | planes(block["qh"], 32 if "K" in kind else 1, BITS[kind] - bits) << bits


def affine(kind: str, block: np.ndarray) -> dict[str, np.ndarray]:
    """Scale and bias of every 32 weights, exact products in float32."""
    d = scales = block["d"].astype(np.float32)
    if kind in OFFSETS:
        biases = d * np.float32(-OFFSETS[kind])
    elif "m" in block.dtype.names:
        biases = block["m"].astype(np.float32)
    else:
        scales, mins = six_bits(block["scales"])
        scales, biases = d[..., None] * scales, block["dmin"].astype("<f4")[..., None] * -mins.astype("<f4")
    return {"scales": scales, "biases": biases}


def packed_scales(kind: str, block: np.ndarray) -> dict[str, np.ndarray]:
    """Scale of every 16 weights in 8 bits, and of every 256 in float16."""
    scales, found = block["scales"], {"d": block["d"]}
    if kind == "Q2_K":
        return found | {"scales": scales & 15, "mins": scales >> 4, "dmin": block["dmin"]}
    if kind == "Q3_K":
        low, high = planes(scales[..., :8], 8, 4), planes(scales[..., 8:], 4, 2)
        scales = (low | high << 4).astype(np.int8) - np.int8(32)
    return found | {"scales": scales}


def six_bits(packed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Scales and minima (…, 8) of 6 bits from 12 bytes: four whole ones each, then four in the bits left over."""
    first, second, rest = np.split(packed, 3, axis=-1)
    scales = np.concatenate([first & 63, rest & 15 | first >> 2 & 48], axis=-1)
    return scales, np.concatenate([second & 63, rest >> 4 | second >> 2 & 48], axis=-1)


def planes(packed: np.ndarray, chunk: int, bits: int) -> np.ndarray:
    """Codes of some bits: of every `chunk` bytes first the lowest bits of all, then the next, and so on."""
    shifts = np.arange(0, 8, bits, dtype=np.uint8)[:, None]
    spread = packed.reshape(*packed.shape[:-1], -1, 1, chunk) >> shifts & np.uint8((1 << bits) - 1)
    return spread.reshape(*packed.shape[:-1], -1)


def pack(codes: np.ndarray, bits: int) -> np.ndarray:
    """Codes (rows, n) as a stream of bits, lowest first, in words of 32: MLX's own packing of any width."""
    if bits == 8:
        return codes.view(np.uint32)
    eights = np.zeros((len(codes), codes.shape[1] // 8), np.uint64)
    for place in range(8):
        eights |= codes[:, place::8].astype(np.uint64) << np.uint64(bits * place)
    stream = eights.view(np.uint8).reshape(*eights.shape, 8)[..., :bits]
    return np.ascontiguousarray(stream).reshape(len(codes), -1).view(np.uint32)
