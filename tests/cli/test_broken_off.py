"""Runs that break off: what they leave, what they say, and that another's run is not touched."""

import errno
import json
from pathlib import Path

import pytest
from acting import refused

from mlx_hybrid.config import build_config
from mlx_hybrid.errors import MlxHybridError
from mlx_hybrid.files import new_directory
from mlx_hybrid.jobs import finetune as job
from mlx_hybrid.run import Run, create_run, writing
from mlx_hybrid.training.events import Trained
from mlx_hybrid.training.recording import metrics_row

STEP = Trained(1, 2, 1.0, {"learning_rate": 1e-3}, 1.0, 10, 5, 1.0, 0.1, (), 1.0)


@pytest.fixture
def breaks(monkeypatch):
    """Make training end in `error`, after a step and a checkpoint where told."""

    def set_up(error: BaseException, *, step: bool = False, checkpoint: bool = False) -> None:
        def train(config, run, *_, **__):
            if step:
                run.add_metrics(metrics_row(STEP))
            if checkpoint:
                (run.checkpoints / "step-0000001").mkdir(parents=True)
            yield STEP
            raise error

        monkeypatch.setattr(job, "train_and_evaluate", train)

    return set_up


def finetune(run, records: Path, output: Path, **how):
    return run("finetune", "--data", records, "-o", output, "--set", "governance.enabled=false", **how)


FULL = OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize(
    ("error", "code"), [(FULL, 1), (MlxHybridError("failed"), 1), (KeyboardInterrupt(), 130)]
)
def test_without_a_step_nothing_is_left_but_a_folder_that_was_there(
    error, code, breaks, run, records, tmp_path
):
    breaks(error)
    (tmp_path / "runs").mkdir()
    for place in ("new/deep/first", "runs/first"):
        done = finetune(run, records, tmp_path / place)
        refused(done, code, *(["Error: No space left on device."] if error is FULL else []))
    assert [path.name for path in tmp_path.rglob("*")] == ["runs"]


def test_after_a_step_a_fault_is_written_down(breaks, run, records, tmp_path):
    breaks(FULL, step=True)
    assert finetune(run, records, tmp_path / "first").exit_code == 1
    info = Run(tmp_path / "first").info()
    assert info["status"] == "failed"
    assert "No space left" in info["error"]


def test_a_second_interrupt_after_a_checkpoint_can_be_gone_on_with(breaks, run, records, tmp_path):
    breaks(KeyboardInterrupt(), step=True, checkpoint=True)
    result = finetune(run, records, tmp_path / "first", code=130)
    assert result.stdout == f"mlx-hybrid finetune --resume {tmp_path / 'first'}\n"
    assert Run(tmp_path / "first").info()["status"] == "interrupted"


def test_resuming_a_run_at_work_leaves_it_alone(run, records, tmp_path):
    tree = {"data": {"paths": [str(records)]}, "governance": {"enabled": False}}
    at_work = create_run(build_config(tree, "test"), tmp_path / "first")
    at_work.update(status="running")
    at_work.checkpoints.mkdir()
    files = lambda: {path.name: path.read_bytes() for path in at_work.path.iterdir() if path.is_file()}  # noqa: E731
    with writing(at_work):
        before, result, after = files(), run("finetune", "--resume", at_work.path), files()
    refused(result, 2, "another process is writing there")
    assert before == after


def test_resuming_before_the_first_checkpoint_says_so(run, tmp_path):
    create_run(build_config({}, "test"), tmp_path / "first").update(status="running")
    refused(run("finetune", "--resume", tmp_path / "first"), 2, "stopped before its first checkpoint")


@pytest.mark.parametrize("error", [FULL, RuntimeError("[write] Unable to write 1055 bytes to file.")])
def test_a_full_disk_leaves_the_older_folder_as_it_was(error, tmp_path):
    place = tmp_path / "adapter"
    place.mkdir()
    (place / "old.json").write_text(json.dumps(1))

    def write() -> None:
        with new_directory(place) as folder:
            (folder / "new.json").write_text("2")
            raise error

    with pytest.raises(MlxHybridError, match="cannot be written"):
        write()
    assert [path.name for path in tmp_path.rglob("*")] == ["adapter", "old.json"]
