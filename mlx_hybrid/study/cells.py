"""One cell of a comparison: train a run or go on with it, and measure it. What is done is not done again."""

import shutil
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from hashlib import sha256
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from mlx_hybrid.adapters.attach import settle
from mlx_hybrid.config import Config
from mlx_hybrid.errors import ConfigError, MlxHybridError
from mlx_hybrid.evaluation.answers import answers_to_test, example_rows
from mlx_hybrid.evaluation.evaluate import evaluate
from mlx_hybrid.evaluation.metrics.translation import directions_of, greedy, statistics_of
from mlx_hybrid.evaluation.results import Results, read_results, write_results
from mlx_hybrid.evaluation.sets import EvaluationSet, limited
from mlx_hybrid.jobs.finetune import finetune
from mlx_hybrid.jobs.stopping import StopRequest
from mlx_hybrid.models.adapted import load_run
from mlx_hybrid.models.base import load_base
from mlx_hybrid.models.blas import prefer_openblas
from mlx_hybrid.run import Run
from mlx_hybrid.training.events import Interrupted, Validated

RESULTS = "comparison.json"


@dataclass(frozen=True)
class Listener:
    """Who asked for the comparison: hears of its course, and may ask for a stop."""

    tell: Callable[[str], None] = lambda text: None
    stop: Callable[[], bool] = lambda: False


class Stopped(MlxHybridError):
    """A stop was asked for; what is done is saved."""

    exit_code = 130


@dataclass(frozen=True)
class Measuring:
    """The evaluation that every cell gets."""

    test: EvaluationSet
    dev: EvaluationSet | None
    variants: tuple[str, ...]
    limit: int
    pivot: str
    max_tokens: int
    seed: int = 0  # of resampling and limits, never of training: all cells answer the same questions


@dataclass(frozen=True)
class Work:
    """One cell, as another process is told of it; `measuring` is None where training is all there is to do."""

    name: str
    run: Run
    config: Config
    measuring: Measuring | None

    @property
    def done(self) -> bool:
        return is_measured(self.run) if self.measuring else status_of(self.run) == "finished"


def run_ahead(works: list[Work], workers: int, listener: Listener) -> None:
    """Do what is not done yet in processes of their own, `workers` at a time: on a CPU each keeps one core busy.

    Whoever goes over the cells afterwards finds their files. Raises what the first cell that failed did; Stopped after
    a stop, when every cell has saved where it stands.
    """
    works = [work for work in works if not work.done]
    if workers == 1 or len(works) < 2:
        return
    context = get_context("spawn")  # a fork of a process that has used MLX hangs
    with ProcessPoolExecutor(workers, context, initializer=prefer_openblas) as pool:
        running = {pool.submit(run_one, work): work for work in works}
        try:
            for number, future in enumerate(as_completed(running), 1):
                future.result()
                listener.tell(f"  {number} of {len(works)} done: {running[future].name}")
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def run_one(work: Work) -> None:
    """In another process, silently: train one cell and measure it. Ctrl-C reaches it as it does the first process."""
    with StopRequest(lambda text: None) as stop:
        listener = Listener(stop=stop)
        run = train_cell(work.run, work.config, listener)
        if work.measuring:
            measure_run(run, work.config.model, work.measuring, listener)


def train_cell(run: Run, config: Config, listener: Listener) -> Run:
    """A finished run of `config` in the run's folder, whether it is there, half done, or not begun.

    Raises Stopped after a stop, ConfigError where the folder holds a run of another config.
    """
    import mlx.core as mx

    status = status_of(run)
    if status is not None and run.config() != config:
        raise ConfigError(
            f"{run.path}: holds a run of other settings; use a new folder with -o, or remove it."
        )
    if status == "finished":
        return run
    resumable = status is not None and list(run.checkpoints.glob("step-*"))
    if not resumable:
        shutil.rmtree(run.path, ignore_errors=True)
    mx.clear_cache()
    mx.reset_peak_memory()
    run.path.parent.mkdir(parents=True, exist_ok=True)
    output, resume = (None, run) if resumable else (run.path, None)
    for event in finetune(config, output=output, resume=resume, stop=listener.stop):
        if isinstance(event, Validated):
            listener.tell(f"  step {event.step}: validation loss {event.loss:.3f}")
        if isinstance(event, Interrupted):
            raise Stopped(f"Stopped in {run.path}; everything is saved, and the same command goes on.")
    return run


