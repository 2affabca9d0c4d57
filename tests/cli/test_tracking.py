"""`finetune --log` and `report --watch`: a run followed as it goes."""

import json
import sys
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
from acting import refused, rows_of

from mlx_hybrid.cli import report as report_command
from mlx_hybrid.evaluation.results import read_results
from mlx_hybrid.run import Run


def test_tensorboard_reads_what_the_run_wrote(finetune, lora, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.util.tensor_util import make_ndarray

    finetune(*lora, "--log", "tensorboard", code=0)
    path = tmp_path / "trained"
    events = EventAccumulator(str(path / "tensorboard")).Reload()

    def read(name: str) -> list[tuple[int, float]]:
        return [(one.step, make_ndarray(one.tensor_proto).item()) for one in events.Tensors(name)]

    for name in ("loss_nats_per_token", "valid_loss_nats_per_token"):
        rows = [(row["step"], row[name]) for row in rows_of(path / "metrics.jsonl") if name in row]
        assert read(name) == [(step, pytest.approx(value, rel=1e-6)) for step, value in rows]
    loss = read_results(path / "evaluation" / "held-out.json").get("loss", "adapted").value
    assert read("held_out/loss/adapted")[0][1] == pytest.approx(loss, rel=1e-6)


@pytest.mark.parametrize("name", ["trackio", "wandb"])
def test_others_get_the_settings_once_and_every_row(name, finetune, lora, tmp_path, monkeypatch):
    begun, told, ended = [], [], []
    log = lambda values, step: told.append({"step": step} | values)  # noqa: E731
    run = nullcontext(SimpleNamespace(log=log))
    package = SimpleNamespace(
        init=lambda **how: begun.append(how) or run, log=log, finish=lambda: ended.append(True)
    )
    monkeypatch.setitem(sys.modules, name, package)
    finetune(*lora, "--log", name, "--set", "evaluate=false", code=0)
    (how,) = begun
    assert how["project"] == "mlx-hybrid"
    assert how["name"] == "trained"
    assert "lora" in json.dumps(how["config"])
    assert how.get("mode", "offline") == "offline"
    key, rows = "loss_nats_per_token", rows_of(tmp_path / "trained" / "metrics.jsonl")
    losses, kept = ([(row["step"], row[key]) for row in own if key in row] for own in (told, rows))
    assert losses == kept
    assert all(isinstance(value, int | float) for row in told for value in row.values())


def test_a_tracker_that_is_not_here_is_refused_before_any_work(finetune, lora, monkeypatch, tmp_path):
    refused(finetune(*lora, "--log", "tensorbord"), 2, 'did you mean "tensorboard"?')
    monkeypatch.setitem(sys.modules, "wandb", None)
    refused(finetune(*lora, "--log", "wandb"), 2, "pip install 'mlx-hybrid[wandb]'")
    assert not (tmp_path / "trained").exists()


def test_a_watched_page_reloads_itself_until_the_run_ends(run, finished, tmp_path, monkeypatch):
    path, page, seen = finished("lora").path, tmp_path / "page.html", []
    monkeypatch.setattr(Run, "status", lambda self: "running" if len(seen) < 2 else "finished")
    monkeypatch.setattr(
        report_command.time, "sleep", lambda seconds: seen.append((seconds, page.read_text()))
    )
    done = run("report", path, "-o", page, "--watch", "--every", 3, code=0)
    assert [seconds for seconds, _ in seen] == [3, 3]
    assert all('<meta http-equiv="refresh" content="3">' in text for _, text in seen)
    assert "refresh" not in page.read_text()
    assert f"Page: {page}" in done.stdout
    assert "Ctrl-C ends this" in done.stderr
