"""A run begun with relative names goes on, and is used, from any folder; where it was begun never leaves."""

import json
import shutil
from pathlib import Path

import pytest
from acting import refused, sets

from mlx_hybrid.config import load_config
from mlx_hybrid.jobs import finetune as job
from mlx_hybrid.models.adapted import load_any
from mlx_hybrid.publish.hub import plan
from mlx_hybrid.run import PLACE, Run

pytestmark = pytest.mark.slow

MODEL = "models/tiny"
"""A folder, though it has the form of a Hub id."""


@pytest.fixture
def home(quantised_folder, records, tmp_path, monkeypatch):
    """A folder with a model and records, to begin runs in."""
    folder = tmp_path / "home"
    shutil.copytree(quantised_folder, folder / MODEL)
    shutil.copy(records, folder / "records.jsonl")
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def elsewhere(home, tmp_path, monkeypatch):
    """Go to a folder in which none of the names leads anywhere."""

    def go() -> Path:
        away = tmp_path / "away"
        away.mkdir(exist_ok=True)
        monkeypatch.chdir(away)
        return away

    return go


def begin(run, settings, *more, **how):
    data = ("--model", MODEL, "--data", "records.jsonl", "-o", "runs/first")
    return run("finetune", *data, *settings, *more, code=0, **how)


UNMEASURED = sets("evaluate=false")


def adapter(run: Run) -> bytes:
    return (run.adapter / "adapters.safetensors").read_bytes()


def test_resuming_elsewhere_is_resuming(run, finished, settings, home, elsewhere):
    whole, cut = Run(finished("hybrid").path), home / "runs" / "cut"
    named = {"method": "hybrid", "model.name": MODEL, "data.paths": ["records.jsonl"]}
    config = load_config(None, (*settings[1::2], *UNMEASURED[1::2]), named)
    for _ in job.finetune(config, output=Path("runs/cut"), stop=lambda: True):
        pass
    assert Run(cut).info()["status"] == "interrupted"
    away = elsewhere()
    done = run("finetune", "--resume", "../home/runs/cut", code=0)
    assert adapter(Run(cut)) == adapter(whole)
    assert Run(cut).info()["data_identity"] == whole.info()["data_identity"]
    assert str(cut) in done.stdout
    assert Path.cwd() == away
    assert not list(away.iterdir())


def test_a_trained_run_is_used_from_elsewhere(run, lora, home, elsewhere):
    rows = (home / "records.jsonl").read_text().splitlines(keepends=True)
    (home / "test.jsonl").write_text("".join(rows[:30]))
    (home / "records.jsonl").write_text("".join(rows[30:]))
    begin(run, lora, *UNMEASURED, "--set", "data.test=[test.jsonl]")
    away, first = elsewhere(), home / "runs" / "first"
    assert load_any(str(first)).change > 1e-3
    onward = ["--from", first, "--data", home / "records.jsonl", "-o", away / "second"]
    for arguments in (
        ["generate", first, "so river", "--max-tokens", "2"],
        ["evaluate", first],
        ["export", first, "--to", "mlx-lm", "-o", away / "out"],
        ["finetune", *onward, *lora[:-2], *UNMEASURED],
    ):
        run(*arguments, code=0)
    assert json.loads((first / "evaluation" / "test.json").read_text())["records"] == 30
    on_its_own = run("evaluate", first, "--on", "../home/records.jsonl")
    refused(on_its_own, 3, "records to evaluate on were trained on")


def test_a_project_that_moved_is_used_from_its_own_folder(run, settings, home, tmp_path, monkeypatch):
    begin(run, settings, *UNMEASURED, "--set", "train.steps=4")
    moved = home.rename(tmp_path / "moved")
    monkeypatch.chdir(moved)
    assert load_any("runs/first").change > 1e-3
    monkeypatch.chdir(tmp_path)
    refused(run("generate", moved / "runs" / "first", "so river"), 2, "models/tiny")


def test_where_it_was_begun_never_leaves(run, lora, home, elsewhere):
    begin(run, lora, "--set", "train.steps=4", pages=True)
    first, away = home / "runs" / "first", elsewhere()
    assert json.loads((first / PLACE).read_text())["folder"] == str(home)
    published = plan(first, "me/first")
    assert PLACE in published.left_out
    sent = [data if isinstance(data, bytes) else data.read_bytes() for data in published.files.values()]
    run("export", first, "--to", "mlx-lm", "-o", away / "out", code=0)
    sent += [path.read_bytes() for path in (away / "out").rglob("*") if path.is_file()]
    sent += [(first / "report.html").read_bytes(), (first / "README.md").read_bytes()]
    assert not [data for data in sent if str(home).encode() in data]
