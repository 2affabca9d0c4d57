"""Methods trained alike and measured alike, over seeds; each cell is a run of its own and is never done twice."""

import json
import shutil
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from mlx_hybrid.config import Config
from mlx_hybrid.errors import ConfigError
from mlx_hybrid.evaluation.benchmarks.questions import chosen_pivot, chosen_variants
from mlx_hybrid.evaluation.metrics.translation import MOST_TOKENS
from mlx_hybrid.evaluation.results import ALL, Results
from mlx_hybrid.files import read_json, write_json, write_text
from mlx_hybrid.run import Run, writing
from mlx_hybrid.study.budget import matched_sizes, matched_steps
from mlx_hybrid.study.cells import (
    Listener,
    Measuring,
    Work,
    best_loss,
    is_measured,
    measure_base,
    measure_run,
    open_base,
    run_ahead,
    train_cell,
)
from mlx_hybrid.study.data import evaluation_sets, freeze_data
from mlx_hybrid.study.figures import figures, footprint
from mlx_hybrid.study.plan import Cell, Plan, check_plan, final_cells, grid_cells
from mlx_hybrid.study.summary import SUMMARY_FILE, governed_counts, summarise

FORMAT = 1
PLAN_FILE = "plan.json"
CELLS_FILE = "cells.jsonl"


def run_study(plan: Plan, directory: Path, listener: Listener, *, workers: int = 1) -> dict:
    """Train and measure every cell of the plan in `directory`, and return the summary that is written there.

    A stop raises Stopped; the same call goes on from the cell it stopped in. Raises ConfigError for a
    plan that would not compare like with like, or a folder of another one.
    """
    check_plan(plan)
    if workers > 1 and plan.budget == "time":
        raise ConfigError(
            "--workers: cells that share the machine say nothing of --budget time; leave one of them."
        )
    directory.mkdir(parents=True, exist_ok=True)
    with writing(Run(directory)):
        new = keep_terms(plan, directory)
        try:
            study = Study(plan, directory, listener, workers)
        except BaseException:
            if new:  # the same folder takes the command once it is put right
                (directory / PLAN_FILE).unlink(missing_ok=True)
                shutil.rmtree(directory / "data", ignore_errors=True)
            raise
        return study.run()


def keep_terms(plan: Plan, directory: Path) -> bool:
    """Whether the folder is new; refuse to go on in one on other terms."""
    path, terms = directory / PLAN_FILE, plan.terms()
    if path.exists():
        old = read_json(path)["terms"]
        if changed := [key for key in {**old, **terms} if old.get(key) != terms.get(key)]:
            raise ConfigError(
                f"{directory}: its comparison has another {changed[0]}; use a new folder with -o. Methods, "
                "seeds, rates and governance may be added."
            )
        return False
    write_json(path, {"format": FORMAT, "terms": terms})
    return True


