"""How to load what is published: on MLX, with PEFT, on vLLM."""

from typing import TYPE_CHECKING

from mlx_hybrid.deployment.loading import BESIDE, BUNDLED_PATH
from mlx_hybrid.models.base import BUNDLED

if TYPE_CHECKING:
    from mlx_hybrid.publish.card import Facts

VLLM_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # values that --max-lora-rank takes


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
    rank = next((rank for rank in VLLM_RANKS if rank >= lora_rank(facts)), VLLM_RANKS[-1])
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
