"""Kill training runs at random moments with SIGKILL, resume each time, and compare with runs that nothing broke.

python tools/try_kills.py [--kills 200] [--seed 0] [--longest SECONDS]

Each attempt is the command `finetune` in a process forked from one that has the libraries imported, so that kills fall
into the work and not into Python's start: half of them within `longest` seconds of its beginning, half soon after some
phase began. After each kill the newest checkpoint must be the unbroken run's of that step, and the next attempt must
begin there; a run that came to its end must equal the unbroken one: the checkpoint, the best adapter, the held-out
results, the steps, losses and λ in metrics.jsonl, and the names of the files.
"""

import argparse
import itertools
import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from mlx_hybrid.models.blas import prefer_openblas

prefer_openblas()

from mlx_hybrid.cli import main as command_line  # noqa: E402
from mlx_hybrid.jobs import finetune as job  # noqa: E402
from mlx_hybrid.run import Run  # noqa: E402
from mlx_hybrid.training import loop, recording  # noqa: E402
from mlx_hybrid.training.optimizer import BranchOptimizer  # noqa: E402

PRELOADED = [  # by the process that attempts are forked from, after this file itself
    "try_kills", "transformers.models.auto.tokenization_auto", "transformers.tokenization_utils_tokenizers",
    "mlx_lm.models.llama", "mlx_lm.utils", "matplotlib.backends.backend_svg", "mlx_hybrid.cli.finetune",
    "mlx_hybrid.cli.display", "mlx_hybrid.publish.card", "mlx_hybrid.models.adapted",
    "mlx_hybrid.evaluation.evaluate", "mlx_hybrid.report.run_page", "mlx_hybrid.report.figures",
    "mlx_hybrid.training.memory.estimate", "mlx_hybrid.training.memory.shape",
]  # fmt: skip
MOST_PHASES, SOON = 40, 0.05  # phases that one attempt is let begin, and seconds after the last of them
TESTS = Path(__file__).parents[1] / "tests"
SETTINGS = (
    "governance.enabled=false", "train.batch_size=2", "train.report_every=2", "train.validate_every=3",
    "train.save_every=1", "data.valid_share=0.1", "data.test_share=0.1",
)  # fmt: skip
RUNS = {
    "hybrid": ("method=hybrid", "adapter.low_rank.start=gradient"),
    "hybrid-boft, accumulated": (
        "method=hybrid-boft", "train.accumulate=2", "train.save_every=2",
    ),
    "lora, with dropout and patience": (
        "method=lora", "adapter.dropout=0.1", "train.patience=3", "train.learning_rate=0.03",
    ),
}  # fmt: skip
PHASES = [
    "before anything is read", "reading records", "loading the base", "scoring the base", "attaching",
    "gradient start", "restoring", "a step", "a validation", "writing the best adapter", "writing a checkpoint",
    "measuring the adapter", "writing pages",
]  # fmt: skip
MARKS = [  # what begins each phase
    (job, "prepare"), (job, "load_setup"), (job, "ask_base"), (job, "attach_adapter"), (job, "start_from_records"),
    (job, "load_checkpoint"), (BranchOptimizer, "set_rate"), (loop, "validate"), (recording.Recorder, "save_best"),
    (recording, "save_checkpoint"), (job, "finish"), (job, "write_pages"),
]  # fmt: skip


@dataclass
class Outcome:
    """What the kills came to; `faults` is empty when all is as it should be."""

    kills: int = 0
    starts: int = 0
    ends: int = 0
    half_written: int = 0
    where: Counter = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)


def newest(run: Path) -> int:
    """The step of the newest checkpoint, 0 without one."""
    return Run(run).saved_step() or 0


