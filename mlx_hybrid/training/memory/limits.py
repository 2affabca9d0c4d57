"""Memory: recomputing activations, and limits that leave the machine usable."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_unflatten

from mlx_hybrid.adapters.layer import Dropout
from mlx_hybrid.errors import MemoryLimitError

CACHE_LIMIT = 2 << 30
NO_MEMORY = re.compile("(Unable|Attempting) to allocate|Resource limit|Insufficient Memory|out of memory")
"""What MLX's RuntimeErrors say of allocations that fail, on the CPU, by Metal and by CUDA."""
NEED_LESS = "close other programs, or start anew with train.grad_checkpoint=true or smaller batches"
WIRED_SHARE = 0.9  # of the recommended working set; at the limit itself macOS has panicked (mlx issue 3186)


@contextmanager
def running_out(way_on: Callable[[], str] = str) -> Iterator[None]:
    """Raise MemoryLimitError, with the way out, where MLX cannot allocate; on a CPU the system ends the process."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        said = str(error).strip()
        if not isinstance(error, MemoryError) and not NO_MEMORY.search(said):
            raise
        said = said.rstrip(".") or "MemoryError"
        raise MemoryLimitError(f"Memory ran out ({said}); {NEED_LESS}.{way_on()}") from error


def checkpoint_layers(model: nn.Module) -> None:
    """Recompute each transformer layer in the backward pass instead of keeping its activations. Each layer gets a class
    of its own, so other models in the process are not touched; twice is the same as once."""
    for layer in model.layers:
        kind = type(layer)
        if not getattr(kind, "recomputes", False):
            layer.__class__ = type(kind.__name__, (kind,), {"__call__": recomputed(kind), "recomputes": True})


def recomputed(kind: type) -> Callable[..., mx.array]:
    def call(self: nn.Module, *args: Any, **kwargs: Any) -> mx.array:
        dropouts = [module for module in self.modules() if isinstance(module, Dropout) and module.acts]
        keys: list[mx.array | None] = []
        given = dict(enumerate(args)) | kwargs
        arrays = {name: value for name, value in given.items() if isinstance(value, mx.array)}
        moving = {name: value for name, value in arrays.items() if mx.issubdtype(value.dtype, mx.floating)}
        leaves = dict(tree_flatten(self.trainable_parameters()))

        def forward(values: list[mx.array]) -> mx.array:
            inner = given | dict(zip(moving, values))
            self.update(tree_unflatten(list(zip(leaves, values[len(moving) :], strict=True))))
            for dropout, key in zip(dropouts, keys):
                dropout._given = key
            y = kind.__call__(self, *(inner[i] for i in range(len(args))), **{k: inner[k] for k in kwargs})
            keys[:] = [dropout._last for dropout in dropouts]
            for dropout in dropouts:
                dropout._given = None
            self.update(tree_unflatten(list(leaves.items())))
            return y

        return recompute_late(forward)([*moving.values(), *leaves.values()])

    return call


def recompute_late(forward: Callable[[list[mx.array]], mx.array]) -> Callable[[list[mx.array]], mx.array]:
    """`forward`, run again in the backward pass: not before its cotangent is there, and with its gradients done before
    any of them is passed on. Left to itself, MLX keeps all layers' recomputed activations for the leaves' gradients."""
    function = mx.custom_function(forward)

    @function.vjp
    def _(primals: list[mx.array], cotangent: mx.array, _: mx.array) -> list[mx.array]:
        late = mx.depends(primals, [cotangent])
        _, gradients = mx.vjp(lambda *values: forward(values), late, [cotangent])
        return mx.depends(gradients, gradients[:1])

    return function


def set_limits() -> None:
    """Bound MLX's cache of freed buffers, and wire memory short of what the system recommends, on a GPU."""
    mx.set_cache_limit(CACHE_LIMIT)
    if recommended := mx.device_info().get("max_recommended_working_set_size"):
        mx.set_wired_limit(int(WIRED_SHARE * recommended))
