"""Tiny random models as transformers writes them, their 4-bit MLX conversions, and trained-looking adapters on both.

Each is made once in a test session.
"""

import atexit
import json
import shutil
import tempfile
from functools import cache
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten, tree_unflatten
from tiny_model import write_tokenizer

from mlx_hybrid.adapters.attach import attach, hybrid_layers, refold
from mlx_hybrid.adapters.store import load_adapter, save_adapter
from mlx_hybrid.config import build_config
from mlx_hybrid.models.base import load_base

ARCHITECTURES = ("llama", "qwen3", "gemma3_text", "phi3")
METHODS = {
    "lora": {"rank": 4},
    "lora-ga": {"rank": 3},
    "hra": {"reflections": 4},
    "hybrid": {"reflections": 4, "rank": 4},
    "hybrid-unitary": {"reflections": 4, "rank": 4},
    "boft": {"block_size": 4, "factors": 3},
    "hybrid-boft": {"block_size": 4, "factors": 3, "rank": 3},
}
SETTINGS = METHODS | {"dora": {"rank": 4}}
LOW_RANK = ("lora", "lora-ga", "hra", "hybrid", "hybrid-unitary")
SIZES = {
    "hidden_size": 64, "num_hidden_layers": 2, "intermediate_size": 128, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 256, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    "initializer_range": 0.15,
}  # fmt: skip
SPECIFIC = {
    "llama": {"attention_bias": True},
    "qwen3": {"head_dim": 16, "tie_word_embeddings": True},
    "gemma3_text": {"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 8, "sliding_window_pattern": 2,
                    "layer_types": ["sliding_attention", "full_attention"]},
    "phi3": {},
}  # fmt: skip
TRAINED = 0.05  # size of the perturbation: a few per cent of the weights, as after a short run


@pytest.fixture
def one_thread():
    """On matrices this small, threads only wait for each other; on a busy machine for most of the time."""
    import torch
    from threadpoolctl import threadpool_limits

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with threadpool_limits(1, "blas"):
        yield
    torch.set_num_threads(before)


@cache
def root() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="mlx-hybrid-bases-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


@cache
def dense_base(architecture: str) -> Path:
    """The model as `save_pretrained` leaves it, in float32."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    folder = root() / architecture
    folder.mkdir()
    vocabulary = write_tokenizer(folder, None)
    config = AutoConfig.for_model(
        architecture, vocab_size=vocabulary, **SIZES, **SPECIFIC[architecture], dtype=torch.float32
    )
    torch.manual_seed(11)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if value.ndim == 1:  # norms and biases away from their constant start
                value.add_(0.1 * torch.randn_like(value))
            assert torch.isfinite(value).all(), name
    model.save_pretrained(folder)
    if architecture == "gemma3_text":  # transformers keeps the pattern as `layer_types` alone
        tree = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(tree | {"sliding_window_pattern": 2}))
    return folder


@cache
def packed_base(architecture: str) -> Path:
    """Its 4-bit conversion by mlx-lm."""
    from mlx_lm import convert

    folder = root() / f"{architecture}-4bit"
    convert(str(dense_base(architecture)), mlx_path=str(folder), quantize=True, q_bits=4, q_group_size=32)
    return folder


def folder_of(architecture: str, *, packed: bool = False) -> str:
    return str((packed_base if packed else dense_base)(architecture))


@cache
def trained(
    method: str, architecture: str, *, packed: bool = False, seed: int = 5, targets: tuple = ("dense",)
) -> Path:
    """An adapter folder with every leaf away from its start."""
    base = folder_of(architecture, packed=packed)
    chosen = {"targets": list(targets)}
    chosen |= {"unitary": ["o_proj", "down_proj"]} if method == "hybrid-unitary" else {}
    folder = root() / "-".join((method, Path(base).name, str(seed), *targets))
    return adapter_on(base, folder, method, seed, **SETTINGS[method] | chosen)


def adapter_on(base: str, folder: Path, method: str = "hybrid", seed: int = 5, **settings) -> Path:
    """The same on any base."""
    loaded = load_base(base)
    config = build_config({"method": method, "adapter": settings}, "test").adapter
    attach(loaded.model, config, seed=seed)
    perturb(loaded.model, seed)
    refold(loaded.model)
    save_adapter(loaded.model, folder, config=config, method=method, base=loaded.identity, seed=seed)
    return folder


def perturb(model, seed: int) -> None:
    """Random leaves of the size training leaves behind; the two layers get ranks that differ."""
    random = np.random.default_rng(seed)
    for layer in hybrid_layers(model).values():
        for leaf in ("lora_a0", "lora_b0"):
            if leaf in layer.leaves():
                layer.put_leaves({leaf: normal(random, layer.leaves()[leaf].shape, 0.2)})
    changed = []
    for name, value in tree_flatten(model.trainable_parameters()):
        size = TRAINED * (2.0 if name.endswith("oft_q") else 1.0)
        new = value + normal(random, value.shape, size)
        if name.endswith("lora_b") and ".0.self_attn" in name:
            new = new * mx.array([[1.0], *[[0.0]] * (new.shape[0] - 1)])
        changed.append((name, new))
    model.update(tree_unflatten(changed))
    mx.eval(model.parameters())


def normal(random: np.random.Generator, shape: tuple, size: float) -> mx.array:
    return mx.array((size * random.standard_normal(shape)).astype(np.float32))


def greedy_ours(base: str, adapter: Path | None, prompt: list[int], count: int) -> list[int]:
    """The most likely continuation in our own loader, without a cache."""
    model = load_base(base).model
    if adapter:
        load_adapter(model, adapter)
    model.eval()
    return greedy(model, prompt, count)


def greedy(model, prompt: list[int], count: int) -> list[int]:
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(int(mx.argmax(model(mx.array([tokens]))[0, -1])))
    return tokens
