"""A GGUF base, and an adapter on it, in llama.cpp itself against our own forward pass on the same blocks.

python tools/check_gguf.py BASE.gguf [--adapter ADAPTER.gguf --ours RUN] [--float32 [FOLDER]] [--prompts FILE [--chat]]

Needs the wheel `xllamacpp` (pip install xllamacpp), whose library is called through ctypes. Prints, for the base alone
and with the adapter, the mean KL from ours to llama.cpp's in nats a token and how many greedy tokens are the same.
`--float32` gives llama.cpp the file's own weights unpacked to float32, or those of a model folder. On quantised files
it rounds activations to 8 bits, which is the base's own KL. Exit 1 beyond 1e-5 in float32, and on quantised files where
the adapter's KL is more than the base's own over all prompts, and not by their chance.
"""

import argparse
import ctypes
import sys
import tempfile
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import bench  # noqa: F401 (one BLAS thread)
import mlx.core as mx
import numpy as np
from mlx_lm.generate import generate_step

from mlx_hybrid.adapters.store import load_adapter, read_adapter_config
from mlx_hybrid.exports.checks import PROMPTS, loss_of
from mlx_hybrid.exports.gguf import encoded, write_file
from mlx_hybrid.exports.weights import GgufWeights, ModelWeights
from mlx_hybrid.models.adapted import find_adapter
from mlx_hybrid.models.base import load_base, with_template

GREEDY = 30  # tokens spoken after each prompt
FLOAT32_KL = 1e-5


class Struct(ctypes.Structure):
    """A struct of llama.cpp, passed by value without being looked into; larger than any of them."""

    _fields_ = [("raw", ctypes.c_uint32 * 128)]


class Engine:
    """llama.cpp with one model, token by token."""

    def __init__(self, model: Path):
        found = find_spec("xllamacpp")
        if not found:
            sys.exit("xllamacpp is not installed: pip install xllamacpp")
        self.lib = lib = ctypes.CDLL(str(next(Path(found.origin).parent.glob("xllamacpp*.so"))))
        self.log = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)(lambda *_: None)
        lib.llama_log_set(self.log, None)
        lib.llama_backend_init()
        made = "model_load_from_file init_from_model adapter_lora_init get_memory model_get_vocab"
        for name in ("model_default_params", "context_default_params", "batch_get_one"):
            getattr(lib, f"llama_{name}").restype = Struct
        for name in made.split():
            getattr(lib, f"llama_{name}").restype = ctypes.c_void_p
        lib.llama_get_logits_ith.restype = ctypes.POINTER(ctypes.c_float)
        lib.llama_batch_get_one.argtypes = [ctypes.POINTER(ctypes.c_int32), ctypes.c_int32]
        lib.llama_decode.argtypes = [ctypes.c_void_p, Struct]
        loaded = lib.llama_model_load_from_file(str(model).encode(), lib.llama_model_default_params())
        self.model = self.held(loaded)
        self.context = self.held(lib.llama_init_from_model(self.model, lib.llama_context_default_params()))
        lib.llama_set_n_threads(self.context, 1, 1)  # more wait for each other, turning, on a busy machine
        vocabulary = ctypes.c_void_p(lib.llama_model_get_vocab(self.model))
        self.size = lib.llama_vocab_n_tokens(vocabulary)

    @staticmethod
    def held(pointer: int | None) -> ctypes.c_void_p:
        if not pointer:
            sys.exit("llama.cpp cannot load the file.")
        return ctypes.c_void_p(pointer)

    def put_on(self, adapter: Path) -> None:
        own = self.held(self.lib.llama_adapter_lora_init(self.model, str(adapter).encode()))
        pointers, scales = (ctypes.c_void_p * 1)(own.value), (ctypes.c_float * 1)(1.0)
        if self.lib.llama_set_adapters_lora(self.context, pointers, ctypes.c_size_t(1), scales):
            sys.exit("llama.cpp cannot put the adapter on.")

    def logits(self, tokens: list[int]) -> np.ndarray:
        """Logits (tokens, vocabulary), from a fresh memory."""
        self.lib.llama_memory_clear(ctypes.c_void_p(self.lib.llama_get_memory(self.context)), True)
        return np.stack([self.step(token) for token in tokens])

    def step(self, token: int) -> np.ndarray:
        batch = self.lib.llama_batch_get_one((ctypes.c_int32 * 1)(token), 1)
        if self.lib.llama_decode(self.context, batch):
            sys.exit("llama.cpp cannot decode.")
        row = self.lib.llama_get_logits_ith(self.context, -1)
        return np.ctypeslib.as_array(row, (self.size,)).copy()

    def greedy(self, tokens: list[int], count: int) -> list[int]:
        spoken = [int(self.logits(tokens)[-1].argmax())]
        while len(spoken) < count:
            spoken.append(int(self.step(spoken[-1]).argmax()))
        return spoken


