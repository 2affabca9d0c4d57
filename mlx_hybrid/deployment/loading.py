"""The few lines that load an export, written as its README."""

import shlex
from collections.abc import Sequence

from mlx_hybrid.models.base import BUNDLED

ELSEWHERE = "path/to/"
BESIDE = "base"  # folder of a dequantised base in an export, and what the export's config calls it

LORA = """\
A LoRA for `{base}`, in PEFT's format. Scale and rotation are folded in; one rank, no patterns.

```python
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{base}")
model = AutoModelForCausalLM.from_pretrained("{base}", dtype="bfloat16")
model = PeftModel.from_pretrained(model, "{name}")
```
"""

PAIR = """\
Stock PEFT adapters for `{base}`, to be used together and in this order: {names}.

```python
from peft import PeftConfig, PeftMixedModel
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{base}")
model = AutoModelForCausalLM.from_pretrained("{base}", dtype="bfloat16")
adapters = {order}
model = PeftMixedModel(model, PeftConfig.from_pretrained(f"{name}/{{adapters[0]}}"), adapters[0])
for adapter in adapters:
    model.load_adapter(f"{name}/{{adapter}}", adapter_name=adapter)
model.set_adapter(adapters)
```

Servers that take LoRA only need the merged model: `mlx-hybrid export RUN --to merged`.
"""

ROTATION = """\
A rotation (OFT v2) for `{base}`, in PEFT's format.

```python
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{base}")
model = AutoModelForCausalLM.from_pretrained("{base}", dtype="bfloat16")
model = PeftModel.from_pretrained(model, "{name}/{names}")
```

Servers that take LoRA only need the merged model: `mlx-hybrid export RUN --to merged`.
"""

BASE_HERE = "`{base}` is the dequantised base in this folder: the adapter was trained on packed weights.\n"

BASE_FOLDER = (
    "`{base}` stands for the folder of the base, which has no name on the Hub: write where it is here.\n"
)

GGUF = """\

For llama.cpp, with its own converter:

```
python convert_lora_to_gguf.py {name} --base {base}
```
"""

MLX_LM = """\
A LoRA for stock mlx-lm, on `{base}` as it was trained on. Rotation and scale are folded in.

```
mlx_lm.generate --model {model} --adapter-path {name} --prompt "…"
mlx_lm.server --model {model} --adapter-path {name}
```
"""

BUNDLED_PATH = """"$(python -c 'import mlx_hybrid.models.base as m; print(m.BUNDLED_FOLDER)')\""""

MERGED = """\
A whole model with its adapter merged, bf16, under the base's own tensor names.

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{name}")
model = AutoModelForCausalLM.from_pretrained("{name}", dtype="bfloat16")
```
"""

FOR_MLX = """\
A whole model with its adapter merged, in MLX's own format (packed weights, or experts in stacks). MLX alone reads it:
transformers, vLLM and llama.cpp do not. For them: `mlx-hybrid export RUN --to merged`.

```
mlx-hybrid chat {name}
mlx_lm.generate --model {name} --prompt "…"
```
"""


def lora_readme(name: str, base: str, *, gguf: bool = False) -> str:
    base = place_of(name, base)
    text = title(name) + LORA.format(name=name, base=base)
    text += GGUF.format(name=shlex.quote(name), base=shlex.quote(base)) if gguf else ""
    return text + about(base, name)


def pair_readme(name: str, base: str, names: Sequence[str]) -> str:
    base = place_of(name, base)
    text = PAIR if len(names) > 1 else ROTATION
    text = text.format(name=name, base=base, names=", ".join(names), order=list(names))
    return title(name) + text + about(base, name)


def mlx_lm_readme(name: str, base: str) -> str:
    place = place_of(name, base)
    model = BUNDLED_PATH if base == BUNDLED else shlex.quote(place)
    text = MLX_LM.format(name=shlex.quote(name), base=place, model=model)
    return title(name) + text + about(place, name)


def is_folder(base: str) -> bool:
    """Whether an export's base is a local folder, of which only the last part is known."""
    return "/" not in base and base not in (BUNDLED, BESIDE)


def place_of(name: str, base: str) -> str:
    """What the lines that load an export call its base: a name that can be had, or a path to fill in."""
    if base == BESIDE:
        return f"{name}/{base}"
    return f"{ELSEWHERE}{base}" if is_folder(base) else base


def about(place: str, name: str) -> str:
    """What kind of place that is, where it has to be said."""
    if place == f"{name}/{BESIDE}":
        return "\n" + BASE_HERE.format(base=place)
    return "\n" + BASE_FOLDER.format(base=place) if place.startswith(ELSEWHERE) else ""


def merged_readme(name: str) -> str:
    return title(name) + MERGED.format(name=name)


def mlx_readme(name: str) -> str:
    return title(name) + FOR_MLX.format(name=shlex.quote(name))


def title(name: str) -> str:
    return f"# {name}\n\n"
