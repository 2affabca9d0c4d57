"""A model, its tokenizer and a trained-looking adapter, small enough to make in a moment."""

import json
from pathlib import Path

import mlx.core as mx
from mlx.utils import tree_flatten, tree_unflatten
from mlx_lm.models import llama
from mlx_lm.utils import save_config, save_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from mlx_hybrid.adapters.attach import attach
from mlx_hybrid.adapters.store import save_adapter
from mlx_hybrid.config import dump_config, load_config
from mlx_hybrid.files import write_json
from mlx_hybrid.models.base import load_base
from mlx_hybrid.run import Run

SPECIAL = ["<s>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>"]
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def write_base(
    folder: Path, *, template: str | None = TEMPLATE, context: int = 256, endless: bool = False
) -> Path:
    """A random two-layer llama that speaks ASCII, character by character; an endless one never ends a greedy answer."""
    folder.mkdir(parents=True)
    vocabulary = write_tokenizer(folder, template)
    values = {
        "model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2, "intermediate_size": 96,
        "num_attention_heads": 4, "num_key_value_heads": 2, "rms_norm_eps": 1e-5, "vocab_size": vocabulary,
        "tie_word_embeddings": not endless, "max_position_embeddings": context, "eos_token_id": 97,
        "architectures": ["LlamaForCausalLM"],
    }  # fmt: skip
    mx.random.seed(3)
    model = llama.Model(llama.ModelArgs.from_dict(values))
    model.apply(lambda leaf: leaf * 3)
    silent = mx.array([vocabulary - len(SPECIAL), *range(vocabulary - 3, vocabulary)])
    model.model.embed_tokens.weight[silent] *= 0.01  # an answer holds no control token but its end
    if endless:
        model.lm_head.weight[values["eos_token_id"]] = 0
    save_model(folder, model)
    save_config(values, folder / "config.json")
    return folder


def write_tokenizer(folder: Path, template: str | None) -> int:
    alphabet = [
        "Ġ",
        "Ċ",
        *(chr(code) for code in range(0x21, 0x7F)),
    ]  # ASCII alone: every answer is valid text
    vocabulary = {piece: i for i, piece in enumerate([*alphabet, *SPECIAL])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(SPECIAL)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "<|end|>"}
    config |= {"chat_template": template} if template else {}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return len(vocabulary)


def write_run(folder: Path, base: Path, *, method: str = "hybrid") -> Run:
    """A finished run on `base`, its adapter away from zero."""
    folder.mkdir(parents=True)
    config = load_config(None, (), {"model": str(base), "method": method, "data.paths": ["samples"]})
    loaded = load_base(str(base))
    attach(loaded.model, config.adapter)
    disturb(loaded.model)
    run = Run(folder)
    save_adapter(
        loaded.model, run.adapter, config=config.adapter, method=method, base=loaded.identity, seed=0
    )
    (folder / "config.yaml").write_text(dump_config(config))
    write_json(folder / "run.json", {
        "format": 1, "status": "finished", "method": method, "seed": 0, "base": loaded.identity, "step": 40,
        "best_step": 32, "seconds": 61.5, "started": "2026-01-02T03:04:05", "data": ["records.jsonl"],
        "records": {"train": 90, "valid": 10, "test": 20},
    })  # fmt: skip
    return run


def disturb(model: llama.Model, size: float = 0.2) -> None:
    mx.random.seed(7)
    moved = [(k, v + size * mx.random.normal(v.shape)) for k, v in tree_flatten(model.trainable_parameters())]
    model.update(tree_unflatten(moved))
    mx.eval(model.parameters())
