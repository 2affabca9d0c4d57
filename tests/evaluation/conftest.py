"""Models and tokenizers small enough for tests, and the development data where it is."""

import os
from pathlib import Path

import mlx.core as mx
import pytest
from mlx_lm.models import gemma2, llama
from toys import byte_tokenizer, wrapped

SIZES = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
    "vocab_size": 320,
}


def tiny(family, **changes):
    """A model of one of mlx-lm's families."""
    mx.random.seed(7)
    name = family.__name__.rpartition(".")[2]
    model = family.Model(family.ModelArgs.from_dict({**SIZES, "model_type": name, **changes}))
    mx.eval(model.parameters())
    return model


@pytest.fixture(scope="session")
def model() -> llama.Model:
    return tiny(llama, tie_word_embeddings=True)


@pytest.fixture(scope="session")
def other_model() -> llama.Model:
    return tiny(llama, tie_word_embeddings=False)


@pytest.fixture(scope="session")
def windowed_model() -> llama.Model:
    """Sliding-window and full attention in turn."""
    layers = ["sliding_attention", "full_attention"]
    return tiny(llama, tie_word_embeddings=True, layer_types=layers, sliding_window=5)


@pytest.fixture(scope="session")
def capped_model() -> gemma2.Model:
    """Caps its logits after the head."""
    return tiny(gemma2, head_dim=16, final_logit_softcapping=2.0)


@pytest.fixture(scope="session")
def tokenizer():
    """Bytes, begun with <s>, for a model without a chat template."""
    return wrapped(byte_tokenizer(None, begins=True))


@pytest.fixture(scope="session")
def data() -> Path:
    root = Path(__file__).resolve().parents[2]
    folder = Path(os.environ.get("MLX_HYBRID_DATA", root.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no development data at {folder}")
    return folder