def facts(run: Path, step: int) -> dict[str, object]:
    """What must be the same, to the bit, in every run that stands at a step: its checkpoint, but for times."""
    from safetensors.numpy import load_file

    folder = run / f"checkpoints/step-{step:07d}"
    saved = json.loads((folder / "progress.json").read_text())
    arrays = {name: load_file(folder / f"{name}.safetensors") for name in ("adapter", "optimizer")}
    found = {name: {key: own.tobytes() for key, own in part.items()} for name, part in arrays.items()}
    return found | {"progress": saved | {"seconds": 0, "window": saved["window"] | {"seconds": 0}}}


def facts_at_end(run: Path) -> dict[str, object]:
    """What must be the same in every finished run: also its adapter, results, metrics and files."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    keys = ("step", "loss_nats_per_token", "valid_loss_nats_per_token", "gradient_norm", "mixing")
    names = {str(path.relative_to(run)) for path in run.rglob("*")}
    files = ("adapter/adapters.safetensors", "evaluation/held-out.json")
    return {
        **facts(run, newest(run)),
        **{name: (run / name).read_bytes() for name in files if (run / name).exists()},
        "metrics": [[str(row.get(key)) for key in keys] for row in rows],
        "files": {name for name in names if not name.startswith("checkpoints/step-")},
    }


def compare(whole: dict[str, object], broken: dict[str, object]) -> list[str]:
    return [f"{name} differs" for name in whole if whole[name] != broken.get(name)]


def attempt(arguments: list[str], said: Path, phase, begun, restored) -> None:
    """In a process of its own: the command, telling its phase, how many it began, and the step it went on from."""
    for number, (owner, name) in enumerate(MARKS, 1):
        setattr(owner, name, marked(getattr(owner, name), number, phase, begun))
    load_checkpoint = job.load_checkpoint

    def load_and_tell(*given):
        progress = load_checkpoint(*given)
        restored.value = progress.step
        return progress

    job.load_checkpoint = load_and_tell
    with said.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    command_line(arguments, prog_name="mlx-hybrid")


def marked(function: Callable, number: int, phase, begun) -> Callable:
    def call(*args, **kwargs):
        phase.value = number
        begun.value += 1
        return function(*args, **kwargs)

    return call


class Attempt:
    """A process at the command: a new run, or going on with it where a checkpoint is there."""

    def __init__(self, run: Path, settings: tuple[str, ...]):
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOADED)
        go_on = ["--resume", str(run)]
        begin = [*(f"--set={s}" for s in settings), "-o", str(run)]
        self.begins_at, self.unfinished = newest(run), unfinished(run)
        self.said = run.with_name("said.txt")
        told = [context.Value("i", 0, lock=False) for _ in range(3)]
        self.phase, self.begun, self.restored = told
        arguments = ["finetune", *(go_on if newest(run) else begin)]
        self.process = context.Process(target=attempt, args=(arguments, self.said, *told))
        self.process.start()

    def faults(self, what: str) -> list[str]:
        """Wait for the end. What it said, unless all went well."""
        self.process.join()
        code = self.process.exitcode
        return [] if code == 0 else [f"{what} ended with {code}: {self.said.read_text()[-300:]}"]

    def wait(self, phases: int, seconds: float) -> None:
        """Until so long after so many phases began; less where it ends."""
        while self.process.is_alive() and self.begun.value < phases:
            time.sleep(0.001)
        self.process.join(seconds)

    def kill(self) -> str | None:
        """Kill it and say what it was at; None if it had ended."""
        self.process.kill()
        self.process.join()
        return PHASES[self.phase.value] if self.process.exitcode == -signal.SIGKILL else None


def unfinished(run: Path) -> set[str]:
    """Files and folders under a temporary name."""
    return {str(path) for path in run.rglob(".*")}


def try_kills(
    folder: Path, kills: int, seed: int, longest: float, runs: dict[str, tuple[str, ...]]
) -> Outcome:
    """Train each of `runs` unbroken, then again and again, until as many attempts as wanted were killed."""
    outcome, rng = Outcome(), random.Random(seed)
    for number, settings in enumerate(runs.values()):
        keep_all = (*settings, "train.keep_checkpoints=1000")
        outcome.faults += Attempt(folder / f"whole-{number}", keep_all).faults("an unbroken run")

    def draw() -> tuple[int, float] | None:
        """After how many phases, and how long after, to kill; None when enough were killed."""
        soon = rng.random() < 0.5
        when = (rng.randint(1, MOST_PHASES), rng.uniform(0, SOON)) if soon else (1, rng.uniform(0, longest))
        return when if outcome.kills < kills else None

    for number, settings in itertools.cycle(enumerate(runs.values())):
        if outcome.faults or outcome.kills >= kills:
            break
        while not (outcome.faults or attempted(folder, settings, number, outcome, draw())):
            pass
    return outcome


def attempted(
    folder: Path, settings: tuple[str, ...], number: int, outcome: Outcome, when: tuple[int, float] | None
) -> bool:
    """Begin or go on with a run, and kill it `when` told. Whether it came to its end; then it is compared, and goes."""
    broken, whole, where = folder / "broken", folder / f"whole-{number}", None
    if broken.exists() and not newest(broken):
        shutil.rmtree(broken)
    going = Attempt(broken, settings)
    outcome.starts += 1
    if when:
        going.wait(*when)
        where = going.kill()
    if where:
        outcome.kills += 1
        outcome.where[where] += 1
        outcome.half_written += bool(unfinished(broken) - going.unfinished)
        outcome.faults += check_kill(going, broken, whole, where)
    else:
        outcome.faults += going.faults("a run that was not killed")
    if outcome.faults or not newest(broken) or not Run(broken).is_finished():
        return False
    outcome.faults += compare(facts_at_end(whole), facts_at_end(broken))
    outcome.ends += 1
    shutil.rmtree(broken)
    return True


def check_kill(going: Attempt, broken: Path, whole: Path, where: str) -> list[str]:
    """Whether the attempt began at the newest checkpoint, and what is newest now is the unbroken run's of its step."""
    faults = []
    if going.restored.value not in (0, going.begins_at):
        faults.append(f"went on from step {going.restored.value}, not {going.begins_at}")
    if step := newest(broken):
        faults += compare(facts(whole, step), facts(broken, step))
    return [f"killed at {where}: {fault}" for fault in faults]


