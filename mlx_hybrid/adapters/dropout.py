"""Dropout whose masks can be drawn again.

A layer whose activations are recomputed in the backward pass runs twice, and must drop the second time what it dropped
the first: with MLX's own dropout, which draws anew, the gradient would be that of another function.
"""

from collections.abc import Iterator

import mlx.core as mx
import mlx.nn as nn


class Masks:
    """Where the keys of masks come from, and which were taken. No module, so that its arrays are no parameters."""

    def __init__(self) -> None:
        self.again: Iterator[mx.array] | None = None
        self.taken: list[mx.array] | None = None

    def key(self) -> mx.array:
        """The next key: drawn from MLX's global state, or the one that was drawn before."""
        if self.again is not None:
            return next(self.again)
        key = mx.random.randint(0, 1 << 31, (2,), dtype=mx.uint32)
        if self.taken is not None:
            self.taken.append(key)
        return key


class Dropout(nn.Module):
    """Zeroes a share of the entries in training and scales the others up by as much."""

    def __init__(self, share: float):
        super().__init__()
        self._share = share
        self.masks = Masks()

    @property
    def acts(self) -> bool:
        return self.training and self._share > 0

    def __call__(self, x: mx.array) -> mx.array:
        if not self.acts:
            return x
        keep = 1 - self._share
        return mx.random.bernoulli(keep, x.shape, key=self.masks.key()) * x * (1 / keep)


class Replay:
    """Runs of one layer that all drop the same: `with replay:` around each of them."""

    def __init__(self, layer: nn.Module):
        self.masks = [module.masks for module in layer.modules() if isinstance(module, Dropout)]
        self.keys: list[list[mx.array]] | None = None

    def __enter__(self) -> None:
        for index, masks in enumerate(self.masks):
            masks.again = iter(self.keys[index]) if self.keys is not None else None
            masks.taken = []

    def __exit__(self, *_: object) -> None:
        if self.keys is None:
            self.keys = [masks.taken or [] for masks in self.masks]
        for masks in self.masks:
            masks.again = masks.taken = None
