"""A causal model as a body, which gives hidden states, and a head, which turns chosen ones into logits."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_unflatten

SAME_LOGITS = 1e-4  # float32 rounding of two orders of the same products
FEW = tuple(range(2, 10))  # tokens: for more a packed head is unpacked (frozen.py), the peak of memory
BODIES = ("model", "backbone", "transformer")  # what the families of mlx-lm call it
PRODUCTS = (nn.Linear, nn.QuantizedLinear, nn.Embedding, nn.QuantizedEmbedding)

HiddenStates = Callable[..., mx.array]


class Head:
    """Hidden states (…, d) → logits (…, V): the model's own forward pass, on a copy whose body gives back its input."""

    def __init__(self, owner: nn.Module, body: str):
        self.owner, self.body, self.used, self.vocabulary, self.product = owner, body, set(), 0, ""

    def __call__(self, hidden: mx.array) -> mx.array:
        shell = copy.copy(self.owner)
        shell[self.body] = Passed(self.owner[self.body], self.used)
        return shell(hidden)

    def part(self, first: int, last: int) -> HiddenStates:
        """Hidden states (…, d) → the logits of the entries `first` to `last` alone, where it `comes_apart`."""
        shell, name, body = copy.copy(self.owner), self.product, self.owner[self.body]
        if name in self.used:
            shell[self.body] = Passed(body, set(), {name: rows_of(body[name], first, last)})
        else:
            shell[self.body], shell[name] = Passed(body, set()), rows_of(shell[name], first, last)
        return shell

    def comes_apart(self, hidden: mx.array, whole: mx.array) -> bool:
        """Whether parts of the entries give the logits `whole` (n, V) of `hidden` (n, d), by one product."""
        last, sources = whole.shape[-1], {name: self.owner[self.body][name] for name in self.used}
        sources |= {name: part for name, part in self.owner.items() if name != self.body}
        products = [name for name, part in sources.items() if isinstance(part, PRODUCTS)]
        if len(products) != 1 or sources[products[0]].weight.shape[0] != last:
            return False
        self.product = products[0]
        cuts = [(first, min(first + 8, last)) for first in (0, last // 2, max(0, last - 8))]
        gaps = [largest(self.part(*cut)(hidden) - whole[..., slice(*cut)]) for cut in cuts]
        tolerance = SAME_LOGITS if whole.dtype == mx.float32 else float(mx.finfo(whole.dtype).eps)
        return max(gaps) <= tolerance * max(1.0, largest(whole))

    def leaves(self) -> dict[str, mx.array]:
        """Trainable arrays that the logits depend on, other than through the hidden states."""
        return self.own(self.owner.trainable_parameters())

    def packed(self) -> bool:
        return any(name.endswith(".scales") for name in self.own(self.owner.parameters()))

    def own(self, tree: dict) -> dict[str, mx.array]:
        """Those outside the body and those of its parts that the head uses, which is known once it was called."""
        body, used = f"{self.body}.", tuple(f"{self.body}.{name}." for name in self.used)
        leaves = tree_flatten(tree)
        return {name: leaf for name, leaf in leaves if not name.startswith(body) or name.startswith(used)}

    def with_leaves(self, hidden: mx.array, leaves: dict[str, mx.array]) -> mx.array:
        """Logits with other arrays in place of `leaves()`, so that gradients are taken for them."""
        if not leaves:
            return self(hidden)
        before = {name: leaf for name, leaf in self.leaves().items() if name in leaves}
        self.owner.update(tree_unflatten(list(leaves.items())))
        try:
            return self(hidden)
        finally:
            self.owner.update(tree_unflatten(list(before.items())))


class Passed:
    """A body that has run: gives back the hidden states, notes which parts are used, gives others for those `cut`."""

    def __init__(self, body: nn.Module, used: set[str], cut: dict[str, nn.Module] | None = None):
        self._body, self._used, self._cut = body, used, cut or {}

    def __call__(self, hidden: mx.array, *_: Any, **__: Any) -> mx.array:
        return hidden

    def __getattr__(self, name: str) -> Any:
        if name in self._cut:
            return self._cut[name]
        part = getattr(self._body, name)
        if isinstance(part, nn.Module):
            self._used.add(name)
        return part


def rows_of(layer: nn.Module, first: int, last: int) -> nn.Module:
    """A linear layer or embedding of some of its entries alone."""
    part = copy.copy(layer)
    part.update({name: value[first:last] for name, value in layer.items() if isinstance(value, mx.array)})
    return part


def find_parts(model: nn.Module) -> tuple[HiddenStates, Head, mx.array] | None:
    """(body, head, logits (t, V) of a few tokens, not computed yet); None for a model that does not come apart."""
    owner = model
    while "language_model" in owner and not any(name in owner for name in BODIES):
        owner = owner["language_model"]
    head = Head(owner, next((name for name in BODIES if name in owner), ""))
    try:
        with evaluating(model):
            logits = head(owner[head.body](mx.array([FEW]))[0])
    except (TypeError, ValueError, AttributeError, LookupError):
        return None
    head.vocabulary = logits.shape[-1]
    return owner[head.body], head, logits


def split_head(model: nn.Module, tolerance: float = SAME_LOGITS) -> tuple[HiddenStates, Head] | None:
    """(body, head), such that head(body(tokens)) is model(tokens), to the bit where `tolerance` is 0; else None."""
    if (parts := find_parts(model)) is None:
        return None
    with evaluating(model):
        body, head, split, whole = *parts, model(mx.array([FEW]))[0]
    same = split.shape == whole.shape and largest(split - whole) <= tolerance * max(1.0, largest(whole))
    return (body, head) if same else None


def largest(values: mx.array) -> float:
    return mx.max(mx.abs(values.astype(mx.float32))).item()


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Dropout off inside, the model's mode as it was after."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def keeps_keys_alone(model: nn.Module) -> bool:
    """Whether each layer remembers nothing but the keys and values of the tokens before, or of a window of them."""
    from mlx_lm.models.cache import KVCache, RotatingKVCache, make_prompt_cache

    caches = make_prompt_cache(model)
    return all(type(c) is KVCache or (type(c) is RotatingKVCache and c.keep == 0) for c in caches)