def toy_runs(folder: Path, steps: int) -> dict[str, tuple[str, ...]]:
    """RUNS on the tests' tiny model and a few short records."""
    sys.path.append(str(TESTS))
    from toys import write_model

    model, records = write_model(folder / "toy", "affine-4", num_hidden_layers=1), folder / "records.jsonl"
    rows = [
        {"language": "en", "label": said, "prompt": f"{'no' if n % 2 else 'so'} {n * n}", "completion": said}
        for n, said in enumerate(["up", "down"] * 24)
    ]
    records.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    common = (*SETTINGS, f"train.steps={steps}", f"model={model}", f"data.paths=[{records}]")
    return {name: (*common, *own) for name, own in RUNS.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--runs", type=int, default=len(RUNS), help="the first so many kinds of them")
    parser.add_argument("--longest", type=float, default=1.0)
    arguments = parser.parse_args()
    found = [str(Path(__file__).parent), str(TESTS / "default_install"), os.environ.get("PYTHONPATH", "")]
    os.environ["PYTHONPATH"] = os.pathsep.join(found)  # of the fork server: this file, and no PyTorch
    with tempfile.TemporaryDirectory() as folder:
        runs = dict(list(toy_runs(Path(folder), arguments.steps).items())[: arguments.runs])
        outcome = try_kills(Path(folder), arguments.kills, arguments.seed, arguments.longest, runs)
    for phase in PHASES:
        print(f"| {phase} | {outcome.where[phase]} |")
    half = f"{outcome.half_written} of them left something half written"
    said = "; ".join(outcome.faults) or "equal to the unbroken runs, bit for bit"
    print(f"{outcome.kills} kills, {half}; {outcome.starts} starts, {outcome.ends} ends: {said}.")
    sys.exit(bool(outcome.faults))


if __name__ == "__main__":
    main()
