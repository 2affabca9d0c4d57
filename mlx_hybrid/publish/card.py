"""The model card, and the README of an export: what a reader should know, from what was written down."""

import hashlib
import re
import shlex
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Self

from huggingface_hub import EvalResult, ModelCardData

from mlx_hybrid.adapters.store import read_adapter_config
from mlx_hybrid.config import BUNDLED, Config, to_tree
from mlx_hybrid.errors import ConfigError
from mlx_hybrid.evaluation.metrics.intervals import LEVEL
from mlx_hybrid.evaluation.results import ALL, DIFFERENCE, RETENTION, Results, Row, read_results
from mlx_hybrid.files import HUB_ID, read_json, render, sha256_of, write_text
from mlx_hybrid.models.gguf.file import OLLAMA
from mlx_hybrid.records.languages import card_code
from mlx_hybrid.run import Run

MARK = "<!-- made by mlx-hybrid; while this line fits the text above it, the card is made anew: sha256 {} -->"
MADE = re.compile(r"\n<!-- made by mlx-hybrid;[^>]*sha256 (\w+) -->\n?\Z")
FORMS = {"fused model": "merged", "fused model for MLX": "mlx"}  # of exports that hold a model, by their kind
LIBRARIES = dict.fromkeys(("adapter", "mlx-lm", "mlx"), "mlx")
LIBRARIES |= {"merged": "transformers", "model": "transformers", "gguf": "gguf"}
WHOLE = ("merged", "mlx", "model")
CLASSIFICATION = ("accuracy", "macro_f1", "ece", "brier")
VLLM_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # that vLLM 0.33 takes (--max-lora-rank); 1 too, for no gain
BESIDE = "base"  # folder of a dequantised base in an export, and what the export's config calls it
BUNDLED_PATH = """"$(python -c 'import mlx_hybrid.models.base as m; print(m.BUNDLED_FOLDER)')\""""
METRICS = ("loss", "accuracy", "macro_f1", "bits_per_byte", "chrf", "ece", "nll", "brier")
BY_LANGUAGE = ("accuracy", "bits_per_byte", "chrf")


class Measured(NamedTuple):
    """One figure of the adapted model on one set, beside the base's and what the adapter changed, where known."""

    task: str
    adapted: Row
    base: Row | None = None
    difference: Row | None = None

    @property
    def of_language(self) -> bool:
        """Whether it is of one language, neither of the whole nor of a direction."""
        return self.adapted.language != ALL and ">" not in self.adapted.language


def shown(results: Results) -> Iterator[Measured]:
    """The figures of the last model, the whole of a set before its languages, text outside the task last."""
    *before, adapted = results.models
    for metric in (*METRICS, RETENTION):
        variant = RETENTION if metric == RETENTION else ""
        key, task = ("bits_per_byte", "text outside the task") if variant else (metric, results.facts["task"])
        for language in (ALL, *(results.languages(key) if metric in BY_LANGUAGE else ())):
            place = language, variant
            if own := results.get(key, adapted, *place):
                old = results.get(key, before[0], *place) if before else None
                yield Measured(task, own, old, results.get(key, DIFFERENCE, *place))


@dataclass
class Facts:
    """What a card can say; what is not known is left out. `form` is adapter, model, mlx (which MLX alone reads) or an
    export's; `template` how conversations were written, where that is not the usual."""

    name: str
    form: str = "adapter"
    method: str = ""
    base: dict = field(default_factory=dict)
    modules: int = 0
    adapter: Any = None
    config: Config | None = None
    info: dict = field(default_factory=dict)
    results: list[Measured] = field(default_factory=list)
    manifests: list[dict] = field(default_factory=list)
    export: dict = field(default_factory=dict)
    template: dict = field(default_factory=dict)
    samples: list[dict] = field(default_factory=list)

    def take_export(self, export: dict) -> Self:
        """These facts with those of an export's report, which go before its run's."""
        adapter, self.export = export.get("adapter", {}), export
        self.form = FORMS.get(export.get("kind", "")) or export["to"].replace("gguf-lora", "peft")
        self.method = adapter.get("method") or self.method
        self.template = adapter.get("conversations") or self.template
        return self

    @property
    def base_id(self) -> str:
        """The base's Hub id, that of the export before that of the training; nothing where it has none."""
        names = (self.export.get("base", {}).get("id", ""), self.base.get("id", ""))
        return next((name for name in names if HUB_ID.fullmatch(name)), "")

    @property
    def languages(self) -> list[str]:
        governed = {row["language"] for m in self.manifests for row in m["languages"] if row["kept"]}
        return sorted({row.adapted.language for row in self.results if row.of_language} | governed - {"und"})


