"""The model card, and the README of an export: what a reader should know, from what was written down."""

import hashlib
import re
import shlex
from pathlib import Path
from typing import Any

from mlx_hybrid.config import BUNDLED, to_tree
from mlx_hybrid.evaluation.metrics.intervals import LEVEL
from mlx_hybrid.evaluation.results import ALL, Row
from mlx_hybrid.files import HUB_ID, render, write_text
from mlx_hybrid.models.gguf.file import OLLAMA
from mlx_hybrid.publish.facts import Facts, Measured, run_facts
from mlx_hybrid.records.languages import card_code
from mlx_hybrid.run import Run

MARK = "<!-- made by mlx-hybrid; while this line fits the text above it, the card is made anew: sha256 {} -->"
MADE = re.compile(r"\n<!-- made by mlx-hybrid;[^>]*sha256 (\w+) -->\n?\Z")
LIBRARIES = dict.fromkeys(("adapter", "mlx-lm", "mlx"), "mlx")
LIBRARIES |= {"merged": "transformers", "model": "transformers", "gguf": "gguf"}
WHOLE = ("merged", "mlx", "model")
CLASSIFICATION = ("accuracy", "macro_f1", "ece", "brier")
VLLM_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""Ranks that vLLM 0.33 takes (--max-lora-rank); 1 too, but nothing gains from it."""
BESIDE = "base"
"""Folder of a dequantised base in an export, and what the export's config calls it."""
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
    return vars(facts) | {
        "facts": facts,
        "repo": repo,
        "name": name,
        "base_id": facts.base_id or base,
        "beside": base == BESIDE,
        "place": place,
        "shell_base": BUNDLED_PATH if base == BUNDLED else shlex.quote(place),
        "rank": min(vllm_rank(lora_rank(facts)), VLLM_RANKS[-1]),
    }


def is_folder(base: str) -> bool:
    """Whether an export's base is a local folder, of which only the last part is known."""
    return "/" not in base and base not in (BUNDLED, BESIDE) and not base.startswith(OLLAMA)


def place_of(name: str, base: str) -> str:
    """What the lines that load an export call its base: a name that can be had, or a path to fill in."""
    if base == BESIDE:
        return f"{name}/{base}"
    return f"path/to/{base}" if is_folder(base) else base


def vllm_rank(rank: int) -> int:
    """The smallest rank vLLM takes that holds `rank`; `rank` itself beyond its largest."""
    return next((r for r in VLLM_RANKS if r >= rank), rank)


def lora_rank(facts: Facts) -> int:
    """Rank of the adapter as one LoRA: reflections add theirs, `lora-ga` doubles its own; 64 of a butterfly."""
    if "rank" in facts.export or not facts.adapter:
        return facts.export.get("rank", VLLM_RANKS[0])
    rotation, low_rank = facts.adapter.rotation, facts.adapter.low_rank
    if rotation and rotation.kind == "butterfly":
        return 64
    rank = low_rank.rank * (2 if low_rank.start == "lora-ga" else 1) if low_rank else 0
    return rank + (rotation.reflections if rotation else 0)


def model_card(facts: Facts, repo: str) -> str:
    """The card's text, with the metadata that the Hub reads."""
    adapter = facts.adapter
    unsettled = {r.adapted.language for r in facts.results if r.difference and not r.difference.settled}
    known = {
        "packed": packing(facts.base.get("quantization") or {}),
        "branches": [to_tree(own) for own in (adapter.rotation, adapter.low_rank) if own] if adapter else [],
        "unsettled": sorted(unsettled - {ALL}),
    }
    body = fill("card.md.jinja", usage(facts, repo) | known)
    text = f"---\n{metadata(facts)}\n---\n\n{body}"
    return text + "\n" + MARK.format(digest(text)) + "\n"


def digest(body: str) -> str:
    return hashlib.sha256(body.strip().encode()).hexdigest()[:16]


def is_made(text: str) -> bool:
    """Whether a card is as `model_card` made it, so that nobody's words are lost when it is made anew."""
    mark = MADE.search(text)
    return mark is not None and digest(text[: mark.start()]) == mark[1]


def write_card(run: Run) -> bool:
    """Draft the card of a run as its README.md, unless somebody has written there; whether it was written."""
    path = run.path / "README.md"
    if path.exists() and not is_made(path.read_text(encoding="utf-8")):
        return False
    write_text(path, model_card(run_facts(run), f"OWNER/{run.name}"))
    return True


def metadata(facts: Facts) -> Any:
    """What the Hub reads. Results are the adapter's: files that failed their check carry none."""
    from huggingface_hub import ModelCardData

    results = [] if facts.export.get("faults") else facts.results
    paths = facts.config.data.paths if facts.config else ()
    relation = "finetune" if facts.form in WHOLE or facts.export.get("merged") else "adapter"
    tags = ("mlx-hybrid", facts.method, "lora" if facts.form in ("peft", "lora") else "")
    return ModelCardData(
        language=sorted({card_code(language) for language in facts.languages}) or None,
        library_name=LIBRARIES.get(facts.form, "peft"),
        pipeline_tag="text-generation",
        base_model=facts.base_id or None,
        base_model_relation=relation if facts.base_id else None,
        datasets=[path for path in paths if HUB_ID.fullmatch(path) and not Path(path).exists()] or None,
        tags=[tag for tag in tags if tag],
        model_name=facts.name if results else None,
        eval_results=[eval_result(row) for row in results] or None,
    )


def eval_result(row: Measured) -> Any:
    """A row as the Hub's EvalResult; the interval and the base stand in `metric_args`.

    https://github.com/huggingface/hub-docs/blob/main/modelcard.md
    """
    from huggingface_hub import EvalResult

    own, language = row.adapted, row.adapted.language
    known: dict[str, Any] = {"records": own.n} | ({"level": LEVEL, **bounds(own)} if bounds(own) else {})
    if row.base:
        known["base"] = round(row.base.value, 6)
    if row.difference:
        known["difference"] = {"value": round(row.difference.value, 6), **bounds(row.difference)}
    return EvalResult(
        task_type="text-classification" if own.metric in CLASSIFICATION else "text-generation",
        dataset_type=row.task.replace(" ", "-"),
        dataset_name=row.task,
        dataset_config=None if language == ALL else language,
        dataset_args={"language": card_code(language)} if row.of_language else None,
        metric_type=own.metric,
        metric_name=own.metric.replace("_", " "),
        metric_value=round(own.value, 6),
        metric_args=known,
    )


def bounds(row: Row) -> dict[str, float]:
    return {} if row.low is None else {"low": round(row.low, 6), "high": round(row.high, 6)}


def packing(quantization: dict) -> str:
    """How the base's weights are packed, those packed otherwise by name of their last part."""

    def told(value: dict | bool) -> str:
        packed = isinstance(value, dict)
        return f"{value['bits']} bits, groups of {value['group_size']}" if packed else "not packed"

    kinds = {told(quantization): set()} if "bits" in quantization else {}
    for name, value in quantization.items():
        if isinstance(value, dict | bool):
            kinds.setdefault(told(value), set()).add(name.rpartition(".")[2])
    usual, *others = kinds or [""]
    return "; ".join([usual, *(f"{', '.join(sorted(kinds[said]))}: {said}" for said in others)])
