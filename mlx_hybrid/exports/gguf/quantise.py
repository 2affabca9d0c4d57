"""Weights in GGUF's block formats: those of the `gguf` package, and the K formats it only reads.

A block of 256 holds codes and, for groups of 32 or 16 of them, a scale in 6 or 8 bits of one float16 scale (and so a
minimum, in Q4_K and Q5_K). Scales are those of the largest and smallest weight of a group.
"""

import numpy as np
from gguf import GGMLQuantizationType, quantize

WRITTEN = ("F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q4_K", "Q5_K", "Q6_K")
GROUPED = {"Q4_K": 15, "Q5_K": 31}
"""Largest code of formats with a minimum."""


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
    return joined([half(d), half(dmin), packed, *high, laid(codes & 15, 32, 4)])


def q6_k(groups: np.ndarray) -> np.ndarray:
    """w = d · s · (code − 32) with s in 8 bits, of groups (n, blocks, 16, 16)."""
    largest = np.take_along_axis(groups, np.abs(groups).argmax(-1)[..., None], -1)[..., 0]
    scales = largest / -32  # the largest gets the code 0, the one that reaches furthest
    d = np.float16(np.abs(scales).max(-1, keepdims=True) / 127).astype(np.float32)
    s = np.round(divided(scales, d)).clip(-128, 127)
    codes = (np.round(divided(groups, (d * s)[..., None])).clip(-32, 31) + 32).astype(np.uint8)
    codes = codes.reshape(*codes.shape[:2], 256)
    return joined(
        [laid(codes & 15, 64, 4), laid(codes >> 4, 32, 2), s.astype(np.int8).view(np.uint8), half(d)]
    )


def shared(values: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
    """One float16 scale a block, and what each value is of it in whole steps up to `most`."""
    d = np.float16(values.max(-1, keepdims=True) / most).astype(np.float32)
    return d, np.round(divided(values, d)).clip(0, most)


def divided(values: np.ndarray, by: np.ndarray) -> np.ndarray:
    """The quotient, and 0 by 0."""
    return np.divide(
        values, by, out=np.zeros(np.broadcast_shapes(values.shape, by.shape), np.float32), where=by != 0
    )


def half(d: np.ndarray) -> np.ndarray:
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
