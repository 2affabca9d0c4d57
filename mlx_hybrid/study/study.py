"""Methods trained alike and measured alike, over seeds; each cell is a run of its own and is never done twice."""

import shutil
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx

from mlx_hybrid.adapters.attach import settle
from mlx_hybrid.config import Config, ModelConfig
from mlx_hybrid.errors import INTERRUPTED, ConfigError, MlxHybridError
from mlx_hybrid.evaluation.answers import example_rows
from mlx_hybrid.evaluation.benchmarks.questions import chosen_pivot, chosen_variants, retention_set, untrained
from mlx_hybrid.evaluation.evaluate import evaluate
from mlx_hybrid.evaluation.metrics.translation import MOST_TOKENS, directions_of, greedy, statistics_of
from mlx_hybrid.evaluation.results import ALL, RETENTION, Results, read_results, write_results
from mlx_hybrid.evaluation.sets import EvaluationSet, limited
from mlx_hybrid.files import read_json, sha256_of, write_json, write_lines
from mlx_hybrid.jobs.finetune import finetune
from mlx_hybrid.models.adapted import load_run
from mlx_hybrid.models.base import load_base, tokenizer_for
from mlx_hybrid.models.blas import prefer_openblas
from mlx_hybrid.records.record import load_records
from mlx_hybrid.run import Run, writing
from mlx_hybrid.study.data import FILES, evaluation_sets, freeze_data, governed_counts
from mlx_hybrid.study.plan import Cell, Plan, Trial, check_plan, final_cells, tune
from mlx_hybrid.study.summary import SUMMARY_FILE, VALIDATION, curve, figures, footprint, summarise
from mlx_hybrid.training.events import Interrupted, Validated
from mlx_hybrid.training.stopping import StopRequest

FORMAT = 1
PLAN_FILE, RESULTS = "plan.json", "comparison.json"
EXAMPLES = ("group", "language", "right", "nll_nats", "nats", "bytes")  # kept of every record that has them


class Stopped(MlxHybridError):
    """A stop was asked for; what is done is saved."""

    exit_code = INTERRUPTED


class Measuring(NamedTuple):
    """The evaluation that every cell gets: `asked` is dev, variants, limit and pivot, as `evaluate` takes them."""

    test: EvaluationSet
    max_tokens: int
    asked: dict[str, Any]


def run_study(plan: Plan, directory: Path, stop: StopRequest, *, workers: int = 1) -> dict:
    """Train and measure every cell of the plan in `directory`; the summary that is written there. `stop` hears of the
    course. Raises Stopped after a stop, and the same call goes on from the cell it stopped in; ConfigError for a plan
    that would not compare like with like, or a folder of another one."""
    check_plan(plan)
    directory.mkdir(parents=True, exist_ok=True)
    with writing(Run(directory)):
        return Study(plan, directory, stop, workers).run()


