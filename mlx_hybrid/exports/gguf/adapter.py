"""An adapter as a GGUF file that llama.cpp, ollama and LM Studio load, written directly.

llama.cpp adds alpha / r · B A of `NAME.lora_a` (r, in) and `NAME.lora_b` (out, r), of each tensor's own rank r, to the
weight NAME. The rows of B are in the order in which it keeps those of the weight.
"""

from pathlib import Path

import numpy as np
from gguf import GGUFReader, GGUFWriter

from mlx_hybrid.errors import ConfigError
from mlx_hybrid.exports.lora import Factors, Forms, pad_rank
from mlx_hybrid.models.gguf.config import ARCHITECTURES, gguf_name, mlx_name, reordered

ADAPTER = "adapter.gguf"


def heads_of(config: dict) -> dict[str, int]:
    heads = config["num_attention_heads"]
    return {"q": heads, "k": config.get("num_key_value_heads") or heads}


def write_adapter(forms: Forms, config: dict, path: Path, where: str) -> None:
    """Write the LoRA of `forms` for a model of this config, in float32 and of one rank, which is alpha.

    Raises ConfigError for a model whose names in llama.cpp are not known here.
    """
    kind = config.get("model_type", "")
    if not (architecture := ARCHITECTURES.get(kind)):
        raise ConfigError(
            f"{where}: GGUF's names of a {kind} model are not known here, only those of "
            f"{', '.join(sorted(ARCHITECTURES))}; make a GGUF with llama.cpp's converter from --to merged."
        )
    writer = GGUFWriter(path, architecture)
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", float(forms.rank))
    for module, factors in sorted(forms.lora.items()):
        if (name := gguf_name(architecture, f"{module}.weight")) is None:
            told = f"{module} has no place in llama.cpp's {architecture}; use --to merged"
            raise ConfigError(f"{where}: {told}.")
        a, b = (np.ascontiguousarray(part.T, dtype=np.float32) for part in pad_rank(factors, forms.rank))
        writer.add_tensor(f"{name}.lora_a", a)
        b = np.ascontiguousarray(reordered(architecture, name, b, heads_of(config)))
        writer.add_tensor(f"{name}.lora_b", b)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def read_adapter(path: Path, config: dict) -> dict[str, Factors]:
    """A (in, r) and B (r, out) of every module of an adapter file in float64, the scale in B."""
    reader = GGUFReader(path)
    architecture = reader.get_field("general.architecture").contents()
    alpha, factors = reader.get_field("adapter.lora.alpha").contents(), {}
    stored = {tensor.name: tensor.data.astype(np.float64) for tensor in reader.tensors}
    for name in (key.removesuffix(".lora_a") for key in stored if key.endswith(".lora_a")):
        a, b = stored[f"{name}.lora_a"], stored[f"{name}.lora_b"]
        b = reordered(architecture, name, b, heads_of(config), back=True)
        factors[mlx_name(architecture, name).removesuffix(".weight")] = a.T, alpha / len(a) * b.T
    return factors
