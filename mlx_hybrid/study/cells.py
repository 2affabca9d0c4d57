"""One cell of a comparison: train a run or go on with it, and measure it. What is done is not done again."""

import shutil
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from mlx_hybrid.adapters.attach import settle
from mlx_hybrid.config import Config, ModelConfig
from mlx_hybrid.errors import INTERRUPTED, ConfigError, MlxHybridError
from mlx_hybrid.evaluation.answers import example_rows
from mlx_hybrid.evaluation.evaluate import evaluate
from mlx_hybrid.evaluation.metrics.translation import directions_of, greedy, statistics_of
from mlx_hybrid.evaluation.results import RETENTION, Results, read_results, write_results
from mlx_hybrid.evaluation.sets import EvaluationSet, limited
from mlx_hybrid.files import sha256_of
from mlx_hybrid.jobs.finetune import finetune
from mlx_hybrid.jobs.stopping import StopRequest
from mlx_hybrid.models.adapted import load_run
from mlx_hybrid.models.base import load_base, tokenizer_for
from mlx_hybrid.models.blas import prefer_openblas
from mlx_hybrid.run import Run
from mlx_hybrid.training.events import Interrupted, Validated

RESULTS = "comparison.json"
EXAMPLES = ("group", "language", "right", "nll_nats", "nats", "bytes")  # kept of every record that has them


class Stopped(MlxHybridError):
    """A stop was asked for; what is done is saved."""

    exit_code = INTERRUPTED


@dataclass(frozen=True)
class Measuring:
    """The evaluation that every cell gets: `asked` is dev, variants, limit and pivot, as `evaluate` takes them."""

    test: EvaluationSet
    max_tokens: int
    asked: dict[str, Any]


def run_ahead(
    works: Sequence[tuple[Run, Config]], measuring: Measuring | None, workers: int, stop: StopRequest
) -> None:
    """Do what is not done yet in processes of their own, `workers` at a time; without `measuring` train alone.

    Raises what the first cell that failed did; Stopped after a stop, when every cell has saved where it stands.
    """
    done = is_measured if measuring else is_trained
    works = [(run, config) for run, config in works if not done(run)]
    if workers == 1 or len(works) < 2:
        return
    context = get_context("spawn")  # a fork of a process that has used MLX hangs
    with ProcessPoolExecutor(workers, context, initializer=prefer_openblas) as pool:
        running = {pool.submit(run_one, run, config, measuring): run for run, config in works}
        try:
            for number, future in enumerate(as_completed(running), 1):
                future.result()
                stop.tell(f"  {number} of {len(works)} done: {running[future].path}")
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def run_one(run: Run, config: Config, measuring: Measuring | None) -> None:
    """Train and measure one cell in another process, silently; Ctrl-C reaches it too."""
    with StopRequest(lambda text: None) as stop:
        train_cell(run, config, stop)
        if measuring:
            measured(run.path / "evaluation", config.model, run, measuring, stop)


def train_cell(run: Run, config: Config, stop: StopRequest) -> None:
    """Leave a finished run of `config` in the run's folder, whether it is there, half done, or not begun. Raises
    Stopped after a stop, ConfigError where the folder holds a run of another config."""
    import mlx.core as mx

    if (run.path / "run.json").is_file() and run.config() != config:
        told = "holds a run of other settings; use a new folder with -o, or remove it."
        raise ConfigError(f"{run.path}: {told}")
    if is_trained(run):
        return
    begun = (run.path / "run.json").is_file() and run.saved_step() is not None
    if not begun:
        shutil.rmtree(run.path, ignore_errors=True)
        run.path.parent.mkdir(parents=True, exist_ok=True)
    mx.clear_cache()
    mx.reset_peak_memory()
    where = {"output": None, "resume": run} if begun else {"output": run.path, "resume": None}
    for event in finetune(config, stop=stop, **where):
        if isinstance(event, Validated):
            stop.tell(f"  step {event.step}: validation loss {event.loss:.3f}")
        if isinstance(event, Interrupted):
            raise Stopped(f"Stopped in {run.path}; everything is saved, and the same command goes on.")


def is_trained(run: Run) -> bool:
    return (run.path / "run.json").is_file() and run.info().get("status") == "finished"


def is_measured(run: Run) -> bool:
    return (run.path / "evaluation" / RESULTS).is_file()


def best_loss(run: Run) -> float:
    """The lowest validation loss of a run, in nats per trained token: what rates are chosen by."""
    losses = [row["valid_loss_nats_per_token"] for row in run.metrics() if "valid_loss_nats_per_token" in row]
    if not losses:
        raise ConfigError(f"{run.path}: was never validated, so no learning rate can be chosen by it.")
    return min(losses)


def opened(model: ModelConfig, run: Run | None) -> tuple[Any, Any, dict]:
    """A run's best adapter on its base, or the base alone, which asks as the cells do: model, tokenizer, hashes."""
    if run is None:
        base = load_base(model.name, tokenizer=tokenizer_for(model))
        return base.model, base.tokenizer, {"base": base.identity["fingerprint"]}
    loaded = load_run(run, base_name=model.name)
    loaded.tokenizer.date = run.template_date()
    digest = sha256_of(run.adapter / "adapters.safetensors")
    identity = {"base": loaded.identity["fingerprint"], "adapter": digest}
    return settle(loaded.model), loaded.tokenizer, identity


def measured(
    folder: Path, model: ModelConfig, run: Run | None, measuring: Measuring, stop: StopRequest
) -> Results:
    """Results of a run, or of the base, from their file or measured now; their facts have `examples`, columns of what
    comparisons need of every record."""
    path = folder / RESULTS
    if path.is_file():
        return read_results(path)
    folder.mkdir(parents=True, exist_ok=True)
    net, tokenizer, identity = opened(model, run)

    def progress(name: str, done: int, total: int) -> None:
        if stop():
            raise Stopped(f"Stopped in {folder}; answers are saved, and the same command goes on.")
        stop.tell(f"  measured {done} of {total}")

    results = evaluate(
        {"model": net},
        tokenizer,
        measuring.test,
        **measuring.asked,
        directory=folder / "answers",
        identities={"model": str(identity)},
        generate=greedy(tokenizer, measuring.max_tokens),
        progress=progress,
    )
    results.facts["examples"] = columns(folder, measuring.test, results, measuring.asked.get("retention"))
    write_results(path, results)
    return results


def columns(
    folder: Path, test: EvaluationSet, results: Results, retention: EvaluationSet | None
) -> dict[str, Any]:
    limit, path = (results.facts["limit"], results.facts["seed"]), folder / "answers" / "model.answers.jsonl"
    test = limited(test, *limit)
    rows = example_rows(test, path)
    told = {key: [row[key] for row in rows] for key in EXAMPLES if rows and key in rows[0]}
    if "right" in told:
        told["right"] = list(map(int, told["right"]))
    if test.kind == "translation":
        told["direction"] = [">".join(pair) for pair in directions_of(test)]
        table = statistics_of(test, [row["text"] for row in rows])
        told["chrf"] = [" ".join(map(str, own)) for own in table]  # a line of the file each, not 24
    if retention:
        texts = example_rows(limited(retention, *limit), path, "retention")
        told[RETENTION] = {key: [row[key] for row in texts] for key in ("group", "language", "nats", "bytes")}
    return told
