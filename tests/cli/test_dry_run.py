"""`finetune --dry-run` refuses what the run would, in the same words, and reads no weight."""

import json
import shutil

import pytest

from mlx_hybrid.training.memory.shape import write_holes


@pytest.fixture
def copy(quantised_folder, tmp_path):
    return shutil.copytree(quantised_folder, tmp_path / "model")


def without(pattern):
    def spoil(folder):
        for path in folder.glob(pattern):
            path.unlink()

    return spoil


def another_kind(folder):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_type": "abacus"}))


def other_sizes(folder):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"intermediate_size": 4096}))


def nothing(folder):
    pass


@pytest.mark.parametrize(
    ("spoil", "more", "code", "words"),
    [
        (shutil.rmtree, [], 2, "no such folder"),
        (without("*.safetensors"), [], 2, "no .safetensors weights"),
        (without("config.json"), [], 2, "no config.json there"),
        (without("tokenizer*"), [], 2, "no tokenizer in the folder"),
        (another_kind, [], 2, "abacus"),
        (other_sizes, [], 2, "cannot be"),
        (nothing, ["adapter.targets=[q_prj]"], 2, 'did you mean "q_proj"?'),
        (nothing, ["adapter.unitary=[o_prj]"], 2, "o_prj"),
        (nothing, ["method=hybrid-boft", "adapter.factors=7"], 2, "block"),
        (nothing, ["train.max_tokens=8"], 3, "train.max_tokens"),
    ],
)
def test_the_same_words_as_the_run(spoil, more, code, words, run, copy, records, settings, tmp_path):
    spoil(copy)
    given = [word for setting in more for word in ("--set", setting)]
    asked = ["finetune", "--model", copy, "--data", records, "-o", tmp_path / "trained", *settings, *given]
    dry, real = run(*asked, "--dry-run"), run(*asked)
    assert dry.exit_code == real.exit_code == code, dry.output
    assert words in dry.stderr
    assert dry.stderr.splitlines()[-1] == real.stderr.splitlines()[-1]
    assert not (tmp_path / "trained").exists()


def test_no_weight_is_read(run, copy, records, settings):
    import mlx.core as mx

    weights = mx.load(str(copy / "model.safetensors"))
    names = {mx.float16: "F16", mx.bfloat16: "BF16", mx.float32: "F32", mx.uint32: "U32", mx.uint8: "U8"}
    holes = {
        k: {"dtype": names[v.dtype], "shape": list(v.shape), "size": v.nbytes} for k, v in weights.items()
    }
    write_holes(copy / "model.safetensors", holes)
    asked = ["finetune", "--model", copy, "--data", records, *settings, "--dry-run"]
    done = run(*asked, "--json")
    assert done.exit_code == 0, done.stderr
    tokens = json.loads(done.stdout)["tokens"]
    assert tokens["longest"] <= tokens["train"]
    assert f"# tokens: {tokens['train']} in training" in run(*asked).stdout


def test_what_cannot_fit_is_refused_unless_forced(
    run, quantised_folder, records, settings, tmp_path, monkeypatch
):
    from mlx_hybrid.training.memory import fit

    monkeypatch.setattr(fit, "memory_limit", lambda: 1_000_000)
    asked = [
        "finetune",
        "--model",
        quantised_folder,
        "--data",
        records,
        "-o",
        tmp_path / "trained",
        *settings,
    ]
    dry, real = run(*asked, "--dry-run"), run(*asked)
    assert dry.exit_code == real.exit_code == 4
    assert "--force" in dry.stderr
    assert dry.stderr.splitlines()[-1] == real.stderr.splitlines()[-1]
    assert run(*asked, "--dry-run", "--force").exit_code == 0


def test_another_base_than_the_start_had(run, quantised_folder, copy, records, settings, tmp_path):
    plain = [
        word for pair in zip(settings[::2], settings[1::2]) if "adapter." not in pair[1] for word in pair
    ]
    first = tmp_path / "first"
    assert run("finetune", "--model", quantised_folder, "--data", records, "-o", first, *plain).exit_code == 0
    onward = ["finetune", "--data", records, "--from", first, *plain, "--dry-run"]
    assert run(*onward).exit_code == 0
    (copy / "config.json").write_text((copy / "config.json").read_text() + "\n")
    refused = run(*onward, "--model", copy)
    assert refused.exit_code == 2
    assert "whose weights are not those of" in refused.stderr
