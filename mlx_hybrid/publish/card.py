"""The model card: everything a reader of the page should know, from what the run wrote down."""

import hashlib
import re
from pathlib import Path
from typing import Any

from mlx_hybrid.files import HUB_ID, write_text
from mlx_hybrid.publish.facts import Facts, run_facts
from mlx_hybrid.publish.results import eval_results, measured_on, results_table
from mlx_hybrid.publish.usage import use_section
from mlx_hybrid.run import Run

MARK = "<!-- made by mlx-hybrid; while this line fits the text above it, the card is made anew: sha256 {} -->"
MADE = re.compile(r"\n<!-- made by mlx-hybrid;[^>]*sha256 (\w+) -->\n?\Z")
TRAIN_KEYS = (
    "batch_size", "accumulate", "learning_rate", "orthogonal_learning_rate", "schedule", "warmup", "weight_decay",
    "clip", "max_tokens",
)  # fmt: skip


def model_card(facts: Facts, repo: str) -> str:
    """The card's text, with the metadata that the Hub reads."""
    parts = [
        f"# {facts.name}", summary(facts), use_section(facts, repo), training_section(facts), data_section(facts),
        results_section(facts), limits_section(facts),
    ]  # fmt: skip
    body = "---\n" + metadata(facts) + "\n---\n\n" + "\n\n".join(part for part in parts if part) + "\n"
    return body + "\n" + MARK.format(digest(body)) + "\n"


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


def metadata(facts: Facts) -> str:
    from huggingface_hub import ModelCardData

    from mlx_hybrid.governance.folder.card import card_code

    library = {
        "adapter": "mlx",
        "mlx-lm": "mlx",
        "mlx": "mlx",
        "merged": "transformers",
        "model": "transformers",
    }
    results = (
        [] if facts.export.get("faults") else facts.results
    )  # those are of the adapter, not of these files
    relation = {"merged": "finetune", "mlx": "finetune", "model": "finetune"}.get(facts.form, "adapter")
    data = ModelCardData(
        language=sorted({card_code(language) for language in facts.languages}) or None,
        library_name=library.get(facts.form, "peft"), pipeline_tag="text-generation",
        base_model=facts.base_id or None, base_model_relation=relation if facts.base_id else None,
        datasets=[path for path in data_paths(facts) if HUB_ID.fullmatch(path) and not Path(path).exists()] or None,
        tags=[tag for tag in ("mlx-hybrid", facts.method, "lora" if facts.form in ("peft", "lora") else "") if tag],
        model_name=facts.name, eval_results=eval_results(results) or None,
    )  # fmt: skip
    if not results:
        data.model_name = None  # without results the name alone makes no index
    return data.to_yaml().strip()


def data_paths(facts: Facts) -> tuple[str, ...]:
    return facts.config.data.paths if facts.config else ()


def summary(facts: Facts) -> str:
    what = {
        "merged": "A model with its adapter merged in", "model": "A model",
        "mlx": "A model for MLX with its adapter merged in",
        "peft": "An adapter in PEFT's format", "lora": "A LoRA", "mlx-lm": "An adapter for mlx-lm",
        "gguf-lora": "A LoRA for llama.cpp's converter",
    }.get(facts.form, "An adapter for MLX")  # fmt: skip
    method = f", trained with the method `{facts.method}`" if facts.method else ""
    base = f" on {base_text(facts)}" if facts.base or facts.base_id else ""
    return f"{what}{base}{method}, made with mlx-hybrid."


def base_text(facts: Facts) -> str:
    if facts.base_id:
        return f"[{facts.base_id}](https://huggingface.co/{facts.base_id})"
    name = facts.base.get("id", "")
    return (
        "the small model that comes with mlx-hybrid"
        if name == "bundled"
        else f"a model named `{name}`, which is not on the Hub"
    )


