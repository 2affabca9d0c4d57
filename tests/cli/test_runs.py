"""`runs`: what there is, as it stands, within a terminal's width, and what to do with it."""

import json

import pytest

from mlx_hybrid.config import build_config
from mlx_hybrid.evaluation.results import Results, Row, write_results
from mlx_hybrid.run import create_run, runs_root, writing

NAME = "hybrid-unitary-20260101-120000"


@pytest.fixture
def made():
    def make(status: str, *, checkpoint: bool = False, **values):
        run = create_run(build_config({"name": NAME}, "test"), None)
        run.update(status=status, method="hybrid-unitary", step=10800, **values)
        if checkpoint:
            run.checkpoints.mkdir()
        return run

    return make


def test_the_list_fits_a_terminal(made, run):
    (made("interrupted").path / "evaluation").mkdir()
    figures = (("accuracy", 0.5, 0.75), ("loss", 2.386, 1.4))
    rows = [
        Row(metric, value=value, model=model)
        for metric, *values in figures
        for value, model in zip(values, ("base", "adapted"))
    ]
    write_results(runs_root() / NAME / "evaluation" / "held-out.json", Results({}, tuple(rows)))
    lines = run("runs").output.splitlines()
    assert lines[1].endswith("2.39→1.40  0.50→0.75")
    assert max(map(len, lines)) <= 81


@pytest.mark.parametrize(
    ("status", "checkpoint", "then"),
    [
        ("finished", True, "chat {}"),
        ("interrupted", True, "finetune --resume {}"),
        ("failed", False, "finetune"),
        ("running", True, "finetune --resume {}"),
    ],
)
def test_the_next_command_fits_the_status(status, checkpoint, then, made, run):
    path = made(status, checkpoint=checkpoint, error="it broke" if status == "failed" else None).path
    output = run("runs", NAME).output
    assert output.splitlines()[-1] == f"Next: mlx-hybrid {then.format(path)}"
    assert "None" not in output
    assert ("it broke" in output) == (status == "failed")


def test_a_run_whose_process_is_gone_is_not_running(made, run):
    told = lambda: json.loads(run("runs", NAME, "--json").output)["status"]  # noqa: E731
    with writing(made("running")):
        assert told() == "running"
    assert told() == "stopped"


@pytest.mark.parametrize("told", [None, 3])  # 3: it was stopped there before, and resumed
def test_a_run_that_was_killed_stands_at_its_newest_checkpoint(told, made, run):
    killed = made("interrupted", checkpoint=True)
    killed.update(step=told)
    for step, whole in ((6, True), (8, True), (10, False)):
        folder = killed.checkpoints / f"step-{step:07d}"
        folder.mkdir()
        if whole:
            (folder / "progress.json").write_text("{}")
    assert json.loads(run("runs", NAME, "--json").output)["step"] == 8