class Study:
    """The course of one comparison."""

    def __init__(self, plan: Plan, directory: Path, listener: Listener, workers: int):
        config = plan.base()
        self.directory, self.listener, self.workers = directory, listener, workers
        self.model_name = config.model
        self.rates = plan.rates or (config.train.learning_rate,)
        frozen = freeze_data(config, directory / "data", noise=plan.noise)
        self.data, self.manifests = frozen.values, frozen.manifests
        write_json(
            directory / PLAN_FILE, read_json(directory / PLAN_FILE) | {"data_manifests": self.manifests}
        )
        test, dev = evaluation_sets(directory / "data", config.data.group)
        variants, pivot = tuple(chosen_variants(plan.variants, test)), chosen_pivot(plan.pivot, test)
        self.plan = replace(plan, variants=variants, pivot=pivot)
        if plan.max_tokens and test.kind != "translation":
            raise ConfigError(f"--max-tokens is for translations; the test records are {test.kind}.")
        most = plan.max_tokens or MOST_TOKENS
        self.measuring = Measuring(test, dev, variants, plan.limit, pivot, most)
        self.sizes: dict[str, dict[str, int]] = {}

    def run(self) -> dict:
        self.listener.tell(f"Base: {self.model_name}")
        base = measure_base(self.directory / "base", self.model_name, self.measuring, self.listener)
        self.sizes = self.match_parameters()
        chosen, grid = self.choose_rates()
        steps = self.match_time(chosen)
        cells = final_cells(self.plan, chosen, steps)
        run_ahead([self.work(cell, self.measuring) for cell in cells], self.workers, self.listener)
        results: dict[Cell, Results] = {}
        begun, fresh = time.monotonic(), 0
        for number, cell in enumerate(cells, 1):
            done = is_measured(self.run_of(cell))
            self.listener.tell(
                f"Cell {number} of {len(cells)}: {cell.name}{' (done before)' if done else ''}"
            )
            results[cell] = measure_run(self.train(cell), self.model_name, self.measuring, self.listener)
            self.write_cells(results)
            fresh += not done
            if fresh and number < len(cells):
                left = (time.monotonic() - begun) / fresh * (len(cells) - number)
                self.listener.tell(f"  about {left / 60:.0f} minutes left")
        settings = self.plan.governance
        counted = settings if self.plan.noise or len(settings) > 1 else ()
        summary = summarise(
            self.plan,
            base,
            results,
            {cell: self.run_of(cell) for cell in results},
            grid=grid,
            chosen=chosen,
            sizes=self.sizes,
            governed={
                name: governed_counts(self.governed(name), self.directory / "data") for name in counted
            },
        )
        write_json(self.directory / SUMMARY_FILE, summary)
        return summary

    def write_cells(self, results: dict[Cell, Results]) -> None:
        """One line a cell that is done, with its whole figures, to be read while others train."""
        lines = []
        for cell, own in results.items():
            table = figures(own) | footprint(self.run_of(cell))
            whole = {
                m: row.value
                for (m, language, variant), row in table.items()
                if (language, variant) == (ALL, "")
            }
            lines.append(json.dumps(asdict(cell) | whole) + "\n")
        write_text(self.directory / CELLS_FILE, "".join(lines))

    def run_of(self, cell: Cell) -> Run:
        return Run(self.directory / "cells" / cell.name)

    def train(self, cell: Cell) -> Run:
        """The cell's finished run, which names the manifests of what its copied data was governed by."""
        run = train_cell(self.run_of(cell), self.config(cell), self.listener)
        run.update(data_manifests=self.manifests)
        return run

    def config(self, cell: Cell) -> Config:
        return self.plan.config(cell, self.data, self.sizes.get(cell.method, {}))

    def work(self, cell: Cell, measuring: Measuring | None = None) -> Work:
        return Work(cell.name, self.run_of(cell), self.config(cell), measuring)

    def governed(self, setting: str) -> Config:
        return self.plan.config(Cell(self.plan.reference, setting, self.rates[0], 0), self.data, {})

    def match_parameters(self) -> dict[str, dict[str, int]]:
        if self.plan.budget != "params":
            return {}
        model, _, _ = open_base(self.model_name)
        configs = {
            method: self.plan.config(Cell(method, self.plan.governance[0], self.rates[0], 0), self.data, {})
            for method in self.plan.methods
        }
        return matched_sizes(model, configs)

    def choose_rates(self) -> tuple[dict[str, float], list[dict[str, Any]]]:
        """The rate of least validation loss of each method, and every loss; nothing of the test set is looked at."""
        if len(self.rates) == 1 and self.plan.budget != "time":
            return dict.fromkeys(self.plan.methods, self.rates[0]), []
        grid = []
        cells = grid_cells(self.plan, self.rates)
        run_ahead([self.work(cell) for cell in cells], self.workers, self.listener)
        for number, cell in enumerate(cells, 1):
            self.listener.tell(f"Learning rate {number} of {len(cells)}: {cell.name}")
            run = self.train(cell)
            grid.append(
                {"method": cell.method, "rate": cell.rate, "valid_loss_nats_per_token": best_loss(run)}
            )
        chosen = {}
        for method in self.plan.methods:
            own = [row for row in grid if row["method"] == method]
            chosen[method] = min(own, key=lambda row: row["valid_loss_nats_per_token"])["rate"]
        return chosen, grid

    def match_time(self, chosen: dict[str, float]) -> dict[str, int]:
        if self.plan.budget != "time":
            return {}
        first = {
            m: Cell(m, self.plan.governance[0], chosen[m], self.plan.seed_numbers()[0])
            for m in self.plan.methods
        }
        return matched_steps({method: self.run_of(cell) for method, cell in first.items()})
