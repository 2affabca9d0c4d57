"""`finetune --dry-run` refuses what the run would, in the same words, and reads no weight."""

import json
import shutil
from functools import partial

import mlx.core as mx
import pytest
from acting import plain, refused, sets

from mlx_hybrid.training.memory import estimate
from mlx_hybrid.training.memory.shape import write_holes


@pytest.fixture
def copy(quantised_folder, tmp_path):
    return shutil.copytree(quantised_folder, tmp_path / "model")


def without(pattern):
    def spoil(folder):
        for path in folder.glob(pattern):
            path.unlink()

    return spoil


def with_config(**changes):
    def spoil(folder):
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return spoil


@pytest.mark.parametrize(
    ("spoil", "more", "code", "words"),
    [
        (shutil.rmtree, [], 2, "no such folder"),
        (without("*.safetensors"), [], 2, "no .safetensors weights"),
        (without("config.json"), [], 2, "no config.json there"),
        (without("tokenizer*"), [], 2, "no tokenizer in the folder"),
        (with_config(model_type="abacus"), [], 2, "abacus"),
        (with_config(intermediate_size=4096), [], 2, "cannot be"),
        (without("nothing"), ["adapter.targets=[q_prj]"], 2, 'no module "q_prj"; did you mean "q_proj"?'),
        (without("nothing"), ["method=hybrid", "adapter.unitary=[o_prj]"], 2, 'no adapted module "o_prj"'),
        (without("nothing"), ["method=hybrid-boft", "adapter.factors=7"], 2, "block"),
        (without("nothing"), ["train.max_tokens=8"], 3, "train.max_tokens"),
    ],
)
def test_the_same_words_as_the_run(spoil, more, code, words, finetune, copy, settings, tmp_path):
    spoil(copy)
    dry, real = (finetune(*settings, *sets(*more), *how, model=copy) for how in (["--dry-run"], []))
    refused(dry, code, words)
    assert real.exit_code == code
    assert dry.stderr.splitlines()[-1] == real.stderr.splitlines()[-1]
    assert not (tmp_path / "trained").exists()


def test_no_weight_is_read_and_nothing_written(finetune, copy, settings, tmp_path):
    weights = mx.load(str(copy / "model.safetensors"))
    names = {mx.float16: "F16", mx.bfloat16: "BF16", mx.float32: "F32", mx.uint32: "U32", mx.uint8: "U8"}
    holes = [(name, names[value.dtype], value.shape, value.nbytes) for name, value in weights.items()]
    write_holes(copy / "model.safetensors", holes)
    asked = partial(finetune, *settings, "--dry-run", model=copy)
    done = asked("--json")
    assert done.exit_code == 0, done.stderr
    tokens = json.loads(done.stdout)["tokens"]
    assert tokens["longest"] <= tokens["train"]
    for words in ("method: lora", "# split:", f"# tokens: {tokens['train']} in training"):
        assert words in asked().stdout
    assert not (tmp_path / "trained").exists()


def test_what_cannot_fit_is_refused_unless_forced(finetune, settings, tmp_path, monkeypatch):
    monkeypatch.setattr(estimate, "memory_limit", lambda: 1_000_000)
    dry, real = finetune(*settings, "--dry-run"), finetune(*settings)
    for done in (dry, real):
        refused(done, 4, "--force")
    assert dry.stderr.splitlines()[-1] == real.stderr.splitlines()[-1]
    assert not (tmp_path / "trained").exists()
    finetune(*settings, "--dry-run", "--force", code=0)
    finetune(*settings, *sets("train.steps=1", "evaluate=false"), "--force", code=0)


def test_another_base_than_the_start_had(run, finished, copy, records, settings):
    first = finished("hybrid").path
    onward = ["finetune", "--data", records, "--from", first, *plain(settings), "--dry-run"]
    run(*onward, code=0)
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"note": "of no account"}))
    run(*onward, "--model", copy, code=0)
    (copy / "config.json").write_text(json.dumps(config | {"rope_theta": 123.0}))
    refused(run(*onward, "--model", copy), 2, "whose weights are not those of")
