"""The model card: everything a reader of the page should know, from what the run wrote down."""

import hashlib
import re
from pathlib import Path
from typing import Any

from mlx_hybrid.config import to_tree
from mlx_hybrid.evaluation.results import ALL
from mlx_hybrid.files import HUB_ID, write_text
from mlx_hybrid.publish.facts import Facts, run_facts
from mlx_hybrid.publish.results import NAMES, eval_result
from mlx_hybrid.publish.usage import fill, usage
from mlx_hybrid.records.languages import card_code
from mlx_hybrid.run import Run

HEAD = "---\n{{ card_data }}\n---\n\n{{ body }}"
MARK = "<!-- made by mlx-hybrid; while this line fits the text above it, the card is made anew: sha256 {} -->"
MADE = re.compile(r"\n<!-- made by mlx-hybrid;[^>]*sha256 (\w+) -->\n?\Z")
LIBRARIES = {"merged": "transformers", "model": "transformers", "gguf": "gguf"} | dict.fromkeys(
    ("adapter", "mlx-lm", "mlx"), "mlx"
)
WHOLE = ("merged", "mlx", "model")


def model_card(facts: Facts, repo: str) -> str:
    """The card's text, with the metadata that the Hub reads."""
    from huggingface_hub import ModelCard

    unsettled = {r.adapted.language for r in facts.results if r.difference and not r.difference.settled}
    known = {
        "packed": packing(facts.base.get("quantization") or {}),
        "adapter_rows": adapter_rows(facts.adapter) if facts.adapter and not facts.adapter.full else [],
        "metric_names": NAMES,
        "unsettled": sorted(unsettled - {ALL}),
    }
    body = fill("card.md.jinja", usage(facts, repo) | known)
    text = str(ModelCard.from_template(metadata(facts), template_str=HEAD, body=body))
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


def adapter_rows(adapter: Any) -> list[tuple[str, Any]]:
    """The settings that matter for the branches that are on."""
    rotation, low_rank = adapter.rotation, adapter.low_rank
    values: dict[str, Any] = {"rotation": rotation.kind if rotation else "none"}
    for branch in filter(None, (rotation, low_rank)):
        values |= {key: value for key, value in to_tree(branch).items() if key not in ("kind", "magnitude")}
    values |= {"mixing": adapter.mixing} if rotation and low_rank else {}
    values |= {"unitary": ", ".join(adapter.unitary)} if adapter.unitary else {}
    return [(key.replace("_", " "), value) for key, value in values.items()]


def packing(quantization: dict) -> str:
    """How the base's weights are packed, those packed otherwise by name of their last part."""

    def told(value: dict | bool) -> str:
        packed = isinstance(value, dict)
        return f"{value['bits']} bits, groups of {value['group_size']}" if packed else "not packed"

    usual = told(quantization) if "bits" in quantization else ""
    kinds: dict[str, set[str]] = {}
    for name, value in quantization.items():
        if isinstance(value, dict | bool):
            kinds.setdefault(told(value), set()).add(name.rpartition(".")[2])
    others = [f"{', '.join(sorted(names))}: {said}" for said, names in kinds.items() if said != usual]
    return "; ".join(filter(None, [usual, *others]))