def training_section(facts: Facts) -> str:
    """Base, adapter and hyper-parameters, each value that was used."""
    rows: list[tuple[str, Any]] = []
    if facts.base:
        packed = facts.base.get("quantization") or {}
        rows += [
            ("base", base_text(facts)),
            ("base fingerprint", f"`{facts.base.get('fingerprint', '')[:16]}`"),
        ]
        rows += (
            [("base weights", f"{packed['bits']} bits, groups of {packed['group_size']}")]
            if packed.get("bits")
            else []
        )
    if facts.method:
        rows += [("method", f"`{facts.method}`"), ("adapted modules", facts.modules or "all weights")]
    rows += adapter_rows(facts.adapter) if facts.adapter and facts.method != "full" else []
    if facts.config:
        rows += [(key.replace("_", " "), getattr(facts.config.train, key)) for key in TRAIN_KEYS]
    info = facts.info
    rows += [(label, info[key]) for key, label in (("step", "steps"), ("best_step", "step kept"), ("seed", "seed"),
             ("seconds", "seconds")) if info.get(key) is not None]  # fmt: skip
    machine = info.get("machine", {})
    rows += (
        [("machine", f"{machine.get('system')} {machine.get('machine')}, {machine.get('device')}")]
        if machine
        else []
    )
    rows += (
        [("versions", ", ".join(f"{n} {v}" for n, v in machine["versions"].items()))]
        if machine.get("versions")
        else []
    )
    return "## Training\n\n" + table(("", ""), rows) if rows else ""


def adapter_rows(adapter: Any) -> list[tuple[str, Any]]:
    """The settings that matter for the branches that are on."""
    keys = ["orthogonal"]
    keys += {"householder": ["reflections"], "butterfly": ["block_size", "factors"]}.get(
        adapter.orthogonal, []
    )
    keys += ["rank", "alpha", "rslora", "start", "dropout"] if adapter.rank else []
    keys += ["mixing"] if adapter.rank and adapter.orthogonal != "none" else []
    keys += ["unitary"] if adapter.unitary else []
    values = {key: getattr(adapter, key) for key in keys}
    return [(k.replace("_", " "), ", ".join(v) if isinstance(v, tuple) else v) for k, v in values.items()]


def data_section(facts: Facts) -> str:
    """Which records, and what governance took out."""
    lines = []
    if records := facts.info.get("records"):
        sizes = f"{records['train']} to train, {records['valid']} to choose the best step, {records['test']} held out"
        lines.append(f"Records: {sizes}. Hash of the tokens: `{facts.info.get('data_hash', '')[:16]}`.")
    if facts.languages:
        lines.append(f"Languages: {', '.join(facts.languages)}.")
    governed = facts.info.get("governance")
    if governed:
        lines.append(f"Governance kept {governed['kept']} records and set {governed['rejected']} aside.")
        lines.append(
            table(("reason", "records"), list(governed["reasons"].items())) if governed["reasons"] else ""
        )
    for manifest in facts.manifests:
        lines.append(f"Data manifest: sha256 `{manifest['sha256']}`.")
        kept = [(row["language"], row["kept"]) for row in manifest["languages"]]
        lines.append(table(("language", "records kept"), kept) if kept else "")
        counts = [
            (row["stage"], row["reason"], row["records"])
            for row in manifest.get("counts", [])
            if row.get("records")
        ]
        lines.append(table(("stage", "reason", "records"), counts) if counts else "")
    return "## Data\n\n" + "\n\n".join(line for line in lines if line) if lines else ""


def results_section(facts: Facts) -> str:
    if not facts.results:
        return ""
    calibration = [row for row in facts.results if row.metric in ("ece", "nll", "brier")]
    others = [row for row in facts.results if row not in calibration]
    text = "## Results\n\nIntervals are 95 % bootstrap intervals; the difference is paired, on the same records.\n\n"
    text += f"{where}\n\n" if (where := measured_on(facts.export)) else ""
    text += "\n".join(results_table(others))
    return text + ("\n\n### Calibration\n\n" + "\n".join(results_table(calibration)) if calibration else "")


def limits_section(facts: Facts) -> str:
    """What the numbers do not show, from the numbers themselves."""
    lines = []
    open_rows = [row for row in facts.results if row.language and row.difference and not row.settled]
    if not facts.results:
        lines.append("Nothing was measured on held-out records.")
    elif open_rows:
        named = ", ".join(sorted({row.language for row in open_rows}))
        lines.append(
            f"The interval of the difference includes zero for {named}: there the change is not established."
        )
    if facts.results and not [row for row in facts.results if row.metric == "ece"]:
        lines.append("Calibration was not measured.")
    if facts.languages:
        lines.append("Nothing is known here about other languages than those above.")
    lines.append("The limits and the licence of the base apply to what it says with this adapter too.")
    lines.append("No licence of its own is stated; whoever publishes this card adds `license` at its head.")
    return "## Limits\n\n" + "\n".join(f"- {line}" for line in lines)


def table(head: tuple[str, ...], rows: list[tuple]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join(lines + ["| " + " | ".join(str(cell) for cell in row) + " |" for row in rows])
