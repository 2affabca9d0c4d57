"""Every kind of model that the method is run on, tiny and with random weights, built by mlx-lm."""

import importlib

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.utils import MODEL_REMAPPING, quantize_model
from toys import VOCABULARY

from mlx_hybrid.adapters.frozen import use_fast_products

COMMON = {
    "hidden_size": 64, "num_hidden_layers": 2, "intermediate_size": 128, "num_attention_heads": 4,
    "num_key_value_heads": 2, "rms_norm_eps": 1e-5, "vocab_size": VOCABULARY, "max_position_embeddings": 512,
}  # fmt: skip
MIXTURE = {
    "num_experts": 4, "num_experts_per_tok": 2, "decoder_sparse_step": 1, "mlp_only_layers": [0],
    "moe_intermediate_size": 64, "norm_topk_prob": True,
}  # fmt: skip
HEADS = {"head_dim": 16, "rope_theta": 1e4, "tie_word_embeddings": True}
ARCHITECTURES: dict[str, dict] = {
    "llama": {},
    "mistral": {"rope_theta": 1e6, "tie_word_embeddings": False},
    "qwen2": {},
    "qwen3": HEADS,
    "qwen3_moe": HEADS | MIXTURE,
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "gemma3_text": {"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 8, "sliding_window_pattern": 2},
    "phi3": {"num_hidden_layers": 2},
    "smollm3": {"no_rope_layer_interval": 2, "tie_word_embeddings": True},
    "olmo2": {},
    "lfm2": {
        "norm_eps": 1e-5, "conv_bias": False, "conv_L_cache": 3, "block_dim": 64, "block_ff_dim": 128,
        "block_multiple_of": 32, "block_ffn_dim_multiplier": 1.0, "block_auto_adjust_ff_dim": False,
        "layer_types": ["conv", "full_attention"],
    },
    "mamba2": {
        "num_heads": 8, "head_dim": 16, "state_size": 64, "layer_norm_epsilon": 1e-5, "conv_kernel": 4, "n_groups": 1,
        "use_bias": False, "use_conv_bias": True, "tie_word_embeddings": True, "time_step_limit": (0.0, 1e9),
        "time_step_rank": "auto",
    },
}  # fmt: skip


def tiny(name: str, mode: str = "") -> nn.Module:
    """Two layers of an architecture, dense or at 4 bits; the same weights each time."""
    mx.random.seed(7)
    config = {"model_type": name, **COMMON, **ARCHITECTURES[name]}
    module = importlib.import_module(f"mlx_lm.models.{MODEL_REMAPPING.get(name, name)}")
    model = module.Model(module.ModelArgs.from_dict(config))
    if mode:
        model, _ = quantize_model(model, config, 32, 4)
    mx.eval(model.parameters())
    return use_fast_products(model).eval()
