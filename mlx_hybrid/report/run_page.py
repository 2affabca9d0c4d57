"""A run's report.html: what was trained, how it went, what it measured."""

from dataclasses import replace
from pathlib import Path
from statistics import median_high
from typing import Any

from mlx_hybrid.config import Config, dump_config
from mlx_hybrid.errors import ConfigError
from mlx_hybrid.evaluation.results import read_results
from mlx_hybrid.files import write_text
from mlx_hybrid.report import figures
from mlx_hybrid.report.page import Code, Part, Picture, page
from mlx_hybrid.report.result_tables import result_tables
from mlx_hybrid.report.tables import Table
from mlx_hybrid.run import Run
from mlx_hybrid.training.recording import mixing


def write_run_page(run: Run, path: Path | None = None) -> Path:
    """Write the page to `path`, by default `report.html` in the run, and return where it is."""
    path = path or run.path / "report.html"
    if not path.parent.is_dir():
        raise ConfigError(f"{path.parent}: no such folder.")
    write_text(path, run_page(run))
    return path


def run_page(run: Run) -> str:
    info, config = run.info(), run.config()
    base = info.get("base", {}).get("id", config.model)
    what = f"{config.method} on {base}, {info.get('status', 'of unknown state')}."
    sections = [
        ("", [what, facts(run, info)]),
        ("Training", [Picture(figures.image(figure), caption) for figure, caption in draw(run)]),
        ("Results", results(run)),
        ("Configuration", [Code(shareable(config))]),
    ]
    return page(run.name, sections)


def shareable(config: Config) -> str:
    """The configuration with names in place of paths, which say more of this machine than of the run."""
    data, governance = config.data, config.governance
    data = replace(data, **{key: last_name(getattr(data, key)) for key in ("paths", "valid", "test")})
    governance = replace(governance, against=last_name(governance.against))
    names = {key: last_name(getattr(config, key)) for key in ("model", "start_from")}
    return dump_config(replace(config, data=data, governance=governance, **names))


def last_name(path: str | tuple[str, ...]) -> str | tuple[str, ...]:
    if isinstance(path, tuple):
        return tuple(map(last_name, path))
    return Path(path).name if path.startswith(("/", "~", ".")) else path


def facts(run: Run, info: dict) -> Table:
    rows = [row for row in run.metrics() if "seconds" in row]
    defects = [row["rotation_defect"] for row in run.metrics() if "rotation_defect" in row]
    records = info.get("records", {})
    machine = info.get("machine", {})
    lines = [
        ("records", ", ".join(f"{count:,} {part}" for part, count in records.items())),
        ("steps", f"{info.get('step', 0):,}, the best at {info.get('best_step', '–')}"),
        ("training time", f"{rows[-1]['seconds']:.0f} s" if rows else "–"),
        ("peak memory", f"{max(r['peak_memory_gb'] for r in rows):.2f} GB" if rows else "–"),
        ("speed", f"{median_high(r['tokens_per_second'] for r in rows):,.0f} tokens/s" if rows else "–"),
        ("rotations", f"{max(defects):.1g} from orthogonal at the most" if defects else ""),
        ("seed", str(info.get("seed", "–"))),
        ("machine", " ".join(str(machine[k]) for k in ("system", "machine", "device") if machine.get(k))),
        ("versions", ", ".join(f"{name} {v}" for name, v in machine.get("versions", {}).items())),
    ]
    return Table("Facts", ("", ""), [line for line in lines if line[1]], words=True)


def draw(run: Run) -> list[tuple[Any, str]]:
    """Loss curves; for a method that mixes, λ over training and by layer."""
    metrics = run.metrics()
    drawn = []
    curves = {
        label: [[(row["step"], row[key]) for row in metrics if key in row]]
        for label, key in (("training", "loss_nats_per_token"), ("validation", "valid_loss_nats_per_token"))
        if any(key in row for row in metrics)
    }
    if curves:
        drawn.append((figures.lines(curves, "step", "loss, nats per token"), "Loss by step."))
    modules, steps, shares = mixing(run) if run.adapter.is_dir() else ([], [], None)
    if modules:
        drawn.append((figures.mixing_by_step(modules, steps, shares), "λ of each layer over training."))
        caption = "λ of each layer: the share of its step that the rotation takes; ½ is even."
        drawn.append((figures.mixing_by_layer({"mean over training": (modules, shares.mean(1))}), caption))
    return drawn


def results(run: Run) -> list[Part]:
    """Every results file of the run as tables; one of a kind that is not known here is named, never dropped."""
    parts: list[Part] = []
    for path in sorted((run.path / "evaluation").glob("*.json")):
        try:
            own = read_results(path)
        except ConfigError:
            parts.append(f"{path.name}: another kind of results.")
            continue
        parts += result_tables(own)
        if bins := own.facts.get("reliability"):
            caption = f"Reliability on {own.facts['task']}, without temperature scaling."
            parts.append(Picture(figures.image(figures.reliability(bins)), caption))
    return parts or ["Nothing was measured yet: mlx-hybrid evaluate does it."]
