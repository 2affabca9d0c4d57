"""Faults of the machine under a run: a disk that is full or read-only, a kill; what was saved stays, and goes on."""

import errno
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from pages import no_pages

from mlx_hybrid.config import build_config, to_tree
from mlx_hybrid.errors import MemoryLimitError, MlxHybridError
from mlx_hybrid.jobs import finetune as job
from mlx_hybrid.run import Run
from mlx_hybrid.training import checkpoint, loop, setup
from mlx_hybrid.training.checkpoint import checkpoints
from mlx_hybrid.training.memory.limits import running_out

TOOLS = Path(__file__).resolve().parents[2] / "tools"


@pytest.fixture(scope="module")
def config(quantised_folder, tmp_path_factory):
    records = tmp_path_factory.mktemp("records") / "records.jsonl"
    rows = [{"prompt": f"say {n}", "completion": f"word {n * 7}"} for n in range(40)]
    records.write_text("".join(json.dumps(row) + "\n" for row in rows))
    tree = {
        "model": str(quantised_folder), "method": "lora", "evaluate": False, "governance": {"enabled": False},
        "data": {"paths": [str(records)], "test_share": 0.0},
        "train": {"steps": 6, "batch_size": 4, "save_every": 1, "validate_every": 3, "report_every": 1},
    }  # fmt: skip
    return build_config(tree, "test")


def train(config, output=None, resume=None) -> None:
    with no_pages():
        for _ in job.finetune(config, output=output, resume=resume):
            pass


@pytest.fixture(scope="module")
def whole(config, tmp_path_factory):
    """A run that nothing broke."""
    path = tmp_path_factory.mktemp("whole") / "run"
    train(config, path)
    return path


FAULTS = {
    "as Python says it": OSError(errno.ENOSPC, "No space left on device"),
    "as MLX says it": RuntimeError("[write] Unable to write 492892 bytes to file."),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_checkpoint_that_cannot_be_written_ends_the_run_and_the_last_one_goes_on(
    fault, config, whole, tmp_path, monkeypatch
):
    broken = tmp_path / "a broken run"
    real, calls = checkpoint.write_json, iter(range(1, 100))

    def write_json(path, value):
        if next(calls) == 5:  # after those of the start and of three steps
            raise FAULTS[fault]
        real(path, value)

    monkeypatch.setattr(checkpoint, "write_json", write_json)
    with pytest.raises(
        MlxHybridError, match=r"cannot be written[ ,].*Step 4 is not saved, earlier .*--resume"
    ) as error:
        train(config, broken)
    assert error.value.exit_code == 1
    assert shlex.split(str(error.value))[-2:] == ["--resume", str(broken)]
    run = Run(broken)
    assert run.info()["status"] == "failed"
    assert [path.name for path in checkpoints(run.checkpoints)] == ["step-0000002", "step-0000003"]
    train(run.config(), resume=run)
    assert run.info()["status"] == "finished"
    monkeypatch.syspath_prepend(str(TOOLS))
    from try_kills import compare, facts_at_end

    assert compare(facts_at_end(whole), facts_at_end(broken)) == []


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_became_read_only_is_told(config, tmp_path):
    output = tmp_path / "run"
    steps = job.finetune(config, output=output)
    for _ in steps:
        if checkpoints(output / "checkpoints"):
            break
    (output / "checkpoints").chmod(0o500)
    with pytest.raises(MlxHybridError, match="cannot be written"):
        list(steps)
    (output / "checkpoints").chmod(0o700)
    assert checkpoints(output / "checkpoints")


@pytest.mark.slow
def test_killed_at_random_moments_the_run_ends_as_if_it_never_was():
    tool = [sys.executable, TOOLS / "try_kills.py", "--kills", "2", "--runs", "1", "--steps", "6"]
    done = subprocess.run(tool, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 kills" in done.stdout


NO_MEMORY = [  # what MLX says where a GPU has no room; its CPU allocator cannot be made to say it
    "[malloc] Unable to allocate 1073741824 bytes.",
    "[metal::malloc] Attempting to allocate 4398046511104 bytes which is greater than the maximum allowed buffer size "
    "of 86586540032 bytes.",
    "[metal::malloc] Resource limit (499000) exceeded.",
    "[METAL] Command buffer execution failed: Insufficient Memory "
    "(00000008:kIOGPUCommandBufferCallbackErrorOutOfMemory)",
]


@pytest.mark.parametrize("said", NO_MEMORY)
def test_memory_that_ran_out_is_known_by_what_mlx_says(said):
    told = rf"^Memory ran out \({re.escape(said.rstrip('.'))}\); close other programs, or .* Go on\.$"
    with pytest.raises(MemoryLimitError, match=told) as error, running_out(lambda: " Go on."):
        raise RuntimeError(said)
    assert error.value.exit_code == 4


def test_memory_that_runs_out_in_a_step_is_said_with_the_way_on(config, tmp_path, monkeypatch):
    broken, real, calls = tmp_path / "a broken run", loop.make_step, iter(range(1, 100))

    def make_step(*given, **named):
        step = real(*given, **named)

        def failing(batches):
            if next(calls) == 4:
                raise RuntimeError(NO_MEMORY[0])
            return step(batches)

        return failing

    monkeypatch.setattr(loop, "make_step", make_step)
    with pytest.raises(MemoryLimitError, match="Step 3 is saved; go on with: ") as error:
        train(config, broken)
    assert shlex.split(str(error.value))[-2:] == ["--resume", str(broken)]
    run = Run(broken)
    assert run.info()["status"] == "failed"
    assert run.info()["error"].startswith("Memory ran out")
    train(run.config(), resume=run)
    assert run.info()["status"] == "finished"


def test_memory_that_runs_out_at_the_start_leaves_no_run(config, tmp_path, monkeypatch):
    def sketch(*_, **__):
        raise RuntimeError(NO_MEMORY[0])
        yield

    monkeypatch.setattr(setup, "sketch_gradients", sketch)
    path = tmp_path / "run"
    hybrid = build_config(to_tree(config) | {"method": "lora-ga", "adapter": {}}, "test")
    with pytest.raises(MemoryLimitError, match=r"Memory ran out .*smaller batches\.$"):
        train(hybrid, path)
    assert not path.exists()


def test_another_error_of_mlx_is_no_lack_of_memory():
    with pytest.raises(RuntimeError, match="shapes"), running_out(str):
        raise RuntimeError("[matmul] shapes do not match.")
