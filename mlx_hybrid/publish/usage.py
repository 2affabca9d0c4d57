"""How to load what was made: the head of a model card, and the README of an export."""

import shlex
from pathlib import Path
from typing import Any

from mlx_hybrid.files import render
from mlx_hybrid.models.base import BUNDLED
from mlx_hybrid.models.gguf.file import OLLAMA
from mlx_hybrid.publish.facts import Facts

VLLM_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""Ranks that vLLM 0.33 takes (--max-lora-rank); 1 too, but nothing gains from it."""
BESIDE = "base"
"""Folder of a dequantised base in an export, and what the export's config calls it."""
ELSEWHERE = "path/to/"
BUNDLED_PATH = """"$(python -c 'import mlx_hybrid.models.base as m; print(m.BUNDLED_FOLDER)')\""""


def readme(name: str, export: dict) -> str:
    """The README of an export in the folder `name`, from its report."""
    return fill("use.md.jinja", usage(Facts(name).take_export(export)))


def fill(template: str, values: dict[str, Any]) -> str:
    """A template of this folder, filled in."""
    return render(Path(__file__).with_name(template), values, sh=shlex.quote).rstrip() + "\n"


def usage(facts: Facts, repo: str = "") -> dict[str, Any]:
    """What use.md.jinja asks; without a `repo` the files are in a local folder of the facts' name."""
    name = repo.split("/")[-1] or facts.name
    base = (facts.export or vars(facts)).get("base", {}).get("id", "")
    place = place_of(name, base)
    beside = base == BESIDE
    in_repo = f'"{repo}", subfolder="{BESIDE}"'
    return vars(facts) | {
        "facts": facts,
        "base_text": base_text(facts),
        "repo": repo,
        "name": name,
        "where": repo or f"./{name}",
        "base_id": facts.base_id or base,
        "on_hub": bool(facts.base_id),
        "beside": beside,
        "is_folder": is_folder(base),
        "place": place,
        "base_code": in_repo if beside and repo else f'"{place}"',
        "server_base": f"./{place}" if beside else place,
        "shell_base": BUNDLED_PATH if base == BUNDLED else shlex.quote(place),
        "rank": min(vllm_rank(lora_rank(facts)), VLLM_RANKS[-1]),
    }


def base_text(facts: Facts) -> str:
    """What a reader is told of the base; nothing where none is known."""
    if facts.base_id:
        return f"[{facts.base_id}](https://huggingface.co/{facts.base_id})"
    name = facts.base.get("id", "")
    elsewhere = f"a model named `{name}`, which is not on the Hub" if name else ""
    known = {BUNDLED: "the small model that comes with mlx-hybrid", BESIDE: "the unpacked base beside it"}
    return known.get(name, elsewhere)


def is_folder(base: str) -> bool:
    """Whether an export's base is a local folder, of which only the last part is known."""
    return "/" not in base and base not in (BUNDLED, BESIDE) and not base.startswith(OLLAMA)


def place_of(name: str, base: str) -> str:
    """What the lines that load an export call its base: a name that can be had, or a path to fill in."""
    if base == BESIDE:
        return f"{name}/{base}"
    return f"{ELSEWHERE}{base}" if is_folder(base) else base


def vllm_rank(rank: int) -> int:
    """The smallest rank vLLM takes that holds `rank`; `rank` itself beyond its largest."""
    return next((r for r in VLLM_RANKS if r >= rank), rank)


def lora_rank(facts: Facts) -> int:
    """Rank of the adapter as one LoRA: reflections add theirs, `lora-ga` doubles its own; 64 of a butterfly."""
    if "rank" in facts.export or facts.adapter is None:
        return int(facts.export.get("rank", VLLM_RANKS[0]))
    rotation, low_rank = facts.adapter.rotation, facts.adapter.low_rank
    if rotation and rotation.kind == "butterfly":
        return 64
    rank = low_rank.rank * (2 if low_rank.start == "lora-ga" else 1) if low_rank else 0
    return rank + (rotation.reflections if rotation else 0)
