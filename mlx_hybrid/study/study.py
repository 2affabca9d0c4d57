"""Methods trained alike and measured alike, over seeds; each cell is a run of its own and is never done twice."""

import json
from collections.abc import Iterable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from mlx_hybrid.config import Config
from mlx_hybrid.errors import ConfigError
from mlx_hybrid.evaluation.benchmarks.questions import chosen_pivot, chosen_variants, retention_set, untrained
from mlx_hybrid.evaluation.metrics.translation import MOST_TOKENS
from mlx_hybrid.evaluation.results import ALL, Results
from mlx_hybrid.files import read_json, write_json, write_text
from mlx_hybrid.jobs.stopping import StopRequest
from mlx_hybrid.records.record import load_records
from mlx_hybrid.run import Run, writing
from mlx_hybrid.study import cells
from mlx_hybrid.study.data import FILES, evaluation_sets, freeze_data
from mlx_hybrid.study.differences import figures
from mlx_hybrid.study.plan import Cell, Plan, check_plan, final_cells
from mlx_hybrid.study.summary import SUMMARY_FILE, footprint, governed_counts, summarise
from mlx_hybrid.study.tuning import Trial, best, tune

FORMAT = 1
PLAN_FILE = "plan.json"


def run_study(plan: Plan, directory: Path, stop: StopRequest, *, workers: int = 1) -> dict:
    """Train and measure every cell of the plan in `directory`, and return the summary that is written there.

    `stop` hears of the course and may ask for a stop. Raises Stopped after one, and the same call goes on from the cell
    it stopped in; ConfigError for a plan that would not compare like with like, or a folder of another one.
    """
    check_plan(plan)
    directory.mkdir(parents=True, exist_ok=True)
    with writing(Run(directory)):
        return Study(plan, directory, stop, workers).run()


def check_terms(plan: Plan, path: Path) -> None:
    """Refuse to go on in a folder of a comparison on other terms."""
    old, new = read_json(path)["terms"], plan.terms()
    if changed := [key for key in {**old, **new} if old.get(key) != new.get(key)]:
        told = f"its comparison has another {changed[0]}; use a new folder with -o"
        raise ConfigError(f"{path.parent}: {told}. Methods, seeds, rates and governance may be added.")


class Study:
    """The course of one comparison, which has begun once its plan.json is written."""

    def __init__(self, plan: Plan, directory: Path, stop: StopRequest, workers: int):
        path, config = directory / PLAN_FILE, plan.base()
        self.directory, self.stop, self.workers = directory, stop, workers
        self.model = config.model
        self.rates = plan.rates or (config.train.learning_rate,)
        begun = path.exists()
        if begun:
            check_terms(plan, path)
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
        self.measuring = cells.Measuring(test, plan.max_tokens or MOST_TOKENS, asked)
        write_json(path, {"format": FORMAT, "terms": plan.terms(), "data_manifests": self.manifests})

    def run(self) -> dict:
        """Every cell trained and measured, and the summary of them."""
        self.stop.tell(f"Base: {self.model.name}")
        load = lambda: cells.open_base(self.model)  # noqa: E731
        base = cells.measured(self.directory / "base", load, self.measuring, self.stop)
        chosen, grid = self.choose()
        results = self.measure_all(final_cells(self.plan, chosen))
        told = {"grid": grid, "governed": self.count_governed()}
        told["chosen"] = {method: trial.rate for method, trial in chosen.items()}
        told["batches"] = {method: trial.batch for method, trial in chosen.items() if trial.batch}
        runs = {cell: self.run_of(cell) for cell in results}
        summary = summarise(self.plan, base, results, runs, **told)
        write_json(self.directory / SUMMARY_FILE, summary)
        return summary

    def measure_all(self, grid: list[Cell]) -> dict[Cell, Results]:
        """Results of every cell, in the order given."""
        self.run_ahead(grid, self.measuring)
        results: dict[Cell, Results] = {}
        for number, cell in enumerate(grid, 1):
            done = cells.is_measured(self.run_of(cell))
            self.stop.tell(f"Cell {number} of {len(grid)}: {cell.name}{' (done before)' if done else ''}")
            run = self.train(cell)
            results[cell] = cells.measure_run(run, self.model.name, self.measuring, self.stop)
            self.write_cells(results)
        return results

    def write_cells(self, results: dict[Cell, Results]) -> None:
        """One line a cell that is done, with its whole figures, to be read while others train."""
        lines = []
        for cell, own in results.items():
            rows = [*figures(own).values(), *footprint(self.run_of(cell)).values()]
            whole = {row.metric: row.value for row in rows if row.language == ALL and not row.variant}
            lines.append(json.dumps(asdict(cell) | whole) + "\n")
        write_text(self.directory / "cells.jsonl", "".join(lines))

    def run_of(self, cell: Cell) -> Run:
        return Run(self.directory / "cells" / cell.name)

    def run_ahead(self, grid: Iterable[Cell], measuring: cells.Measuring | None) -> None:
        works = [(self.run_of(cell), self.config(cell)) for cell in grid]
        cells.run_ahead(works, measuring, self.workers, self.stop)

    def train(self, cell: Cell) -> Run:
        """The cell's finished run, which names the manifests of what its copied data was governed by."""
        run = self.run_of(cell)
        cells.train_cell(run, self.config(cell), self.stop)
        run.update(data_manifests=self.manifests)
        return run

    def config(self, cell: Cell) -> Config:
        return self.plan.config(cell, self.data)

    def count_governed(self) -> dict[str, dict[str, int]]:
        """What each governance setting keeps, where there are several, or faults are planted."""
        plan = self.plan
        if not plan.noise and len(plan.governance) == 1:
            return {}
        configs = {n: self.config(Cell(plan.reference, n, self.rates[0], 0)) for n in plan.governance}
        return {name: governed_counts(own, self.directory / "data") for name, own in configs.items()}

    def choose(self) -> tuple[dict[str, Trial], list[dict[str, Any]]]:
        """The trial of least validation loss of each method, and every loss; nothing of the test set is looked at."""
        methods, batches = self.plan.methods, self.plan.batches
        if len(self.rates) == 1 and len(batches) < 2:
            return dict.fromkeys(methods, Trial(self.rates[0], *batches)), []
        tried = tune(methods, self.rates, batches, self.losses)
        chosen = {method: best(own) for method, own in tried.items()}
        trials = [(method, trial, loss) for method, own in tried.items() for trial, loss in own.items()]
        keys = ("method", "rate", "batch", "valid_loss_nats_per_token")
        return chosen, [dict(zip(keys, (method, t.rate, t.batch, loss))) for method, t, loss in trials]

    def losses(self, wanted: list[tuple[str, Trial]]) -> list[float]:
        """The least validation loss of each trial."""
        grid, found = [self.plan.first(method, trial) for method, trial in wanted], []
        self.run_ahead(grid, None)
        for number, cell in enumerate(grid, 1):
            self.stop.tell(f"Trial {number} of {len(grid)}: {cell.name}")
            found.append(cells.best_loss(self.train(cell)))
        return found