class Study:
    """The course of one comparison, which has begun once its plan.json is written."""

    def __init__(self, plan: Plan, directory: Path, stop: StopRequest, workers: int):
        path, config = directory / PLAN_FILE, plan.base()
        self.directory, self.stop, self.workers = directory, stop, workers
        self.model = config.model
        self.rates = plan.rates or (config.train.learning_rate,)
        begun, terms = path.exists(), plan.terms()
        old = read_json(path)["terms"] if begun else terms
        if changed := [key for key in old | terms if old.get(key) != terms.get(key)]:
            told = f"its comparison has another {changed[0]}; use a new folder with -o"
            raise ConfigError(f"{directory}: {told}. Methods, seeds, rates and governance may be added.")
        self.data, self.manifests = freeze_data(config, directory / "data", noise=plan.noise, begun=begun)
        test, dev = evaluation_sets(directory / "data", config.data.group)
        variants, pivot = tuple(chosen_variants(plan.variants, test)), chosen_pivot(plan.pivot, test)
        if plan.max_tokens and test.kind != "translation":
            raise ConfigError(f"--max-tokens is for translations; the test records are {test.kind}.")
        self.plan = replace(plan, variants=variants, pivot=pivot)
        asked = {"dev": dev, "variants": variants, "limit": plan.limit, "pivot": pivot}
        if plan.retain != "none":
            asked["retention"] = retention_set(plan.retain)
            asked["untrained"] = untrained(asked["retention"], load_records([directory / "data" / FILES[0]]))
        self.measuring = Measuring(test, plan.max_tokens or MOST_TOKENS, asked)
        write_json(path, {"format": FORMAT, "terms": terms, "data_manifests": self.manifests})

    def run(self) -> dict:
        """The summary of every cell; each stands in cells.jsonl with its whole figures while others train."""
        self.stop.tell(f"Base: {self.model.name}")
        base = measured(self.directory / "base", self.model, None, self.measuring, self.stop)
        chosen, grid = self.choose()
        results, runs, lines = {}, {}, []
        for cell, run in self.trained(final_cells(self.plan, chosen), self.measuring):
            own = measured(run.path / "evaluation", self.model, run, self.measuring, self.stop)
            results[cell], runs[cell] = replace(own, rows=(*own.rows, *footprint(run))), run
            rows = figures(results[cell]).values()
            lines.append(asdict(cell) | {r.metric: r.value for r in rows if r.key[1:] == (ALL, "")})
            write_lines(self.directory / "cells.jsonl", lines)
        rates, batches = ({method: trial[n] for method, trial in chosen.items()} for n in (0, 1))
        told = {"grid": grid, "governed": self.count_governed(), "chosen": rates, "batches": batches}
        summary = summarise(self.plan, base, results, runs, **told)
        write_json(self.directory / SUMMARY_FILE, summary)
        return summary

    def choose(self) -> tuple[dict[str, Trial], list[dict[str, Any]]]:
        """The trial of least validation loss of each method, and every loss; nothing of the test set is looked at."""
        methods, batches, first = self.plan.methods, self.plan.batches, self.plan.governance[0]
        if len(self.rates) == 1 and len(batches) < 2:
            return dict.fromkeys(methods, (self.rates[0], *(batches or (0,)))), []

        def losses(wanted: list[tuple[str, Trial]]) -> list[float]:
            """The least validation loss of each trial, at the first seed and the first governance setting."""
            own = [Cell(method, first, rate, 0, batch) for method, (rate, batch) in wanted]
            return [best_loss(run) for _, run in self.trained(own)]

        tried = tune(methods, self.rates, batches, losses)
        trials = [(method, *trial, loss) for method, own in tried.items() for trial, loss in own.items()]
        grid = [dict(zip(("method", "rate", "batch", VALIDATION), trial)) for trial in trials]
        return {method: min(own, key=own.get) for method, own in tried.items()}, grid

    def trained(self, grid: list[Cell], measuring: Measuring | None = None) -> Iterator[tuple[Cell, Run]]:
        """Every cell with its finished run, which names the manifests of what its copied data was governed by; with
        `measuring`, what is done ahead is measured too."""
        folder = self.directory / "cells"
        works = [(Run(folder / cell.name), self.plan.config(cell, self.data)) for cell in grid]
        run_ahead(works, measuring, self.workers, self.stop)
        for number, (cell, (run, config)) in enumerate(zip(grid, works), 1):
            done = " (done before)" if measuring and is_measured(run) else ""
            self.stop.tell(f"{'Cell' if measuring else 'Trial'} {number} of {len(grid)}: {cell.name}{done}")
            train_cell(run, config, self.stop)
            run.update(data_manifests=self.manifests)
            yield cell, run

    def count_governed(self) -> dict[str, dict[str, int]]:
        """What each governance setting keeps, where there are several, or faults are planted."""
        plan = self.plan
        names = plan.governance if plan.noise or len(plan.governance) > 1 else ()
        cells = [Cell(plan.reference, name, self.rates[0], 0) for name in names]
        counts = (governed_counts(plan.config(cell, self.data), self.directory / "data") for cell in cells)
        return dict(zip(names, counts))


