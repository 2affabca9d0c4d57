"""Tiny GGUF files, written by the `gguf` package, and what it makes of their blocks."""

from pathlib import Path

import gguf
import numpy as np
from toys import CHATML

WIDTH, LAYERS, HEADS, KV, SIZE, VOCABULARY = 256, 2, 4, 2, 64, 264
HALVES = {"Q2_K": (80, 82), "Q3_K": (108,), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,)}
"""Where a block that `gguf` cannot make holds its float16 numbers."""
SPECIAL = ["<pad>", "<s>", "<|im_end|>", "<|im_start|>"]
LAYER = {
    "attn_q": (HEADS * SIZE, WIDTH), "attn_k": (KV * SIZE, WIDTH), "attn_v": (KV * SIZE, WIDTH),
    "attn_output": (WIDTH, HEADS * SIZE), "ffn_gate": (512, WIDTH), "ffn_up": (512, WIDTH), "ffn_down": (WIDTH, 512),
    "attn_norm": (WIDTH,), "ffn_norm": (WIDTH,),
}  # fmt: skip
OTHER = {
    "qwen2": {"attn_q.bias": (HEADS * SIZE,), "attn_k.bias": (KV * SIZE,), "attn_v.bias": (KV * SIZE,)},
    "qwen3": {"attn_q_norm": (SIZE,), "attn_k_norm": (SIZE,)},
    "gemma2": {"post_attention_norm": (WIDTH,), "post_ffw_norm": (WIDTH,)},
    "gemma3": {
        "attn_q_norm": (SIZE,), "attn_k_norm": (SIZE,), "post_attention_norm": (WIDTH,), "post_ffw_norm": (WIDTH,),
    },
    "phi3": {"attn_qkv": ((HEADS + 2 * KV) * SIZE, WIDTH), "ffn_up": (1024, WIDTH)},
}  # fmt: skip
ABSENT = {"phi3": ("attn_q", "attn_k", "attn_v", "ffn_gate")}


def blocks(kind: str, shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """Valid blocks of a type: of random weights where `gguf` can make them, else random codes and scales."""
    random = np.random.default_rng(seed)
    quantisation = gguf.GGMLQuantizationType[kind]
    if kind not in HALVES:
        return gguf.quantize((0.08 * random.standard_normal(shape)).astype(np.float32), quantisation)
    values, size = gguf.GGML_QUANT_SIZES[quantisation]
    made = random.integers(0, 256, (shape[0] * shape[1] // values, size), dtype=np.uint8)
    for at in HALVES[kind]:
        made[:, at : at + 2] = (
            (3e-4 * random.uniform(0.5, 1, len(made))).astype("<f2")[:, None].view(np.uint8)
        )
    return made.reshape(shape[0], -1)


def shapes(architecture: str) -> dict[str, tuple[int, ...]]:
    """The tensors of a tiny model by GGUF name."""
    layer = {name: s for name, s in LAYER.items() if name not in ABSENT.get(architecture, ())}
    layer |= OTHER.get(architecture, {})
    named = {f"{n}.weight" if "." not in n else n: shape for n, shape in layer.items()}
    whole = {f"blk.{i}.{name}": shape for i in range(LAYERS) for name, shape in named.items()}
    return whole | {"token_embd.weight": (VOCABULARY, WIDTH), "output_norm.weight": (WIDTH,)}


def write_gguf(
    path: Path,
    architecture: str = "llama",
    kind: str = "Q8_0",
    *,
    kinds=None,
    extra=None,
    drop=(),
    **settings,
) -> dict[str, np.ndarray]:
    """Write a tiny model; its tensors as `gguf` unpacks them. `kinds` are types by name, `settings` metadata by key
    with `_` for `.`; None leaves one out."""
    about = {
        "context_length": 512, "embedding_length": WIDTH, "block_count": LAYERS, "feed_forward_length": 512,
        "attention.head_count": HEADS, "attention.head_count_kv": KV, "attention.layer_norm_rms_epsilon": 1e-5,
        "attention.key_length": SIZE, "rope.freq_base": 10000.0, "rope.dimension_count": SIZE,
        "attention.sliding_window": 512,
    }  # fmt: skip
    writer = gguf.GGUFWriter(path, architecture)
    for key, value in ({f"{architecture}.{key}": value for key, value in about.items()} | settings).items():
        add = writer.add_float32 if isinstance(value, float) else writer.add_uint32
        (writer.add_string if isinstance(value, str) else add)(key, value)
    if "tokenizer" not in drop:
        write_tokenizer(writer, template="template" not in drop, merges="merges" not in drop)
    dense = {}
    for number, (name, shape) in enumerate((shapes(architecture) | (extra or {})).items()):
        if name in drop:
            continue
        own = (kinds or {}).get(name, kind if len(shape) == 2 else "F32")
        data = blocks(own, shape, number)
        if len(shape) == 1:
            data = data + np.float32(1.0 if "norm" in name else 0.0)
        quantisation = gguf.GGMLQuantizationType[own]
        dense[name] = gguf.dequantize(data, quantisation).reshape(shape)
        writer.add_tensor(name, data, raw_dtype=quantisation)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return dense


def write_tokenizer(writer: gguf.GGUFWriter, *, template: bool = True, merges: bool = True) -> None:
    """Every byte a token, as toys.byte_tokenizer has them, and ChatML."""
    from tokenizers import pre_tokenizers

    tokens = [
        *sorted(pre_tokenizers.ByteLevel.alphabet()),
        *SPECIAL,
        "ab",
        *(f"[UNUSED{i}]" for i in range(3)),
    ]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([1] * 256 + [3] * 4 + [1] + [5] * 3)
    if merges:
        writer.add_token_merges(["a b"])
    writer.add_bos_token_id(257)
    writer.add_eos_token_id(258)
    writer.add_pad_token_id(256)
    writer.add_add_bos_token(False)
    if template:
        writer.add_chat_template(CHATML)