def status_of(run: Run) -> str | None:
    """What a run says of itself; None where it was not begun."""
    return run.info().get("status") if (run.path / "run.json").is_file() else None


def is_measured(run: Run) -> bool:
    return (run.path / "evaluation" / RESULTS).is_file()


def best_loss(run: Run) -> float:
    """The lowest validation loss of a run, in nats per trained token: what rates are chosen by."""
    losses = [row["valid_loss_nats_per_token"] for row in run.metrics() if "valid_loss_nats_per_token" in row]
    if not losses:
        raise ConfigError(f"{run.path}: was never validated, so no learning rate can be chosen by it.")
    return min(losses)


def open_run(run: Run, model: str) -> tuple[Any, Any, dict]:
    """A run's best adapter on its base, with its tokenizer and the hashes of both."""
    loaded = load_run(run, base_name=model)
    weights = sha256((run.adapter / "adapters.safetensors").read_bytes()).hexdigest()
    return settle(loaded.model), loaded.tokenizer, {"base": loaded.base["fingerprint"], "adapter": weights}


def open_base(model: str) -> tuple[Any, Any, dict]:
    base = load_base(model)
    return base.model, base.tokenizer, {"base": base.identity["fingerprint"]}


def measure_run(run: Run, model: str, measuring: Measuring, listener: Listener) -> Results:
    """Results of a finished run, from its file or measured now."""
    return measured(run.path / "evaluation", lambda: open_run(run, model), measuring, listener)


def measured(
    folder: Path, load: Callable[[], tuple[Any, Any, dict]], measuring: Measuring, listener: Listener
) -> Results:
    """`evaluate` on one model; the facts of its results have `examples`, columns of what comparisons between cells
    need of every record."""
    path = folder / RESULTS
    if path.is_file():
        return read_results(path)
    folder.mkdir(parents=True, exist_ok=True)
    model, tokenizer, identity = load()

    def progress(name: str, done: int, total: int) -> None:
        if listener.stop():
            raise Stopped(f"Stopped in {folder}; answers are saved, and the same command goes on.")
        listener.tell(f"  measured {done} of {total}")

    results = evaluate(
        {"model": model},
        tokenizer,
        measuring.test,
        dev=measuring.dev,
        variants=measuring.variants,
        seed=measuring.seed,
        limit=measuring.limit,
        pivot=measuring.pivot,
        directory=folder / "answers",
        identities={"model": str(identity)},
        generate=lambda own, prompts: greedy(own, tokenizer, max_tokens=measuring.max_tokens)(prompts),
        progress=progress,
    )
    results.facts["examples"] = columns(folder, measuring, results)
    write_results(path, results)
    return results


def columns(folder: Path, measuring: Measuring, results: Results) -> dict[str, list]:
    """What comparisons need of every test record, as columns."""
    test = limited(measuring.test, measuring.limit, measuring.seed)
    scoring = results.facts.get("scoring", {}).get("model", {})
    answers = answers_to_test(folder / "answers" / "model.answers.jsonl")
    rows = example_rows(test, answers, normalised=scoring.get("normalised", False))
    kept = ("group", "language", "right", "nll_nats", "nats", "bytes")
    told = {
        key: [int(row[key]) if key == "right" else row[key] for row in rows]
        for key in kept
        if rows and key in rows[0]
    }
    if test.kind == "translation":
        told["direction"] = [">".join(pair) for pair in directions_of(test)]
        table = statistics_of(test, [row["text"] for row in rows])
        told["chrf"] = [" ".join(map(str, own)) for own in table]  # a line of the file each, not 24
    return told