def run_facts(run: Run) -> Facts:
    """Facts of a run and its adapter. Raises ConfigError for a run without one."""
    run.check_adapter()
    facts = adapter_facts(run.adapter, run.name)
    facts.config, facts.info = run.config(), run.info()
    facts.samples = [row for row in run.samples() if row["kind"] != "held out"]
    facts.manifests = manifests(run.config_here())
    for path in sorted((run.path / "evaluation").glob("*.json")):
        with suppress(ConfigError):
            results = read_results(path)
            facts.results += shown(results) if "harness" not in results.facts and results.models else ()
    return facts


def adapter_facts(folder: Path, name: str) -> Facts:
    """Facts that an adapter folder holds by itself."""
    own = read_adapter_config(folder)
    told = (own.method, own.base, len(own.modules), own.adapter)
    return Facts(name, "adapter", *told, template=own.conversations)


def manifests(config: Config) -> list[dict]:
    """Manifests beside the training data, each with its hash and, from the report beside it, records by language."""
    places, found = [Path(name).resolve() for name in config.data.paths], []
    for folder in dict.fromkeys(own for place in places for own in (place, place.parent)):
        path, report = folder / "manifest.json", folder / "report.json"
        if path.is_file() and str((own := read_json(path)).get("tool", "")).startswith("mlx-hybrid"):
            languages = read_json(report).get("languages", []) if report.is_file() else []
            found.append(own | {"sha256": sha256_of(path), "languages": languages})
    return found


def readme(name: str, export: dict) -> str:
    """The README of an export in the folder `name`, from its report."""
    return fill("use.md.jinja", Facts(name).take_export(export))


def fill(template: str, facts: Facts, repo: str = "", **known: Any) -> str:
    """A template of this folder, filled in; without a `repo` the files are in a local folder of the facts' name."""
    name = repo.split("/")[-1] or facts.name
    base = (facts.export or vars(facts)).get("base", {}).get("id", "")
    place = place_of(name, base)
    known |= vars(facts) | {
        "facts": facts,
        "repo": repo,
        "name": name,
        "base_id": facts.base_id or base,
        "beside": base == BESIDE,
        "place": place,
        "shell_base": BUNDLED_PATH if base == BUNDLED else shlex.quote(place),
        "rank": min(vllm_rank(lora_rank(facts)), VLLM_RANKS[-1]),
    }
    return render(Path(__file__).with_name(template), known, sh=shlex.quote).rstrip() + "\n"


def is_folder(base: str) -> bool:
    """Whether an export's base is a local folder, of which only the last part is known."""
    return "/" not in base and base not in (BUNDLED, BESIDE) and not base.startswith(OLLAMA)


def place_of(name: str, base: str) -> str:
    """What the lines that load an export call its base: a name that can be had, or a path to fill in."""
    return f"{name}/{base}" if base == BESIDE else f"path/to/{base}" if is_folder(base) else base


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
    parts = (facts.adapter.rotation, facts.adapter.low_rank) if facts.adapter else ()
    unsettled = {r.adapted.language for r in facts.results if r.difference and not r.difference.settled}
    known = {"packed": facts.base.get("quantization") or {}, "unsettled": sorted(unsettled - {ALL})}
    known["branches"] = [to_tree(part) for part in parts if part]
    text = f"---\n{metadata(facts)}\n---\n\n" + fill("card.md.jinja", facts, repo, **known)
    return text + "\n" + MARK.format(digest(text)) + "\n"


def digest(body: str) -> str:
    return hashlib.sha256(body.strip().encode()).hexdigest()[:16]


def is_made(text: str) -> bool:
    """Whether a card is as `model_card` made it, so that nobody's words are lost when it is made anew."""
    return bool(mark := MADE.search(text)) and digest(text[: mark.start()]) == mark[1]


def write_card(run: Run) -> bool:
    """Draft the card of a run as its README.md, unless somebody has written there; whether it was written."""
    path = run.path / "README.md"
    if path.exists() and not is_made(path.read_text(encoding="utf-8")):
        return False
    write_text(path, model_card(run_facts(run), f"OWNER/{run.name}"))
    return True


def metadata(facts: Facts) -> Any:
    """What the Hub reads. Results are the adapter's: files that failed their check carry none."""
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
    """A row as the Hub's EvalResult (hub-docs, modelcard.md); the interval and the base stand in `metric_args`."""
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
