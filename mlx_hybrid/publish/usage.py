"""How to load what is published: on MLX, with PEFT, on vLLM."""

import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING

from mlx_hybrid.models.base import BUNDLED

if TYPE_CHECKING:
    from mlx_hybrid.publish.facts import Facts

VLLM_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""Ranks that vLLM 0.33 takes (--max-lora-rank); 1 too, but nothing gains from it."""
ELSEWHERE = "path/to/"
BESIDE = "base"  # folder of a dequantised base in an export, and what the export's config calls it


def use_section(facts: "Facts", repo: str) -> str:
    """Commands that work as they stand, for the form that is published."""
    writers = {"peft": use_peft, "lora": use_peft, "mlx-lm": use_mlx_lm, "merged": use_model, "model": use_model,
               "gguf-lora": use_peft, "mlx": use_mlx}  # fmt: skip
    return "## Use\n\n" + writers.get(facts.form, use_adapter)(facts, repo)


def block(language: str, *lines: str) -> str:
    return "\n".join([f"```{language}", *lines, "```"])


def use_adapter(facts: "Facts", repo: str) -> str:
    """An mlx-hybrid adapter: MLX as it is, PEFT and vLLM through an export."""
    name = repo.split("/")[-1]
    parts = [
        "On MLX:",
        block(
            "bash",
            "pip install mlx-hybrid",
            f"mlx-hybrid chat {repo}",
        ),
    ]
    if not facts.base_id and facts.base.get("id") != "bundled":
        parts += [
            "The base is not on the Hub, so whoever loads this needs the same files, named with "
            "`--base-model`; their fingerprint is checked."
        ]
    if facts.method == "lora" and facts.base_id:
        parts += [
            "or with mlx-lm alone:",
            block(
                "bash",
                f"hf download {repo} --local-dir {name}",
                f"mlx_lm.generate --model {facts.base_id} --adapter-path {name} --prompt …",
            ),
        ]
    merged = [f"mlx-hybrid export {repo} --to merged -o {name}-merged", f"vllm serve ./{name}-merged"]
    if facts.method == "full":
        return "\n\n".join([*parts, "On vLLM, as a whole model:", block("bash", *merged)])
    parts += ["With PEFT:", block("bash", f"mlx-hybrid export {repo} --to peft -o {name}-peft")]
    lora = [f"mlx-hybrid export {repo} --to lora -o {name}-lora", *serve_lora(facts, name, f"./{name}-lora")]
    parts += ["On vLLM:", block("bash", *(lora if facts.base_id else merged))]
    return "\n\n".join(parts)


def serve_lora(facts: "Facts", name: str, where: str) -> list[str]:
    base, download = facts.base_id or "BASE", []
    if base_beside(facts):  # vLLM takes no folder of a repository
        base, download = f"./{name}/{BESIDE}", [f"hf download {where} --local-dir {name}"]
        where = f"./{name}"
    rank = min(vllm_rank(lora_rank(facts)), VLLM_RANKS[-1])
    return [
        *download,
        f"vllm serve {base} --enable-lora --max-lora-rank {rank} --lora-modules {name}={where}",
    ]


def lora_rank(facts: "Facts") -> int:
    """Rank of the adapter as one LoRA: reflections add theirs, `lora-ga` doubles its own."""
    if "rank" in facts.export:
        return int(facts.export["rank"])
    adapter = facts.adapter
    if adapter is None:
        return VLLM_RANKS[0]
    if adapter.orthogonal == "butterfly":
        return 64
    return adapter.rank * (2 if adapter.start == "lora-ga" else 1) + (
        adapter.reflections if adapter.orthogonal == "householder" else 0
    )


def base_beside(facts: "Facts") -> bool:
    """Whether the base is published in the same repository, as an export leaves it."""
    return facts.export.get("base", {}).get("id") == BESIDE


def use_peft(facts: "Facts", repo: str) -> str:
    """Stock PEFT adapters: one LoRA, or several side by side."""
    name, order = repo.split("/")[-1], facts.export.get("load_order", [])
    base = f'"{repo}", subfolder="{BESIDE}"' if base_beside(facts) else f'"{facts.base_id or "BASE"}"'
    start = ["from transformers import AutoModelForCausalLM, AutoTokenizer", "",
             f"tokenizer = AutoTokenizer.from_pretrained({base})",
             f'model = AutoModelForCausalLM.from_pretrained({base}, dtype="bfloat16")']  # fmt: skip
    back = [
        "On MLX:",
        block(
            "bash",
            f"hf download {repo} --local-dir {name}",
            f"mlx-hybrid import {name} -o {name}-mlx",
            f"mlx-hybrid chat {name}-mlx",
        ),
    ]
    if not order:
        python = ["from peft import PeftModel", *start, f'model = PeftModel.from_pretrained(model, "{repo}")']
        serve = ["On vLLM:", block("bash", *serve_lora(facts, name, repo))]
        return "\n\n".join(["With PEFT:", block("python", *python), *serve, *back])
    python = [
        "from huggingface_hub import snapshot_download", "from peft import PeftConfig, PeftMixedModel", *start,
        f'folder = snapshot_download("{repo}")', f"adapters = {order!r}",
        'model = PeftMixedModel(model, PeftConfig.from_pretrained(f"{folder}/{adapters[0]}"), adapters[0])',
        "for adapter in adapters:", '    model.load_adapter(f"{folder}/{adapter}", adapter_name=adapter)',
        "model.set_adapter(adapters)",
    ]  # fmt: skip
    serve = ["vLLM takes LoRA alone; export the merged model for it: `mlx-hybrid export RUN --to merged`."]
    return "\n\n".join(
        ["With PEFT, all of them together, in this order:", block("python", *python), *serve, *back]
    )


def use_mlx_lm(facts: "Facts", repo: str) -> str:
    name = repo.split("/")[-1]
    base = facts.base_id or (BUNDLED_PATH if facts.base.get("id") == BUNDLED else "BASE")
    return block(
        "bash",
        f"hf download {repo} --local-dir {name}",
        f"mlx_lm.generate --model {base} --adapter-path {name} --prompt …",
    )


def use_mlx(facts: "Facts", repo: str) -> str:
    """A whole model in MLX's own format."""
    commands = block("bash", f"mlx-hybrid chat {repo}", f"mlx_lm.generate --model {repo} --prompt …")
    return f"On MLX, which alone reads this format:\n\n{commands}"


def use_model(facts: "Facts", repo: str) -> str:
    """A whole model: nothing to put on."""
    python = ["from transformers import AutoModelForCausalLM, AutoTokenizer", "",
              f'tokenizer = AutoTokenizer.from_pretrained("{repo}")',
              f'model = AutoModelForCausalLM.from_pretrained("{repo}", dtype="bfloat16")']  # fmt: skip
    return "\n\n".join([
        "On vLLM:", block("bash", f"vllm serve {repo}"),
        "With transformers; the adapter is merged, so PEFT is not needed:", block("python", *python),
        "On MLX, which reads it as it is:",
        block("bash", f"mlx-hybrid chat {repo}", f"mlx_lm.generate --model {repo} --prompt …"),
    ])  # fmt: skip


def vllm_rank(rank: int) -> int:
    """The smallest rank vLLM takes that holds `rank`; `rank` itself beyond its largest."""
    return next((r for r in VLLM_RANKS if r >= rank), rank)


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
