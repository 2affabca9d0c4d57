"""What one machine does for test_distributed.py, in a process of its own, and what the test does alone to compare."""

import json
import os
import signal
from pathlib import Path

from mlx_hybrid.models.blas import prefer_openblas

prefer_openblas()  # before anything imports mlx

import mlx.core as mx  # noqa: E402
import pytest  # noqa: E402
from scene import changed, everything, examples, listening, material  # noqa: E402

from mlx_hybrid.cli import finetune, main  # noqa: E402, F401
from mlx_hybrid.errors import ConfigError  # noqa: E402
from mlx_hybrid.evaluation import evaluate  # noqa: E402, F401
from mlx_hybrid.models import adapted  # noqa: E402, F401
from mlx_hybrid.models.activations import use_fast_activations  # noqa: E402
from mlx_hybrid.publish import card  # noqa: E402, F401
from mlx_hybrid.report import run_page  # noqa: E402, F401
from mlx_hybrid.training.batches import make_batch  # noqa: E402
from mlx_hybrid.training.checkpoint import Progress, load_checkpoint, save_checkpoint  # noqa: E402
from mlx_hybrid.training.distributed import ALONE, World, join  # noqa: E402
from mlx_hybrid.training.events import CheckpointDue, Trained, Validated  # noqa: E402
from mlx_hybrid.training.loop import Training, align  # noqa: E402
from mlx_hybrid.training.optimizer import make_step  # noqa: E402

use_fast_activations()  # as in every command
SETTINGS = changed(
    steps=8, batch_size=4, accumulate=2, report_every=3, validate_every=4, save_every=4,
    orthogonal_learning_rate=0.05,  # butterflies fold, and rounding does not grow
)  # fmt: skip
GROUPS = {"one batch": [4], "accumulated": [4, 4], "a machine left over": [4, 1], "uneven": [5]}
"""Records of each accumulated batch."""
METHODS = ("hybrid", "hybrid-boft")
LOST_AFTER = 5  # steps


def enter(job: str, folder: Path, given: tuple, environment: dict[str, str]) -> None:
    """Do a job as the machine that the environment names; what is said goes to files."""
    os.environ |= environment
    for number, name in ((1, "out"), (2, "err")):
        said = (folder / f"{environment['MLX_RANK']}.{name}").open("w")
        os.dup2(said.fileno(), number)
    if job == "command":
        os.chdir(given[0])
        main([str(word) for word in given[1:]])
    globals()[job](join(), folder, *given)


def sums_and_runs(world: World, folder: Path) -> None:
    """Gradients; whole runs; one that the last machine asks to stop after its third step; and what is not alike."""
    gradients(world, folder)
    for method in METHODS:
        whole_run(world, folder, method, method)
    asked = iter(range(1, 100))
    last = world.index == world.size - 1
    whole_run(world, folder, "stopped", "hybrid", stop=lambda: next(asked) == 3 and last)
    world.check_alike({"records": 1, "versions": "same"})
    if world.size > 1:
        with pytest.raises(ConfigError) as error:
            world.check_alike({"records": 1, "settings": world.index, "versions": world.index})
        (folder / f"unlike.{world.index}.json").write_text(json.dumps(str(error.value)))


def gradients(world: World, folder: Path) -> None:
    """The gradient of each group of batches, and what this machine has of it."""
    model, _ = material("hybrid")
    optimizer = listening(model)
    for name, sizes in GROUPS.items():
        records = iter(examples(sum(sizes), longest=60))
        batches = [world.share(make_batch)([next(records) for _ in range(size)]) for size in sizes]
        for kind, own in (("all", world), ("part", ALONE)):
            step = make_step(model, optimizer, compiled=False, world=own)
            loss, count, _, _ = step(batches)
            save(folder, f"{kind} {name}", world, {"loss": loss, "count": count} | optimizer.gradients)


def whole_run(world: World, folder: Path, name: str, method: str, stop=lambda: False) -> None:
    """From the first machine's start, which is not the others' own: its events, the state before and after."""
    pair = material(method, SETTINGS, seed=world.index)
    align(*pair, world)
    save(folder, f"{name} before", world, everything(*pair))
    told, progress = [], Progress()
    for event in steps(world, pair, progress, stop):
        if isinstance(event, Trained):
            told.append([event.step, event.loss, event.trained_tokens, event.gradient_norm, *event.mixing])
        if isinstance(event, Validated):
            told.append([event.step, event.loss, *event.by_language.values()])
    save(folder, name, world, everything(*pair))
    (folder / f"{name}.{world.index}.json").write_text(json.dumps({"steps": progress.step, "told": told}))


def steps(world: World, pair: tuple, progress: Progress, stop=lambda: False):
    held_back = examples(5, seed=1)
    return Training(*pair, examples(), held_back, SETTINGS, 0, progress, stop=stop, world=world)


def killed(world: World, folder: Path) -> None:
    """A run that saves as a job does; between two steps the last machine is gone."""
    pair, progress = material("hybrid-boft", SETTINGS), Progress()
    asked = iter(range(1, 100))

    def lose() -> bool:
        if next(asked) == LOST_AFTER and world.index == world.size - 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return False

    align(*pair, world)
    for event in steps(world, pair, progress, lose):
        if isinstance(event, CheckpointDue) and world.first:
            save_checkpoint(folder / "checkpoints", *pair, progress)


def resumed(world: World, folder: Path) -> None:
    """The rest of a broken run, from its checkpoint."""
    pair = material("hybrid-boft", SETTINGS, seed=9)
    progress = load_checkpoint(folder / "checkpoints", *pair)
    list(steps(world, pair, progress))
    save(folder, "resumed", world, everything(*pair))


def save(folder: Path, name: str, world: World, arrays: dict) -> None:
    mx.save_safetensors(str(folder / f"{name}.{world.index}.safetensors"), arrays)
