"""What `evaluate --lm-eval` does once its options are read: tasks of lm-evaluation-harness, base beside adapted."""

import json
from collections.abc import Callable
from pathlib import Path

from mlx_hybrid.errors import ConfigError
from mlx_hybrid.files import write_text
from mlx_hybrid.jobs.evaluate import Told, models_of, names, open_target, refresh, run_of, write_results


def measure_tasks(target: str, output: Path | None, options: dict, tell: Callable[[str], None]) -> Told:
    """Results, written where there is a folder for them. Unknown tasks are refused before a model is loaded."""
    from importlib.metadata import version

    from mlx_hybrid.evaluation.harness import evaluate_tasks, find_tasks, sample_rows, short_results

    run, tasks = run_of(target), names(options["lm_tasks"])
    folder = output or (run.path / "evaluation" if run else None)
    if not tasks:
        raise ConfigError("--lm-eval: name a task, or several with commas between.")
    if options["lm_folder"] is not None and not options["lm_folder"].is_dir():
        raise ConfigError(f"--lm-eval-tasks {options['lm_folder']}: no such folder.")
    if options["examples"] and folder is None:
        raise ConfigError("--examples needs a folder to write to; give -o.")
    if folder is None:
        tell("Results are not kept; -o DIR keeps them.")
    manager = find_tasks(tasks, options["lm_folder"])
    pair = open_target(target, options["base_model"], tell)
    name, told = f"lm-eval-{'-'.join(tasks)[:60]}", {}
    for label, model in models_of(pair, options["baseline"]).items():
        tell(f"{label}: {', '.join(tasks)}")
        whole = evaluate_tasks(
            model() if label == "base" else model, pair.tokenizer, tasks, manager, limit=options["limit"],
            seed=options["seed"], context=pair.context, samples=options["examples"],
        )  # fmt: skip
        told[label] = short_results(whole)
        if options["examples"]:
            folder.mkdir(parents=True, exist_ok=True)
            rows = (json.dumps(row, ensure_ascii=False, default=str) for row in sample_rows(whole))
            write_text(folder / f"{name}.{label}.examples.jsonl", "".join(f"{row}\n" for row in rows))
    results = {
        "format": 1, "harness": f"lm-eval {version('lm-eval')}", "seed": options["seed"], "limit": options["limit"],
        "model": pair.loaded.name, "base": pair.loaded.base, "lm_eval": told,
    }  # fmt: skip
    path = write_results(folder, name, results)
    if run and output is None:
        refresh(run)
    return Told(results, path, run.path if run else None)
