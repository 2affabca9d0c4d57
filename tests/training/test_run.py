"""The run directory: made once, found by name, written whole, and by one process at a time."""

import json
import os
import subprocess
import sys
import time

import pytest

from mlx_hybrid.config import build_config
from mlx_hybrid.errors import ConfigError
from mlx_hybrid.run import Run, create_run, discard, find_run, list_runs, runs_root, writing
from mlx_hybrid.training.events import CheckpointDue, Trained, Validated
from mlx_hybrid.training.recording import metrics_row

CONFIG = build_config({"method": "lora", "name": "first", "seed": 5}, "test")


def test_a_run_keeps_its_config_and_a_name_is_taken_once():
    run = create_run(CONFIG, None)
    assert run.path == runs_root() / "first"
    assert run.config() == CONFIG
    with pytest.raises(ConfigError, match=r"first: exists already; choose another name\.$"):
        create_run(CONFIG, None)


def test_a_run_is_offered_to_be_resumed_where_that_can_be():
    run = create_run(CONFIG, None)
    run.update(status="interrupted")
    (run.checkpoints / "step-0000003").mkdir(parents=True)
    (run.checkpoints / "step-0000003" / "progress.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"choose another name, or continue it with --resume .*first\.$"):
        create_run(CONFIG, None)
    run.update(status="finished")
    (run.path / "README.md").write_text("")
    with pytest.raises(ConfigError, match=r"first: exists already; choose another name\.$"):
        create_run(CONFIG, None)


def test_without_a_name_it_is_named_by_method_and_time(tmp_path):
    run = create_run(build_config({"method": "boft"}, "test"), None)
    assert run.name.startswith(f"boft-{time.strftime('%Y')}")
    assert create_run(CONFIG, tmp_path / "deep" / "place").path == tmp_path / "deep" / "place"


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="POSIX")
def test_a_place_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"cannot be written .*; choose another place with -o"):
        create_run(CONFIG, tmp_path / "file" / "run")


def test_runs_are_found_by_path_name_and_last():
    for name, started in (("b", "2026-01-01T00:00:01"), ("a", "2026-01-01T00:00:02")):
        create_run(CONFIG, runs_root() / name).update(started=started)
    assert [run.name for run in list_runs()] == ["b", "a"]
    assert find_run("last").name == "a"
    assert find_run("b").path == find_run(str(runs_root() / "b")).path
    with pytest.raises(ConfigError, match=r'No run "bb"; did you mean "b"?'):
        find_run("bb")


def test_without_runs_it_says_so():
    with pytest.raises(ConfigError, match=r"No run in .* yet"):
        find_run("last")
    with pytest.raises(ConfigError, match=r'No run "x"; .* holds no run'):
        find_run("x")


def test_facts_are_merged_and_numbers_appended():
    run = create_run(CONFIG, None)
    run.update(status="running", seed=5)
    run.update(status="finished")
    assert run.info() == {"format": 1, "status": "finished", "seed": 5}
    trained = Trained(
        3, 9, 1.25, {"orthogonal_learning_rate": 1e-3}, 0.5, 100, 40, 50.0, 0.1, (0.5, 0.4), 2.0
    )
    for event in (trained, Validated(4, 1.5, True, {})):
        run.add_metrics(metrics_row(event))
    assert metrics_row(CheckpointDue(4)) is None
    assert [row["step"] for row in run.metrics()] == [3, 4]
    assert run.metrics()[0]["loss_nats_per_token"] == 1.25
    assert run.metrics()[0]["orthogonal_learning_rate"] == 1e-3
    assert "learning_rate" not in run.metrics()[0]
    assert run.metrics()[1] == {"step": 4, "valid_loss_nats_per_token": 1.5, "best": True}
    json.loads((run.path / "run.json").read_text())
    assert not [path for path in run.path.iterdir() if path.name.endswith(".tmp")]


def test_a_cut_off_row_and_the_rows_of_steps_to_be_taken_again_are_dropped():
    run = create_run(CONFIG, None)
    for step in (2, 4, 6):
        run.add_metrics(metrics_row(Validated(step, 1.5, True, {"en": 1.5, "": 1.25})))
    with (run.path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 7, "valid')
    assert [row["step"] for row in run.metrics()] == [2, 4, 6]
    run.forget_after(4)
    assert [row["step"] for row in run.metrics()] == [2, 4]
    assert run.metrics()[0]["valid_loss_nats_per_token_by_language"] == {"en": 1.5, "undeclared": 1.25}


def test_only_one_process_writes():
    run = create_run(CONFIG, None)
    code = f"""
from pathlib import Path
from mlx_hybrid.errors import ConfigError
from mlx_hybrid.run import Run, writing
try:
    with writing(Run(Path({str(run.path)!r}))):
        print("free")
except ConfigError as error:
    print(error)
"""

    def ask() -> str:
        return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout

    with writing(run):
        assert "another process is writing there" in ask()
    assert ask() == "free\n"
    assert Run(run.path).name == "first"


def test_a_run_that_came_to_nothing_leaves_nothing(tmp_path):
    place = tmp_path / "deep" / "first"
    create_run(CONFIG, place)
    assert (place / "config.yaml").is_file()
    discard([place, tmp_path / "deep"])
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_no_run_is_not_said_to_be_one(tmp_path):
    with pytest.raises(ConfigError, match=r"exists already; choose another name\.$"):
        create_run(CONFIG, tmp_path)


def test_a_run_without_an_adapter_says_how_to_go_on():
    run = create_run(CONFIG, None)
    run.update(status="interrupted")
    with pytest.raises(ConfigError, match=r"has no adapter yet \(status: interrupted\)\.$"):
        run.check_adapter()
    run.checkpoints.mkdir()
    with pytest.raises(ConfigError, match=r"; go on with --resume .*first\.$"):
        run.check_adapter()
    run.adapter.mkdir()
    run.check_adapter()