def in_float32(base: Path, folder: str, path: Path) -> Path:
    """The file `base` with its own weights in float32, or those of a model `folder`."""
    named = GgufWeights(base)
    weights = ModelWeights(Path(folder)) if folder else named

    def packed(name: str) -> partial:
        return partial(encoded, named, lambda: np.array(weights.dense(name, mx.float32)), "F32")

    parts = [(tensor, "F32", packed(name)) for name, tensor in named.tensors.items()]
    write_file(path, named.file, parts)
    return path


def side_by_side(engine: Engine, model, prompts: list[list[int]]) -> dict[str, np.ndarray]:
    """By prompt the KL, how many greedy tokens are the same, and by how many logits we preferred ours where they part,
    0 where they do not."""
    rows = []
    for tokens in prompts:
        ours = np.array(model(mx.array([tokens]))[0].astype(mx.float32))
        kl = loss_of(ours, engine.logits(tokens)[:, : ours.shape[1]])["kl_nats_per_token"]
        spoken = [token for token, _ in generate_step(mx.array(tokens), model, max_tokens=GREEDY)]
        theirs = engine.greedy(tokens, GREEDY)
        pairs, gap = zip(spoken, theirs, strict=True), 0.0
        same = next((i for i, (own, other) in enumerate(pairs) if own != other), GREEDY)
        if same < GREEDY:
            last = model(mx.array([[*tokens, *spoken[:same]]]))[0, -1].astype(mx.float32)
            gap = (last[spoken[same]] - last[theirs[same]]).item()
        rows.append((kl, same, gap))
    return dict(zip(("kl", "same", "gap"), np.array(rows).T, strict=True))


def tokens_of(tokenizer: Any, text: str, *, chat: bool) -> list[int]:
    """A prompt's tokens as it is, or as the question of a chat."""
    if chat:
        text = tokenizer.render([{"role": "user", "content": text}], opened=True)
    return list(tokenizer.tokens_of(text) if chat else tokenizer.started(text))


def interval(values: np.ndarray) -> tuple[float, float]:
    """Where the mean lies, 95 %, by drawing prompts again."""
    drawn = np.random.default_rng(0).choice(values, (10_000, len(values))).mean(axis=1)
    return tuple(np.quantile(drawn, (0.025, 0.975)).tolist())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("base", type=Path)
    parser.add_argument("--adapter", type=Path, help="The exported file.")
    parser.add_argument("--ours", help="The run or adapter that was exported.")
    how = "The file's weights in float32, or those of a model folder."
    parser.add_argument("--float32", metavar="FOLDER", nargs="?", const="", help=how)
    parser.add_argument("--prompts", type=Path, help="A file with a prompt a line.")
    parser.add_argument("--chat", action="store_true", help="Prompts are questions of a chat.")
    arguments = parser.parse_args()
    texts = arguments.prompts.read_text("utf-8").splitlines() if arguments.prompts else PROMPTS
    base = load_base(arguments.float32 or str(arguments.base))
    adapter, exact = None, arguments.float32 is not None
    if arguments.adapter:
        adapter = find_adapter(arguments.ours, str(arguments.base))[0]
        with_template(base.tokenizer, read_adapter_config(adapter).conversations)
    prompts = [tokens_of(base.tokenizer, text, chat=arguments.chat) for text in texts]
    with tempfile.TemporaryDirectory() as folder:
        file = arguments.base
        if exact:
            file = in_float32(arguments.base, arguments.float32, Path(folder) / "float32.gguf")
        engine = Engine(file)
    found = {"base": side_by_side(engine, base.model, prompts)}
    if adapter:
        load_adapter(base.model, adapter)
        engine.put_on(arguments.adapter)
        found["adapter"] = side_by_side(engine, base.model.eval(), prompts)
    for name, row in found.items():
        same, whole = int(row["same"].sum()), int((row["same"] == GREEDY).sum())
        told = f"{name}: KL {row['kl'].mean():.2g} nats a token (worst prompt {row['kl'].max():.2g}), greedy {same} of "
        told += f"{GREEDY * len(prompts)} tokens the same, {whole} of {len(prompts)} answers whole"
        print(f"{told}; ours is ahead by {row['gap'].max():.2g} logits at most where they part")
    kls, low = [row["kl"] for row in found.values()], 0.0
    if adapter and len(prompts) > 1:
        (low, high), more = interval(kls[1] - kls[0]), (kls[1] - kls[0]).mean()
        print(f"adapter less base, prompt by prompt: KL {more:+.2g}, 95 % {low:+.2g} to {high:+.2g}")
    fine = max(kl.mean() for kl in kls) <= FLOAT32_KL if exact else low <= 0 or kls[-1].mean() <= FLOAT32_KL
    sys.exit(0 if fine else 1)


if __name__ == "__main__":
    main()
