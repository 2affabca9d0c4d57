"""What `finetune` prints: names as they are, commands that a shell takes, JSON alone on stdout."""

import json
import shlex

import pytest

from mlx_hybrid.evaluation.results import Results, Row
from mlx_hybrid.jobs import finetune as job
from mlx_hybrid.jobs.events import Evaluated, Prepared
from mlx_hybrid.run import Run
from mlx_hybrid.training.events import Interrupted, Note, Validated

RESULTS = Results(
    {"task": "held-out records", "version": 1, "records": 9},
    (
        Row("loss", value=2.0, n=9, model="base"),
        Row("loss", value=1.5, n=9, model="adapted"),
        Row("loss", value=-0.5, low=-0.6, high=-0.4, n=9, model="difference"),
    ),
)


@pytest.fixture
def events(monkeypatch, tmp_path):
    """Make `finetune` see these events; the run's folder has a space and square brackets in its name."""
    path = tmp_path / "my [red]runs" / "first"
    path.mkdir(parents=True)
    Run(path).update(status="finished")

    def play(*more):
        prepared = Prepared(Run(path), 9, 0, {}, 7, 1, 1)
        monkeypatch.setattr(job, "finetune", lambda *_, **__: iter([prepared, *more]))
        return path

    return play


def test_the_next_command_can_be_pasted(events, run):
    path = events(Evaluated(RESULTS))
    result = run("finetune")
    assert f"Run saved in {path}." in result.stdout
    assert shlex.split(result.stdout.splitlines()[-1]) == ["mlx-hybrid", "chat", str(path)]


def test_the_resume_command_can_be_pasted(events, run):
    path = events(Interrupted(3))
    result = run("finetune", code=130)
    assert shlex.split(result.stdout) == ["mlx-hybrid", "finetune", "--resume", str(path)]


def test_json_is_alone_on_stdout(events, run):
    path = events(Evaluated(RESULTS))
    result = run("finetune", "--json")
    told = {"format": 1, "run": str(path), "status": "finished", "results": RESULTS.tree()}
    assert json.loads(result.stdout) == told
    assert "loss, nats per token" in result.stderr
    assert "-0.500 [-0.600, -0.400]" in result.stderr


def test_a_loss_above_the_base_s_is_not_called_best_without_saying_so(events, run):
    losses = ((0, 2.0, False), (5, 3.0, True), (9, 1.5, True))
    events(*(Validated(step, loss, best, {}) for step, loss, best in losses))
    told = [line for line in run("finetune").stderr.splitlines() if "validation loss" in line]
    assert told == [
        "step 0  validation loss 2.000 (before training)",
        "step 5  validation loss 3.000 (best so far, above the base's)",
        "step 9  validation loss 1.500 (best so far)",
    ]


def test_lines_are_not_broken_for_a_file(events, run):
    events(Note("word " * 40))
    assert "word " * 40 in run("finetune").stderr
