"""Memory: recomputing activations, and limits that leave the machine usable."""

import mlx.core as mx
import mlx.nn as nn

from mlx_hybrid.adapters.dropout import Replay

CACHE_LIMIT = 2 << 30
WIRED_SHARE = 0.9  # of the recommended working set; at the limit itself macOS has panicked (mlx issue 3186)


def checkpoint_layers(model: nn.Module) -> None:
    """Recompute each transformer layer in the backward pass instead of keeping its activations.

    Each layer gets a class of its own, so other models in the process are not touched; twice is the same as once.
    """
    for layer in model.layers:
        kind = type(layer)
        if not getattr(kind, "recomputes", False):
            call = {"__call__": recomputed(kind), "recomputes": True}
            layer.__class__ = type(kind.__name__, (kind,), call)


def recomputed(kind: type) -> object:
    def call(self: nn.Module, *args: object, **kwargs: object) -> object:
        replay = Replay(self)

        def inner(parameters: dict, *args: object, **kwargs: object) -> object:
            self.update(parameters)
            with replay:
                return kind.__call__(self, *args, **kwargs)

        return mx.checkpoint(inner)(self.trainable_parameters(), *args, **kwargs)

    return call


def set_limits() -> None:
    """Bound MLX's cache of freed buffers, and wire memory short of what the system recommends, on a GPU."""
    mx.set_cache_limit(CACHE_LIMIT)
    info = mx.device_info()
    if recommended := info.get("max_recommended_working_set_size"):
        mx.set_wired_limit(int(WIRED_SHARE * recommended))
