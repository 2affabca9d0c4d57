"""An adapter folder that stock mlx-lm loads: `mlx_lm.generate --adapter-path`, `mlx_lm.server`, `mlx_lm.load`.

mlx-lm gives every named sub-module of the last `num_layers` layers one rank and one scale; modules without an update
start at zero there, so they may be left out.
"""

from pathlib import Path

import mlx.core as mx
import numpy as np

from mlx_hybrid.adapters.store import CONFIG_FILE, WEIGHTS_FILE
from mlx_hybrid.adapters.targets import layer_index, within_layer
from mlx_hybrid.exports.lora import float64, pad_rank
from mlx_hybrid.exports.peft import Forms, update_faults
from mlx_hybrid.files import write_json


def write_mlx_lm(forms: Forms, folder: Path, *, base_id: str, layers: int) -> list[str]:
    """Write the exact LoRA of `forms` for a model of so many `layers`; faults of what is read back."""
    tensors = {}
    for module, factors in forms.lora.items():
        a, b = pad_rank(factors, forms.rank)
        tensors[f"{module}.lora_a"] = mx.array(a.astype(np.float32))
        tensors[f"{module}.lora_b"] = mx.array(b.astype(np.float32))
    mx.save_safetensors(str(folder / WEIGHTS_FILE), tensors, metadata={"format": "mlx"})
    first = min((index for m in forms.lora if (index := layer_index(m)) is not None), default=0)
    parameters = {"rank": forms.rank, "scale": 1.0, "dropout": 0.0}
    tree = {
        "fine_tune_type": "lora",
        "model": base_id,
        "num_layers": layers - first,
        "lora_parameters": parameters | {"keys": sorted({within_layer(m) for m in forms.lora})},
    }
    write_json(folder / CONFIG_FILE, tree)
    stored = mx.load(str(folder / WEIGHTS_FILE))
    return update_faults(
        forms, {m: (float64(stored[f"{m}.lora_a"]), float64(stored[f"{m}.lora_b"])) for m in forms.lora}
    )
