"""Cells that are done, half done, interrupted, or of other settings; no model is trained here."""

import json
from collections.abc import Iterator
from datetime import date
from hashlib import sha256
from types import SimpleNamespace

import pytest

from mlx_hybrid.config import Config, ModelConfig, load_config
from mlx_hybrid.errors import ConfigError
from mlx_hybrid.run import Run, create_run
from mlx_hybrid.study import study
from mlx_hybrid.study.study import Stopped, best_loss, train_cell
from mlx_hybrid.training.events import Finished, Interrupted
from mlx_hybrid.training.stopping import StopRequest


class Job:
    """Stands for `job.finetune`: makes the run, and ends or is interrupted as told."""

    def __init__(self, *, interrupt: bool = False):
        self.interrupt, self.calls = interrupt, []

    def __call__(self, config: Config, *, output, resume, stop) -> Iterator:
        self.calls.append("resume" if resume else "new")
        run = resume or create_run(config, output)
        (run.checkpoints / "step-0000003").mkdir(parents=True, exist_ok=True)
        (run.checkpoints / "step-0000003" / "progress.json").write_text("{}")
        run.update(status="interrupted" if self.interrupt else "finished")
        yield Interrupted(3) if self.interrupt else Finished(3, 1.0)


@pytest.fixture
def train(monkeypatch):
    """Train one cell by a job."""

    def trained(run: Run, config: Config, job: Job) -> None:
        monkeypatch.setattr(study, "finetune", job)
        train_cell(run, config, StopRequest(print))

    return trained


@pytest.fixture
def config() -> Config:
    return load_config(None, (), {"method": "lora", "data.paths": ["x"]})


def test_a_cell_is_trained_once(config, tmp_path, train):
    job, run = Job(), Run(tmp_path / "lora" / "own" / "cell")
    train(run, config, job)
    assert run.info()["status"] == "finished"
    train(run, config, job)
    assert job.calls == ["new"]


def test_an_interrupted_cell_goes_on_from_its_checkpoint(config, tmp_path, train):
    run, stopping, going = Run(tmp_path / "cell"), Job(interrupt=True), Job()
    with pytest.raises(Stopped, match="the same command goes on") as stopped:
        train(run, config, stopping)
    assert stopped.value.exit_code == 130
    train(run, config, going)
    assert going.calls == ["resume"]


def test_a_cell_without_a_checkpoint_begins_anew(config, tmp_path, train):
    run, job = create_run(config, tmp_path / "cell"), Job()
    run.update(status="running")
    train(run, config, job)
    assert job.calls == ["new"]


def test_a_cell_of_other_settings_is_refused(config, tmp_path, train):
    run = create_run(load_config(None, (), {"method": "hra", "data.paths": ["x"]}), tmp_path / "cell")
    run.update(status="finished")
    with pytest.raises(ConfigError, match="holds a run of other settings"):
        train(run, config, Job())


def test_rates_are_chosen_by_the_lowest_validation_loss(tmp_path):
    run = Run(tmp_path)
    with pytest.raises(ConfigError, match="never validated"):
        best_loss(run)
    rows = [{"step": s, "valid_loss_nats_per_token": loss} for s, loss in ((1, 2.0), (2, 1.0), (3, 1.5))]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert best_loss(run) == 1.0


def test_a_cell_is_asked_on_the_date_that_its_template_was_told(config, tmp_path, monkeypatch):
    run = create_run(config, tmp_path / "cell")
    run.update(template_date="2026-01-02")
    run.adapter.mkdir()
    (run.adapter / "adapters.safetensors").write_bytes(b"")
    loaded = SimpleNamespace(model=None, tokenizer=SimpleNamespace(), identity={"fingerprint": "b"})
    monkeypatch.setattr(study, "load_run", lambda run: loaded)
    monkeypatch.setattr(study, "settle", lambda model: model)
    _, tokenizer, identity = study.opened(config.model, run)
    assert tokenizer.date == date(2026, 1, 2)
    assert identity == {"base": "b", "adapter": sha256().hexdigest()}


def test_the_base_is_asked_with_the_template_of_the_cells(monkeypatch):
    own = {"model": None, "identity": {"fingerprint": "b"}}
    monkeypatch.setattr(study, "load_base", lambda _, tokenizer: SimpleNamespace(tokenizer=tokenizer, **own))
    _, tokenizer, identity = study.opened(ModelConfig(system="fold"), None)
    assert (tokenizer.system, identity) == ("fold", {"base": "b"})
