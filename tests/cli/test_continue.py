"""`finetune --from`: a new run that goes on from another's adapter."""

import json
import shutil

import mlx.core as mx
import pytest
from acting import acting, losses_of, plain, refused, sets

from mlx_hybrid.adapters.store import probe_logits, read_adapter_config, read_weights
from mlx_hybrid.config import load_config
from mlx_hybrid.models.adapted import load_any

REFOLDED = 1e-4
"""Logits may move so far without a step: a rotation folded into its base is rounded to float32 once more."""


def finetune(run, data, output, settings, *more, **how):
    return run("finetune", "--data", data, "-o", output, *settings, *more, **how)


@pytest.mark.parametrize("method", ["hybrid", "lora-ga", "hybrid-boft"])
def test_a_run_goes_on_from_another(method, run, finished, records, settings, tmp_path):
    first, second = finished(method).path, tmp_path / "second"
    rates = ("train.learning_rate=1e-12", "train.orthogonal_learning_rate=0")
    still = acting([*plain(settings), *sets(*rates, "train.steps=1", "evaluate=false")], method)
    done = finetune(run, records, second, still, "--from", first, code=3)  # no step, no gain
    assert f"Going on from {first}." in done.stderr
    old, new = load_any(str(first)), load_any(str(second))
    assert set(read_weights(first / "adapter")) == set(read_weights(second / "adapter"))
    apart = float(mx.abs(probe_logits(old.model) - probe_logits(new.model)).max())
    assert apart <= REFOLDED
    assert old.change > 100 * REFOLDED
    assert read_adapter_config(second / "adapter").method == method
    assert json.loads((second / "run.json").read_text())["method"] == method


def test_training_goes_on_from_where_it_stood(run, finished, quantised_folder, records, settings, tmp_path):
    first, second = finished("hybrid").path, tmp_path / "second"
    onward = ("--from", first / "adapter", "--model", quantised_folder)
    short = sets("train.steps=4", "train.validate_every=4", "evaluate=false", "train.prompt_weight=0")
    finetune(run, records, second, [*plain(settings), *short], *onward, code=0)

    assert losses_of(second)[0] < 0.9 * losses_of(first)[0]
    logits = [probe_logits(load_any(str(path)).model) for path in (first, second)]
    assert not mx.array_equal(*logits)


def test_a_run_that_harms_what_it_began_with_ends_with_three_and_says_so_wherever_it_goes(
    run, finished, records, settings, tmp_path
):
    wild = sets(
        "train.steps=2",
        "evaluate=false",
        "train.learning_rate=500",
        "train.warmup=0",
        "train.validate_every=2",
    )
    harmed, out = tmp_path / "harmed", tmp_path / "out"
    finetune(run, records, harmed, [*plain(settings), *wild], "--from", finished("lora").path, code=3)
    said = "does not beat what its run began with on the validation records"
    assert said in run("generate", harmed, "no river", "--max-tokens", 1, code=0).stderr
    assert said in run("export", harmed, "--to", "mlx-lm", "-o", out, code=0).output
    assert said in (out / "README.md").read_text()
    assert said not in run("generate", finished("lora").path, "no river", "--max-tokens", 1, code=0).stderr


def test_the_last_run_is_the_one_before(
    run, finished, quantised_folder, records, settings, tmp_path, monkeypatch
):
    """A run's own folder is the newest before the adapter that it goes on from is read."""
    monkeypatch.setenv("MLX_HYBRID_RUNS", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    first = shutil.copytree(finished("hybrid").path, tmp_path / "first")
    short = [*plain(settings), *sets("train.steps=1", "evaluate=false"), "--model", quantised_folder]
    run("finetune", "--data", records, "-o", "second", *short, "--from", "last", code=3)
    assert load_config(tmp_path / "second" / "config.yaml").start_from == str(first)


def test_its_rates_are_measured_on_the_adapter_that_it_goes_on_with(
    run, finished, quantised_folder, records, settings, tmp_path
):
    """By settings alone, whose base counts as that of --model does."""
    first, second = finished("hybrid").path / "adapter", tmp_path / "second"
    base = (f"model.name={quantised_folder}", "train.rates=share", "train.orthogonal_learning_rate=0")
    short = sets(*base, "train.steps=1", "evaluate=false")
    finetune(run, records, second, [*plain(settings), *short], "--from", first, code=3)
    (saved,) = second.glob("checkpoints/*1/optimizer.safetensors")
    factors = {name: value.item() for name, value in mx.load(str(saved)).items() if name.startswith("3.")}
    assert len(set(factors.values())) == 2  # one a kind
    assert all(value not in (0.0, 1.0) for value in factors.values())


def test_what_would_change_the_adapter_is_refused(run, finished, records, settings, tmp_path):
    first = finished("hybrid").path
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("adapter: {rank: 4}\n")
    for start, more, said in [
        (first, ["--method", "lora"], "leave out --method"),
        (first, ["--set", "adapter.rank=4"], "leave out --set adapter.rank"),
        (first, [recipe], "mine.yaml: adapter"),
        (first, ["--model", "bundled"], "whose weights are not those of"),
        (first / "adapter", [], "was trained on the local folder"),
        ("nothing-there", [], "nothing-there"),
    ]:
        done = finetune(run, records, tmp_path / "second", plain(settings), "--from", start, *more)
        refused(done, 2, said)
        assert not (tmp_path / "second").exists()
