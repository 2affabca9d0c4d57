"""A run's report.html: what was trained, how it went, what it measured."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mlx_hybrid.config import dump_config
from mlx_hybrid.errors import ConfigError
from mlx_hybrid.files import read_json, write_text
from mlx_hybrid.report import figures
from mlx_hybrid.report.page import Code, Part, Picture, page
from mlx_hybrid.report.result_tables import result_tables
from mlx_hybrid.report.tables import Table, interval, number
from mlx_hybrid.run import Run


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
        ("Training", training_figures(run)),
        ("Results", results(run)),
        ("Configuration", [Code(shareable(run))]),
    ]
    return page(run.name, sections)


def shareable(run: Run) -> str:
    """The configuration with names in place of paths, which say more of this machine than of the run."""
    config = run.config()
    names = {key: tuple(map(last_name, getattr(config.data, key))) for key in ("paths", "valid", "test")}
    data = dataclasses.replace(config.data, **names)
    against = tuple(map(last_name, config.governance.against))
    governance = dataclasses.replace(config.governance, against=against)
    model, start = last_name(config.model), last_name(config.start_from)
    shown = dataclasses.replace(config, data=data, governance=governance, model=model, start_from=start)
    return dump_config(shown)


def last_name(path: str) -> str:
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
        ("speed", f"{median([r['tokens_per_second'] for r in rows]):,.0f} tokens/s" if rows else "–"),
        ("rotations", f"{max(defects):.1g} from orthogonal at the most" if defects else ""),
        ("seed", str(info.get("seed", "–"))),
        ("machine", " ".join(str(machine[k]) for k in ("system", "machine", "device") if machine.get(k))),
        ("versions", ", ".join(f"{name} {v}" for name, v in machine.get("versions", {}).items())),
    ]
    return Table("Facts", ("", ""), [line for line in lines if line[1]], words=True)


def median(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]


def training_figures(run: Run) -> list[Part]:
    return [Picture(figures.image(figure), caption) for figure, caption in draw(run)]


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
    modules, values = run_mixing(run)
    if modules:
        rows = [row for row in metrics if len(row.get("mixing", [])) == len(modules)]
        by_step = [[row["mixing"][n] for row in rows] for n in range(len(modules))]
        drawn.append(
            (
                figures.mixing_by_step(modules, [row["step"] for row in rows], by_step),
                "λ of each layer over training.",
            )
        )
        drawn.append(
            (
                figures.mixing_by_layer({"mean over training": {"modules": modules, "value": values}}),
                "λ of each layer: the share of its step that the rotation takes; ½ is even.",
            )
        )
    return drawn


def run_mixing(run: Run) -> tuple[list[str], list[float]]:
    from mlx_hybrid.training.recording import mixing

    return mixing(run) if run.adapter.is_dir() else ([], [])


def results(run: Run) -> list[Part]:
    """Every results file of the run as tables; one of a kind that is not known here is named, never dropped."""
    parts: list[Part] = []
    for path in sorted((run.path / "evaluation").glob("*.json")):
        tree = read_json(path)
        kinds: list[tuple[bool, Callable[[dict], list[Part]]]] = [
            ("accuracy_by_language" in tree or "loss_nats_per_token" in tree, lambda t: [held_out(t)]),
            ("models" in tree and "kind" in tree, lambda t: [*result_tables(t), *diagrams(t)]),
            ("lm_eval" in tree, result_tables),
        ]
        parts += next(
            (make(tree) for fits, make in kinds if fits),
            [f"{path.name}: another kind of results."],
        )
    return parts or ["Nothing was measured yet: mlx-hybrid evaluate does it."]


def held_out(tree: dict) -> Table:
    lines = []
    if loss := tree.get("loss_nats_per_token"):
        row = ("loss, nats per token", number(loss["base"]), number(loss["adapted"]))
        lines.append((*row, interval(loss["difference"], signed=True)))
    named = {"accuracy": tree["accuracy"]} if "accuracy" in tree else {}
    named |= {
        f"accuracy, {name or 'undeclared'}": row for name, row in tree.get("accuracy_by_language", {}).items()
    }
    for label, row in named.items():
        lines.append(
            (label, interval(row["base"]), interval(row["adapted"]), interval(row["gain"], signed=True))
        )
    note = f"{tree['records']} records, {tree['questions']} of them labelled; 95 % intervals over resampled groups."
    return Table("Held-out records", ("", "base", "adapter", "difference"), lines, note)


def diagrams(tree: dict) -> list[Part]:
    """Reliability of every model of a classification."""
    if tree["kind"] != "classification":
        return []
    bins = {name: row["calibration"]["before"]["reliability"] for name, row in tree["models"].items()}
    try:
        drawn = figures.image(figures.reliability(bins))
    except ConfigError:
        return []
    return [Picture(drawn, f"Reliability on {tree['task']}, without temperature scaling.")]