def run_ahead(works: list[tuple[Run, Config]], measuring: Measuring | None, workers: int, stop: StopRequest):
    """Do what is not done yet in processes of their own, `workers` at a time; without `measuring` train alone. Raises
    what the first cell that failed did; Stopped after a stop, when every cell has saved where it stands."""
    done = is_measured if measuring else is_trained
    left = [(run, config) for run, config in works if not done(run)]
    if workers == 1 or len(left) < 2:
        return
    context = get_context("spawn")  # a fork of a process that has used MLX hangs
    with ProcessPoolExecutor(workers, context, initializer=prefer_openblas) as pool:
        running = {pool.submit(run_one, run, config, measuring): run for run, config in left}
        try:
            for number, future in enumerate(as_completed(running), 1):
                future.result()
                stop.tell(f"  {number} of {len(left)} done: {running[future].path}")
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
    is_there = (run.path / "run.json").is_file()
    if is_there and run.config() != config:
        way = "use a new folder with -o, or remove it"
        raise ConfigError(f"{run.path}: holds a run of other settings; {way}.")
    if is_trained(run):
        return
    begun = is_there and run.saved_step() is not None
    if not begun:
        shutil.rmtree(run.path, ignore_errors=True)
        run.path.parent.mkdir(parents=True, exist_ok=True)
    mx.clear_cache()
    mx.reset_peak_memory()
    output, resume = (None, run) if begun else (run.path, None)
    for event in finetune(config, output=output, resume=resume, stop=stop):
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
    if losses := [loss for _, loss in curve(run)]:
        return min(losses)
    raise ConfigError(f"{run.path}: was never validated, so no learning rate can be chosen by it.")


def opened(model: ModelConfig, run: Run | None) -> tuple[Any, Any, dict]:
    """A run's best adapter on its base, or the base alone, which asks as the cells do: model, tokenizer, hashes."""
    if run is None:
        base = load_base(model.name, tokenizer=tokenizer_for(model))
        return base.model, base.tokenizer, {"base": base.identity["fingerprint"]}
    loaded, digest = load_run(Run(run.path, model.name)), sha256_of(run.adapter / "adapters.safetensors")
    loaded.tokenizer.date = run.template_date()
    return settle(loaded.model), loaded.tokenizer, {"base": loaded.identity["fingerprint"], "adapter": digest}


def measured(
    folder: Path, model: ModelConfig, run: Run | None, measuring: Measuring, stop: StopRequest
) -> Results:
    """Results of a run, or of the base, from their file or measured now, with `examples`, columns record by record."""
    path = folder / RESULTS
    if path.is_file():
        return read_results(path)
    folder.mkdir(parents=True, exist_ok=True)
    net, tokenizer, identity = opened(model, run)

    def progress(name: str, done: int, total: int) -> None:
        if stop():
            raise Stopped(f"Stopped in {folder}; answers are saved, and the same command goes on.")
        stop.tell(f"  measured {done} of {total}")

    how = {"directory": folder / "answers", "identities": {"model": str(identity)}, "progress": progress}
    how["generate"] = greedy(tokenizer, measuring.max_tokens)
    results = evaluate({"model": net}, tokenizer, measuring.test, **measuring.asked, **how)
    results.facts["examples"] = columns(folder, measuring, results)
    write_results(path, results)
    return results


def columns(folder: Path, measuring: Measuring, results: Results) -> dict[str, Any]:
    limit, path = (results.facts["limit"], results.facts["seed"]), folder / "answers" / "model.answers.jsonl"
    test, retention = limited(measuring.test, *limit), measuring.asked.get("retention")
    rows = example_rows(test, path)
    told = {key: [row[key] for row in rows] for key in EXAMPLES if rows and key in rows[0]}
    told |= {"right": [*map(int, told["right"])]} if "right" in told else {}
    if test.kind == "translation":
        told["direction"] = [">".join(pair) for pair in directions_of(test)]
        table = statistics_of(test, [row["text"] for row in rows])
        told["chrf"] = [" ".join(map(str, own)) for own in table]  # a line of the file each, not 24
    if retention:
        texts = example_rows(limited(retention, *limit), path, "retention")
        told[RETENTION] = {key: [row[key] for row in texts] for key in ("group", "language", "nats", "bytes")}
    return told
