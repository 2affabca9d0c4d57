"""The main command, on a tiny quantised model and real files."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from hashlib import sha256
from pathlib import Path

import mlx.core as mx
import pytest
from acting import losses_of, refused, rows_of, sets, write_rows
from chat_templates import TEMPLATES
from toys import byte_tokenizer, write_model

from mlx_hybrid.adapters.attach import hybrid_layers
from mlx_hybrid.config import load_config
from mlx_hybrid.evaluation.results import read_results
from mlx_hybrid.jobs import finetune as job
from mlx_hybrid.models import base as base_model
from mlx_hybrid.models.adapted import load_any
from mlx_hybrid.run import Run

pytestmark = pytest.mark.slow

METHODS = ["lora", "lora-ga", "dora", "hra", "boft", "hybrid", "hybrid-boft", "hybrid-unitary", "full"]
PROJECTIONS = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


SHORT = sets("train.steps=1", "adapter.low_rank.start=zeros", "evaluate=false")


@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains_saves_and_loads(method, finished):
    output = finished(method).path
    losses = losses_of(output)
    assert losses[-1] < 0.8 * losses[0]
    loaded = load_any(str(output))
    assert loaded.change > 1e-3
    if method != "full":
        assert {name.rsplit(".", 1)[-1] for name in hybrid_layers(loaded.model)} == PROJECTIONS
        assert loaded.modules == len(PROJECTIONS) * len(loaded.model.layers)


def test_a_run_leaves_everything_it_promises(finished):
    output, said = finished("hybrid")
    files = {"config.yaml", "run.json", "metrics.jsonl", "log.txt"}
    assert files | {"adapter", "checkpoints", "evaluation"} <= {path.name for path in output.iterdir()}
    info = json.loads((output / "run.json").read_text())
    assert info["status"] == "finished"
    assert info["base"]["fingerprint"]
    assert str(Path.home()) not in (output / "run.json").read_text()
    held_out = read_results(output / "evaluation" / "held-out.json")
    for metric in ("accuracy", "loss"):
        change = held_out.get(metric, "difference")
        assert change.low <= change.value <= change.high
    assert held_out.get("loss", "adapted").value < held_out.get("loss", "base").value
    assert load_config(output / "config.yaml").method == "hybrid"
    assert said.rstrip().endswith(f"mlx-hybrid chat {output}")


def test_the_tokenizer_is_read_once(finetune, lora, tmp_path, monkeypatch):
    read, real = [], base_model.read_tokenizer
    monkeypatch.setattr(base_model, "read_tokenizer", lambda *given: read.append(given) or real(*given))
    finetune(*lora, *SHORT, code=0)
    assert len(read) == 1
    load_any(str(tmp_path / "trained"))
    assert len(read) == 2


def test_a_lora_run_loads_in_stock_mlx_lm(finished, quantised_folder):
    from mlx_lm import generate, load

    output = finished("lora").path
    stock, tokenizer = load(str(quantised_folder), adapter_path=str(output / "adapter"))
    base, _ = load(str(quantised_folder))
    ours = load_any(str(output))
    turns = [{"role": "user", "content": "no river bread"}]
    prompt = tokenizer.apply_chat_template(turns, add_generation_prompt=True)
    said = [generate(m, tokenizer, prompt=prompt, max_tokens=12) for m in (stock, ours.model, base)]
    assert said[0] == said[1] != said[2]


def test_another_seed_gives_another_adapter(finished, finetune, settings, tmp_path):
    """That the same one gives the same bytes, runs that are gone on with show."""
    finetune(*settings, *sets("seed=4", "evaluate=false"), code=0)
    paths = (finished("hybrid").path, tmp_path / "trained")
    one, other = ((path / "adapter" / "adapters.safetensors").read_bytes() for path in paths)
    assert one != other


def test_interrupt_saves_and_resume_equals_never_stopping(
    run, quantised_folder, records, settings, tmp_path, default_install
):
    """Ctrl-C in a real process: exit 130, the resume command printed, and the resumed run ends bit for bit the same."""
    settings = [s.replace("steps=12", "steps=40").replace("every=6", "every=20") for s in settings]
    settings += sets("evaluate=false")
    base = ["finetune", "--model", str(quantised_folder), "--data", str(records), *settings]
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    run(*base, "-o", whole, code=0)
    process = command(*base, "-o", str(cut))
    wait_for(cut / "metrics.jsonl", process)
    process.send_signal(signal.SIGINT)
    output = finish(process, 130)
    assert f"mlx-hybrid finetune --resume {cut}" in output
    step = json.loads((cut / "run.json").read_text())["step"]
    assert 0 < step < 40
    finish(command("finetune", "--resume", str(cut)), 0)
    final = [mx.load(str(p / "checkpoints" / "step-0000040" / "adapter.safetensors")) for p in (whole, cut)]
    assert all(bool(mx.array_equal(final[0][name], final[1][name])) for name in final[0])
    assert final[0].keys() == final[1].keys()


def command(*arguments: str) -> subprocess.Popen:
    quiet, pipe = os.environ | {"PYTHONWARNINGS": "ignore"}, subprocess.PIPE
    words = [sys.executable, "-m", "mlx_hybrid", *arguments]
    return subprocess.Popen(words, stdout=pipe, stderr=pipe, text=True, env=quiet)


def finish(process: subprocess.Popen, code: int) -> str:
    output, talk = process.communicate(timeout=240)
    assert process.returncode == code, talk
    return output


def wait_for(path: Path, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 90
    while not path.exists():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_resume_takes_no_other_settings(run, finished):
    run("finetune", "--resume", finished("hybrid").path, "--method", "lora", code=2)


def test_a_resumed_run_may_have_another_time_limit(run, finished, tmp_path):
    """Nothing else changes: the end is that of a run never stopped, to the bit."""
    whole, cut, stops = finished("lora").path, tmp_path / "cut", iter([False, False, True])
    for _ in job.finetune(
        load_config(whole / "config.yaml", ("evaluate=false",)), output=cut, stop=lambda: next(stops)
    ):
        pass
    late = tmp_path / "late"
    shutil.copytree(cut, late)
    run("finetune", "--resume", cut, "--max-time", "-1", code=2)
    run("finetune", "--resume", cut, "--max-time", "60", code=0)
    assert Run(cut).config().train.max_minutes == 60
    name = "adapter/adapters.safetensors"
    assert (cut / name).read_bytes() == (whole / name).read_bytes()
    run("finetune", "--resume", late, "--max-time", "1e-6", code=0)
    assert (Run(late).info()["ended"], Run(late).step()) == ("time", 4)


def test_a_run_is_finished_when_its_card_is_written(run, finished, tmp_path):
    output = tmp_path / "killed-before-its-pages"
    shutil.copytree(finished("hybrid").path, output)
    assert not (output / "README.md").exists()
    run("finetune", "--resume", output, pages=True, code=0)
    assert (output / "report.html").is_file()
    refused(run("finetune", "--resume", output), 2, "is finished")


def test_a_run_names_the_manifest_of_its_data_and_refuses_what_changed(
    run, finetune, records, lora, tmp_path
):
    folder, output = tmp_path / "governed", tmp_path / "trained"
    run("govern", records, "-o", folder, code=0)
    kept = folder / "kept.jsonl"
    finetune(*lora, *SHORT, data=kept, code=0)
    digest = sha256((folder / "manifest.json").read_bytes()).hexdigest()
    assert json.loads((output / "run.json").read_text())["data_manifests"] == [digest]
    shutil.rmtree(output)
    kept.write_bytes(kept.read_bytes()[:-1] + b" \n")
    refused(finetune(*lora, *SHORT, data=kept), 3, "--allow-changed-data")
    assert not output.exists()
    finetune(*lora, *SHORT, "--allow-changed-data", data=kept, code=0)


def test_records_that_the_template_refuses_are_set_aside_everywhere(run, tmp_path):
    model = write_model(tmp_path / "strict")
    byte_tokenizer(TEMPLATES["strict"]).save_pretrained(model)
    rows = []
    for number in range(60):
        answer = ("yes", "no")[number % 2]
        turns = [{"role": "user", "content": f"{number}?"}, {"role": "assistant", "content": answer}]
        system = [{"role": "system", "content": "Be brief."}] if number % 3 == 0 else []
        rows.append({"messages": system + turns, "label": answer, "language": "en"})
    data, out = tmp_path / "r.jsonl", tmp_path / "run"
    write_rows(data, rows)
    options = ["--set", "train.steps=4", "--set", "governance.enabled=false", "--method", "lora"]
    run("finetune", "--model", model, "--data", data, "-o", out, *options, code=0)
    aside = rows_of(out / "set-aside.jsonl")
    assert len(aside) == 20
    assert "model.system=fold" in aside[0]["why"]
    held = read_results(out / "evaluation" / "held-out.json")
    again = run("evaluate", out, "--json", code=0)
    measured = [row["n"] for row in json.loads(again.stdout)["rows"] if row["metric"] == "accuracy"]
    assert set(measured) == {held.get("accuracy", "adapted").n}
    assert 0 < measured[0] < 7
    refused(run("evaluate", model, "--on", data), 3, "r.jsonl:1: The model's chat template refuses")
