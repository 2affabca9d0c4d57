"""Models and tokenizers small enough to train in a test, real in everything but size."""

import json
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx_lm.models import llama
from mlx_lm.tokenizer_utils import TokenizerWrapper
from mlx_lm.utils import quantize_model, save_model
from tokenizers import Tokenizer as Pieces
from tokenizers import decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from mlx_hybrid.models.tokenizer import Tokenizer

VOCABULARY = 264  # 256 bytes and 4 special tokens, rounded up to a multiple of 8
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
MODES = {  # mode: (bits, group size)
    "affine-3": ("affine", 3, 64), "affine-4": ("affine", 4, 64), "affine-8": ("affine", 8, 64),
    "mxfp4": ("mxfp4", 4, 32), "nvfp4": ("nvfp4", 4, 16), "mxfp8": ("mxfp8", 8, 32),
}  # fmt: skip


def log_likelihoods(model: nn.Module, tokens: list[int]) -> np.ndarray:
    """log p of each token but the first after those before it: one plain pass, in float64 after the logits."""
    logits = np.array(model(mx.array([tokens]))[0].astype(mx.float32), np.float64)[:-1]
    log_p = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
    return log_p[np.arange(len(log_p)), np.array(tokens[1:], int)]


def llama_config(**changes) -> dict:
    return {
        "model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2, "intermediate_size": 128,
        "num_attention_heads": 4, "num_key_value_heads": 2, "rms_norm_eps": 1e-5, "vocab_size": VOCABULARY,
        "tie_word_embeddings": True, "max_position_embeddings": 512, "eos_token_id": 258, **changes,
    }  # fmt: skip


def tiny_llama(mode: str = "", **changes) -> llama.Model:
    """Two layers, 64 wide; dense, or quantised in a mode of MODES. The same weights each time."""
    mx.random.seed(7)
    config = llama_config(**changes)
    model = llama.Model(llama.ModelArgs.from_dict(config))
    if mode:
        name, bits, group = MODES[mode]
        model, _ = quantize_model(model, config, group, bits, mode=name)
    mx.eval(model.parameters())
    return model


def base_linear(mode: str = "", *, bias: bool = False, d_in: int = 64, d_out: int = 96) -> nn.Module:
    """A linear layer, dense or quantised, its output near 1 for inputs near 1."""
    mx.random.seed(11)
    layer = nn.Linear(d_in, d_out, bias=bias)
    if bias:
        layer.bias = mx.random.normal((d_out,))
    if mode:
        name, bits, group = MODES[mode]
        layer = nn.QuantizedLinear.from_linear(layer, group, bits, mode=name)
    mx.eval(layer.parameters())
    return layer


def byte_tokenizer(template: str | None = CHATML, *, begins: bool = False) -> PreTrainedTokenizerFast:
    """Every byte is a token, and four special ones; one that `begins` puts <s> before a text."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: index for index, letter in enumerate(letters)}
    tokenizer = Pieces(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = finish(tokenizer, template)
    if begins:
        start = [("<s>", fast.bos_token_id)]
        fast.backend_tokenizer.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=start)
    return fast


def spaced_tokenizer(template: str | None = CHATML) -> PreTrainedTokenizerFast:
    """Letters as a unigram model whose every text gets a leading space, like SentencePiece's in its Llama 2 setting."""
    pieces = [("<unk>", -20.0), ("▁", -2.0), ("\n", -2.0), ("▁yes", -1.0), ("▁no", -1.0)]
    pieces += [(chr(code), -3.0) for code in range(33, 127)]
    tokenizer = Pieces(models.Unigram(pieces, unk_id=0, byte_fallback=False))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=False)
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="always", split=False)
    return finish(tokenizer, template, unk_token="<unk>")


def finish(tokenizer: Pieces, template: str | None, **tokens: str) -> PreTrainedTokenizerFast:
    tokenizer.add_special_tokens(["<pad>", "<s>", "<|im_end|>", "<|im_start|>"])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="<|im_end|>", **tokens
    )
    fast.chat_template = template
    return fast


def wrapped(tokenizer: PreTrainedTokenizerFast, **settings) -> Tokenizer:
    return Tokenizer(TokenizerWrapper(tokenizer), **settings)


def write_model(folder: Path, mode: str = "", **changes) -> Path:
    """A model folder as `mlx_lm.convert` writes it."""
    config = llama_config(**changes)
    if mode:
        name, bits, group = MODES[mode]
        config["quantization"] = {"group_size": group, "bits": bits, "mode": name}
    folder.mkdir(parents=True)
    save_model(folder, tiny_llama(mode, **changes))
    (folder / "config.json").write_text(json.dumps(config))
    byte_tokenizer().save_pretrained(folder)
    return folder
