"""Cells of a comparison in processes of their own, several at a time: on a CPU each runs on one core."""

from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import AbstractContextManager
from dataclasses import dataclass
from multiprocessing import get_context

from mlx_hybrid.config import Config
from mlx_hybrid.models.blas import prefer_openblas
from mlx_hybrid.run import Run
from mlx_hybrid.study.cells import (
    Measuring,
    Tools,
    is_measured,
    measure_run,
    status_of,
    train_cell,
)


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


def run_ahead(works: list[Work], tools: Tools) -> None:
    """Do what is not done yet, `tools.workers` at a time; whoever goes over the cells afterwards finds their files.

    Raises what the first cell that failed did; Stopped after a stop, when every cell has saved where it stands.
    """
    works = [work for work in works if not work.done]
    if tools.workers == 1 or len(works) < 2:
        return
    context = get_context("spawn")  # a fork of a process that has used MLX hangs
    with ProcessPoolExecutor(tools.workers, context, initializer=prefer_openblas) as pool:
        running = {pool.submit(run_one, work, tools.apart): work for work in works}
        try:
            for number, future in enumerate(as_completed(running), 1):
                future.result()
                tools.tell(f"  {number} of {len(works)} done: {running[future].name}")
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def run_one(work: Work, apart: Callable[[], AbstractContextManager[Tools]]) -> None:
    """In another process: train one cell and measure it."""
    with apart() as own:
        run = train_cell(work.run, work.config, own)
        if work.measuring:
            measure_run(run, work.config.model, work.measuring, own)
