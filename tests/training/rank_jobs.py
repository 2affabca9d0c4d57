"""What one rank does for test_ranks.py, in a process of its own, and what the test does alone to compare."""

import json
import os
import signal
from pathlib import Path

from mlx_hybrid.models.blas import prefer_openblas

prefer_openblas()  # before anything imports mlx

import mlx.core as mx  # noqa: E402
from mlx.utils import tree_flatten  # noqa: E402
from scene import changed, everything, examples, material  # noqa: E402

from mlx_hybrid.cli import finetune, main  # noqa: E402, F401
from mlx_hybrid.config import TrainConfig  # noqa: E402
from mlx_hybrid.evaluation import evaluate  # noqa: E402, F401
from mlx_hybrid.models import adapted  # noqa: E402, F401
from mlx_hybrid.publish import card  # noqa: E402, F401
from mlx_hybrid.report import run_page  # noqa: E402, F401
from mlx_hybrid.training.batches import make_batch  # noqa: E402
from mlx_hybrid.training.checkpoint import load_checkpoint, save_checkpoint  # noqa: E402
from mlx_hybrid.training.distributed import Ranks, join  # noqa: E402
from mlx_hybrid.training.events import CheckpointDue, Trained, Validated  # noqa: E402
from mlx_hybrid.training.loop import align, train  # noqa: E402
from mlx_hybrid.training.optimizer import BranchOptimizer  # noqa: E402
from mlx_hybrid.training.packing import make_packed_batch  # noqa: E402
from mlx_hybrid.training.progress import Progress  # noqa: E402
from mlx_hybrid.training.step import make_step  # noqa: E402

SETTINGS = changed(
    steps=8, batch_size=4, accumulate=2, report_every=3, validate_every=4, save_every=4,
    orthogonal_learning_rate=0.15,  # far enough that butterflies fold
)  # fmt: skip
GROUPS = {  # name: (how a batch is laid out, records of each accumulated batch)
    "one batch": (make_batch, [4]), "accumulated": (make_batch, [4, 4]), "packed": (make_packed_batch, [6]),
    "a rank left over": (make_batch, [4, 1]), "uneven": (make_batch, [5]),
}  # fmt: skip
RUNS = {"hybrid": {}, "hybrid-boft": {}, "packed": {"packing": "auto"}}
LOST_AFTER = 5  # steps


def enter(job: str, folder: Path, given: tuple, environment: dict[str, str]) -> None:
    """Do a job as the rank that the environment names; what is said goes to files."""
    os.environ |= environment
    for number, name in ((1, "out"), (2, "err")):
        said = (folder / f"{environment['MLX_RANK']}.{name}").open("w")
        os.dup2(said.fileno(), number)
    if job == "command":
        os.chdir(given[0])
        main([str(word) for word in given[1:]])
    with join() as ranks:
        globals()[job](ranks, folder, *given)


class Listening(BranchOptimizer):
    """Keeps the gradient it was given, and moves nothing."""

    def step(self, model, gradients, count):
        self.gradients = {name: gradient / count for name, gradient in tree_flatten(gradients)}
        return mx.array(1.0), mx.array([0.5])


def sums_and_runs(ranks: Ranks, folder: Path) -> None:
    """Gradients; whole runs; and a run that the last rank asks to stop after its third step."""
    gradients(ranks, folder)
    for name, changes in RUNS.items():
        method = name if name.startswith("hybrid") else "hybrid"
        whole_run(ranks, folder, name, method, changed(SETTINGS, **changes))
    asked = iter(range(1, 100))
    whole_run(
        ranks, folder, "stopped", "hybrid", SETTINGS,
        stop=lambda: next(asked) == 3 and ranks.rank == ranks.size - 1,
    )  # fmt: skip


def gradients(ranks: Ranks, folder: Path) -> None:
    """The gradient of each group of batches, and what this rank has of it."""
    model, _ = material("hybrid")
    optimizer = Listening(
        model, learning_rate=0.0, orthogonal_learning_rate=0.0, weight_decay=0.0, clip=0.0, mixing="off"
    )
    for name, (lay_out, sizes) in GROUPS.items():
        records = iter(examples(sum(sizes), longest=60))
        batches = [ranks.split(lay_out)([next(records) for _ in range(size)]) for size in sizes]
        for kind, own in (("all", ranks), ("part", Ranks())):
            step = make_step(model, optimizer, accumulate=len(sizes), compiled=False, ranks=own)
            loss, count, _, _ = step(batches)
            save(folder, f"{kind} {name}", ranks, {"loss": loss, "count": count} | optimizer.gradients)


def whole_run(
    ranks: Ranks, folder: Path, name: str, method: str, settings: TrainConfig, stop=lambda: False
) -> None:
    """From the first rank's start, which is not the others' own: its events, the state before and after."""
    pair = material(method, settings, seed=ranks.rank)
    align(*pair, ranks)
    save(folder, f"{name} before", ranks, everything(*pair))
    told, progress = [], Progress()
    for event in steps(ranks, pair, settings, progress, stop):
        if isinstance(event, Trained):
            told.append([event.step, event.loss, event.trained_tokens, event.gradient_norm, *event.mixing])
        if isinstance(event, Validated):
            told.append([event.step, event.loss, *event.by_language.values()])
    save(folder, name, ranks, everything(*pair))
    (folder / f"{name}.{ranks.rank}.json").write_text(json.dumps({"steps": progress.step, "told": told}))


def steps(ranks: Ranks, pair: tuple, settings: TrainConfig, progress: Progress, stop=lambda: False):
    return train(
        *pair, examples(), examples(5, seed=1), settings, seed=0, progress=progress, stop=stop, ranks=ranks
    )


def broken(ranks: Ranks, folder: Path, number: int) -> None:
    """A run that saves as a job does; between two steps the last rank gets a signal."""
    pair, progress = material("hybrid-boft", SETTINGS), Progress()
    asked = iter(range(1, 100))

    def lose() -> bool:
        if next(asked) == LOST_AFTER and ranks.rank == ranks.size - 1:
            os.kill(os.getpid(), number)
        return False

    align(*pair, ranks)
    ranks.hurry()
    for event in steps(ranks, pair, SETTINGS, progress, lose):
        if isinstance(event, CheckpointDue) and ranks.leads:
            save_checkpoint(folder / "checkpoints", *pair, progress)


def killed(ranks: Ranks, folder: Path) -> None:
    broken(ranks, folder, signal.SIGKILL)


def frozen(ranks: Ranks, folder: Path) -> None:
    broken(ranks, folder, signal.SIGSTOP)


def resumed(ranks: Ranks, folder: Path) -> None:
    """The rest of a broken run, from the first rank's checkpoint."""
    pair, progress = material("hybrid-boft", SETTINGS, seed=9), Progress(step=LOST_AFTER)
    if ranks.leads:
        progress = load_checkpoint(folder / "checkpoints", *pair)
    align(*pair, ranks)
    list(steps(ranks, pair, SETTINGS, progress))
    save(folder, "resumed", ranks, everything(*pair))


def save(folder: Path, name: str, ranks: Ranks, arrays: dict) -> None:
    mx.save_safetensors(str(folder / f"{name}.{ranks.rank}.safetensors"), arrays)
