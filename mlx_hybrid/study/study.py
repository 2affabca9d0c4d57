"""Methods trained alike and measured alike, over seeds; each cell is a run of its own and is never done twice."""

from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from mlx_hybrid.config import Config
from mlx_hybrid.errors import ConfigError
from mlx_hybrid.evaluation.benchmarks.questions import chosen_pivot, chosen_variants, retention_set, untrained
from mlx_hybrid.evaluation.metrics.translation import MOST_TOKENS
from mlx_hybrid.evaluation.results import Results
from mlx_hybrid.files import read_json, write_json, write_lines
from mlx_hybrid.jobs.stopping import StopRequest
from mlx_hybrid.records.record import load_records
from mlx_hybrid.run import Run, writing
from mlx_hybrid.study import cells
from mlx_hybrid.study.data import FILES, evaluation_sets, freeze_data, governed_counts
from mlx_hybrid.study.plan import Cell, Plan, Trial, best, check_plan, final_cells, tune
from mlx_hybrid.study.summary import SUMMARY_FILE, VALIDATION, footprint, summarise, whole_figures

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
        base = cells.measured(self.directory / "base", self.model, None, self.measuring, self.stop)
        chosen, grid = self.choose()
        results = self.measure_all(final_cells(self.plan, chosen))
        rates, batches = ({method: trial[n] for method, trial in chosen.items()} for n in (0, 1))
        told = {"grid": grid, "governed": self.count_governed(), "chosen": rates, "batches": batches}
        runs = {cell: self.run_of(cell) for cell in results}
        summary = summarise(self.plan, base, results, runs, **told)
        write_json(self.directory / SUMMARY_FILE, summary)
        return summary

    def choose(self) -> tuple[dict[str, Trial], list[dict[str, Any]]]:
        """The trial of least validation loss of each method, and every loss; nothing of the test set is looked at."""
        methods, batches = self.plan.methods, self.plan.batches
        if len(self.rates) == 1 and len(batches) < 2:
            return dict.fromkeys(methods, (self.rates[0], *(batches or (0,)))), []
        tried = tune(methods, self.rates, batches, self.losses)
        trials = [(method, *trial, loss) for method, own in tried.items() for trial, loss in own.items()]
        grid = [dict(zip(("method", "rate", "batch", VALIDATION), trial)) for trial in trials]
        return {method: best(own) for method, own in tried.items()}, grid

    def losses(self, wanted: list[tuple[str, Trial]]) -> list[float]:
        """The least validation loss of each trial, at the first seed and the first governance setting."""
        grid = [Cell(method, self.plan.governance[0], rate, 0, batch) for method, (rate, batch) in wanted]
        return [cells.best_loss(run) for _, run in self.trained(grid)]

    def measure_all(self, grid: list[Cell]) -> dict[Cell, Results]:
        """Results of every cell, in the order given, with what it cost; each stands in cells.jsonl, a line with its
        whole figures, while others train."""
        results: dict[Cell, Results] = {}
        for cell, run in self.trained(grid, self.measuring):
            own = cells.measured(run.path / "evaluation", self.model, run, self.measuring, self.stop)
            results[cell] = replace(own, rows=(*own.rows, *footprint(run)))
            lines = (asdict(cell) | whole_figures(own) for cell, own in results.items())
            write_lines(self.directory / "cells.jsonl", lines)
        return results

    def trained(
        self, grid: list[Cell], measuring: cells.Measuring | None = None
    ) -> Iterator[tuple[Cell, Run]]:
        """Every cell with its finished run, which names the manifests of what its copied data was governed by; with
        `measuring`, what is done ahead is measured too."""
        works = [(self.run_of(cell), self.config(cell)) for cell in grid]
        cells.run_ahead(works, measuring, self.workers, self.stop)
        for number, (cell, (run, config)) in enumerate(zip(grid, works), 1):
            done = " (done before)" if measuring and cells.is_measured(run) else ""
            self.stop.tell(f"{'Cell' if measuring else 'Trial'} {number} of {len(grid)}: {cell.name}{done}")
            cells.train_cell(run, config, self.stop)
            run.update(data_manifests=self.manifests)
            yield cell, run

    def run_of(self, cell: Cell) -> Run:
        return Run(self.directory / "cells" / cell.name)

    def config(self, cell: Cell) -> Config:
        return self.plan.config(cell, self.data)

    def count_governed(self) -> dict[str, dict[str, int]]:
        """What each governance setting keeps, where there are several, or faults are planted."""
        plan = self.plan
        if not plan.noise and len(plan.governance) == 1:
            return {}
        configs = {n: self.config(Cell(plan.reference, n, self.rates[0], 0)) for n in plan.governance}
        return {name: governed_counts(own, self.directory / "data") for name, own in configs.items()}
