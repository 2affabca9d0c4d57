"""What is known of an adapter, an export or a model, from what was written down beside it."""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from mlx_hybrid.config import Config
from mlx_hybrid.errors import ConfigError
from mlx_hybrid.evaluation.results import ALL, DIFFERENCE, RETENTION, Results, Row, read_results
from mlx_hybrid.files import HUB_ID, read_json, sha256_of
from mlx_hybrid.run import Run

WHOLE = {"fused model": "merged", "fused model for MLX": "mlx"}
"""The form of exports that hold a model, by their kind."""
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


def measured(folder: Path) -> list[Measured]:
    """Every figure that a card shows, from the results files of an evaluation folder."""
    found: list[Measured] = []
    for path in sorted(folder.glob("*.json")):
        with suppress(ConfigError):
            results = read_results(path)
            found += shown(results) if "harness" not in results.facts and results.models else ()
    return found


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

    def take_export(self, export: dict) -> "Facts":
        """These facts with those of an export's report, which go before its run's."""
        adapter, self.export = export.get("adapter", {}), export
        self.form = WHOLE.get(export.get("kind", "")) or export["to"]
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
        named = {row.adapted.language for row in self.results if row.of_language}
        governed = {row["language"] for m in self.manifests for row in m["languages"] if row["kept"]}
        return sorted(named | governed - {"und"})


def run_facts(run: Run) -> Facts:
    """Facts of a run and its adapter. Raises ConfigError for a run without one."""
    run.check_adapter()
    facts = adapter_facts(run.adapter, run.name)
    facts.config, facts.info = run.config(), run.info()
    facts.samples = [row for row in run.samples() if row["kind"] != "held out"]
    facts.results, facts.manifests = measured(run.path / "evaluation"), manifests(run.config_here())
    return facts


def adapter_facts(folder: Path, name: str) -> Facts:
    """Facts that an adapter folder holds by itself."""
    from mlx_hybrid.adapters.store import read_adapter_config

    info = read_adapter_config(folder)
    told = (info.method, info.base, len(info.modules), info.adapter)
    return Facts(name, "adapter", *told, template=info.conversations)


def manifests(config: Config) -> list[dict]:
    """Manifests beside the training data, each with its hash and, from the report beside it, records by language."""
    places = [Path(name).resolve() for name in config.data.paths]
    found = []
    for folder in dict.fromkeys(own for place in places for own in (place, place.parent)):
        path, report = folder / "manifest.json", folder / "report.json"
        if path.is_file() and str((own := read_json(path)).get("tool", "")).startswith("mlx-hybrid"):
            languages = read_json(report).get("languages", []) if report.is_file() else []
            found.append(own | {"sha256": sha256_of(path), "languages": languages})
    return found
