"""A run's report.html: what was trained, how it went, what it measured."""

from collections.abc import Iterator
from pathlib import Path
from shlex import quote
from statistics import median_high
from typing import Any

from mlx_hybrid.config import flat, to_tree
from mlx_hybrid.config.explain import as_given
from mlx_hybrid.errors import ConfigError
from mlx_hybrid.evaluation.results import read_results
from mlx_hybrid.files import write_text
from mlx_hybrid.governance.rules import RULES
from mlx_hybrid.report import figures
from mlx_hybrid.report.result_tables import result_tables
from mlx_hybrid.report.tables import MISSING, Part, Picture, Section, Table, one_line, page
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
    what = f"{config.method} on {info.get('base', {}).get('id', config.model.name)}, {run.status()}."
    if run.status() not in ("finished", "running") and run.checkpoints.is_dir():
        what += f" It stands at step {run.step()}; go on with: mlx-hybrid finetune --resume {quote(run.name)}"
    settings = [(key, as_given(shareable(value))) for key, value in flat(to_tree(config)).items()]
    sections = [
        ("", [what, facts(run, info)]),
        *governed(info.get("governance")),
        ("Training", pictures(run)),
        ("Results", results(run)),
        *answers(run),
        ("Configuration", [Table("Settings", ("", ""), settings, words=True)]),
    ]
    return page(run.name, sections)


def shareable(value: Any) -> Any:
    """A setting with names in place of paths, which say more of this machine than of the run."""
    if isinstance(value, list):
        return [shareable(one) for one in value]
    return Path(value).name if isinstance(value, str) and value.startswith(("/", "~", ".")) else value


def facts(run: Run, info: dict) -> Table:
    rows = [row for row in run.metrics() if "seconds" in row]
    defects = [row["rotation_defect"] for row in run.metrics() if "rotation_defect" in row]
    records, machine = info.get("records", {}), info.get("machine", {})
    lines = {
        "records": ", ".join(f"{count:,} {part}" for part, count in records.items()),
        "steps": f"{info.get('step', 0):,}, the best at {info.get('best_step', MISSING)}",
        "beats its base": "no, on the validation records" if info.get("beats_base") is False else "",
        "training time": f"{rows[-1]['seconds']:.0f} s" if rows else MISSING,
        "peak memory": f"{max(r['peak_memory_gb'] for r in rows):.2f} GB" if rows else MISSING,
        "speed": f"{median_high(r['tokens_per_second'] for r in rows):,.0f} tokens/s" if rows else MISSING,
        "rotations": f"{max(defects):.1g} from orthogonal at the most" if defects else "",
        "seed": str(info.get("seed", MISSING)),
        "machine": " ".join(str(machine[k]) for k in ("system", "machine", "device") if machine.get(k)),
        "versions": ", ".join(f"{name} {v}" for name, v in machine.get("versions", {}).items()),
    }
    return Table("Facts", ("", ""), [line for line in lines.items() if line[1]], words=True)


def governed(counts: dict | None) -> Iterator[Section]:
    """What governance kept and set aside, by reason; nothing for a run without it."""
    if counts:
        kept = f"{counts['kept']:,} kept, {counts['rejected']:,} set aside; data/report.html has their texts."
        catches = {name: rule.catches for name, rule in RULES.items()}
        rows = [(name, f"{count:,}", catches.get(name, "")) for name, count in counts["reasons"].items()]
        table = Table("Set aside", ("reason", "records", "what it takes"), rows, words=True)
        yield "Records", [kept, table] if rows else [kept]


def pictures(run: Run) -> Iterator[Picture]:
    """Loss curves; for a method that mixes, λ by layer at a few steps."""
    metrics = run.metrics()
    keys = {"training": "loss_nats_per_token", "validation": "valid_loss_nats_per_token"}
    curves = {label: [[(r["step"], r[key]) for r in metrics if key in r]] for label, key in keys.items()}
    if curves := {label: lines for label, lines in curves.items() if lines[0]}:
        yield Picture(figures.image(figures.lines(curves, "step", "loss, nats per token")), "Loss by step.")
    modules, steps, shares = mixing(run) if run.adapter.is_dir() else ([], [], None)
    if modules:
        shown = sorted({round(part * (len(steps) - 1)) for part in (0, 1 / 3, 2 / 3, 1)})
        layers = {f"step {steps[place]}": [figures.by_layer(modules, shares[:, place])] for place in shown}
        caption = "λ of each layer: the share of its step that the rotation takes; ½ is even."
        figure = figures.lines(layers, "transformer layer", "λ, share of the rotation")
        yield Picture(figures.image(figure), caption)


def results(run: Run) -> Iterator[Part]:
    """Every results file of the run as tables; one of a kind that is not known here is named, never dropped."""
    if not (paths := sorted((run.path / "evaluation").glob("*.json"))):
        yield "Nothing was measured yet: mlx-hybrid evaluate does it."
    for path in paths:
        try:
            own = read_results(path)
        except ConfigError:
            yield f"{path.name}: another kind of results."
            continue
        yield from result_tables(own)
        if bins := own.facts.get("reliability"):
            caption = f"Reliability on {own.facts['task']}, without temperature scaling."
            yield Picture(figures.image(figures.reliability(bins)), caption)


def answers(run: Run) -> Iterator[Section]:
    """What base and adapter answered to a few prompts, where they were asked."""
    if rows := [tuple(one_line(row[key]) for key in ("prompt", "base", "adapted")) for row in run.samples()]:
        note = "The likeliest token each time, at most 48; held-out records, then general prompts or yours."
        yield "Answers", [Table("Base beside adapter", ("prompt", "base", "adapter"), rows, note, words=True)]
