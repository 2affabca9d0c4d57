"""`finetune --from`: a new run that goes on from another's adapter."""

import json

import mlx.core as mx
import pytest
from acting import acting

from mlx_hybrid.adapters.store import probe_logits, read_adapter_config, read_weights
from mlx_hybrid.models.adapted import load_any

REFOLDED = 1e-4
"""Logits may move so far without a step: a rotation folded into its base is rounded to float32 once more."""


def finetune(run, data, output, settings, *more):
    return run("finetune", "--data", data, "-o", output, *settings, *more)


@pytest.fixture
def plain(settings):
    """Settings of a run that leave the adapter alone."""
    return [word for pair in zip(settings[::2], settings[1::2]) if "adapter." not in pair[1] for word in pair]


@pytest.mark.parametrize("method", ["hybrid", "lora-ga", "hybrid-boft"])
def test_a_run_goes_on_from_another(method, run, finished, records, plain, tmp_path):
    first, second = finished(method).path, tmp_path / "second"
    still = ["train.learning_rate=0", "train.orthogonal_learning_rate=0", "train.steps=1", "evaluate=false"]
    more = [word for setting in still for word in ("--set", setting)]
    done = finetune(run, records, second, acting([*plain, *more], method), "--from", first)
    assert done.exit_code == 3, done.stderr  # nothing moved, so nothing beats the base
    assert f"Going on from {first}." in done.stderr
    old, new = load_any(str(first)), load_any(str(second))
    assert set(read_weights(first / "adapter")) == set(read_weights(second / "adapter"))
    apart = float(mx.abs(probe_logits(old.model) - probe_logits(new.model)).max())
    assert apart <= REFOLDED
    assert old.change > 100 * REFOLDED
    assert read_adapter_config(second / "adapter").method == method
    assert json.loads((second / "run.json").read_text())["method"] == method


def test_training_goes_on_from_where_it_stood(run, finished, quantised_folder, records, plain, tmp_path):
    first, second = finished("hybrid").path, tmp_path / "second"
    done = finetune(run, records, second, plain, "--from", first / "adapter", "--model", quantised_folder)
    assert done.exit_code == 0, done.stderr

    def losses(path):
        rows = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
        return [row["loss_nats_per_token"] for row in rows if "loss_nats_per_token" in row]

    assert losses(second)[0] < 0.9 * losses(first)[0]
    logits = [probe_logits(load_any(str(path)).model) for path in (first, second)]
    assert not mx.array_equal(*logits)


def test_what_would_change_the_adapter_is_refused(run, finished, records, plain, tmp_path):
    first = finished("hybrid").path
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("adapter: {rank: 4}\n")
    for more, said in [
        (["--method", "lora"], "leave out --method"),
        (["--set", "adapter.rank=4"], "leave out --set adapter.rank"),
        ([recipe], "mine.yaml: adapter"),
        (["--model", "bundled"], "whose weights are not those of"),
    ]:
        done = finetune(run, records, tmp_path / "second", plain, "--from", first, *more)
        assert done.exit_code == 2, done.output
        assert said in done.stderr
        assert not (tmp_path / "second").exists()
    done = finetune(run, records, tmp_path / "second", plain, "--from", first / "adapter")
    assert done.exit_code == 2
    assert "was trained on the local folder" in done.stderr
    done = finetune(run, records, tmp_path / "second", plain, "--from", "nothing-there")
    assert done.exit_code == 2
    assert "nothing-there" in done.stderr
