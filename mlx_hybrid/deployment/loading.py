"""The few lines that load an export, written as its README."""

import shlex
from collections.abc import Sequence

from mlx_hybrid.base_model import BUNDLED

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

BUNDLED_PATH = """"$(python -c 'import mlx_hybrid.base_model as m; print(m.BUNDLED_FOLDER)')\""""

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


def lora_readme(name: str, base: str, *, beside: bool, gguf: bool = False) -> str:
    base = f"{name}/{base}" if beside else base
    text = title(name) + LORA.format(name=name, base=base)
    text += GGUF.format(name=shlex.quote(name), base=shlex.quote(base)) if gguf else ""
    return text + ("\n" + BASE_HERE.format(base=base) if beside else "")


def pair_readme(name: str, base: str, names: Sequence[str], *, beside: bool) -> str:
    base = f"{name}/{base}" if beside else base
    text = (PAIR if len(names) > 1 else ROTATION) + ("\n" + BASE_HERE if beside else "")
    return title(name) + text.format(name=name, base=base, names=", ".join(names), order=list(names))


def mlx_lm_readme(name: str, base: str) -> str:
    model = BUNDLED_PATH if base == BUNDLED else shlex.quote(base)
    return title(name) + MLX_LM.format(name=shlex.quote(name), base=base, model=model)


def merged_readme(name: str) -> str:
    return title(name) + MERGED.format(name=name)


def mlx_readme(name: str) -> str:
    return title(name) + FOR_MLX.format(name=shlex.quote(name))


def title(name: str) -> str:
    return f"# {name}\n\n"
