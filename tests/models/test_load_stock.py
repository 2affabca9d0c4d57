"""Adapter folders of stock mlx-lm: the same logits as by its own loader, in every command, or refused by name."""

import json
import os
import re
import subprocess
import sys

import mlx.core as mx
import pytest
from architectures import tiny
from click.testing import CliRunner
from mlx.utils import tree_flatten
from mlx_lm.tuner.utils import linear_to_lora_layers, load_adapters
from mlx_lm.utils import load_model
from pages import no_pages
from tiny_model import disturb, write_base
from tolerances import EFFECT, LOGITS

from mlx_hybrid.adapters.attach import attach, hybrid_layers
from mlx_hybrid.adapters.store import load_adapter, probe_logits, read_adapter_config
from mlx_hybrid.cli import main
from mlx_hybrid.errors import ConfigError
from mlx_hybrid.models.adapted import UNCHECKED, load_any, open_pair

PARAMETERS = {"rank": 4, "dropout": 0.0, "scale": 20.0}


def write_stock(folder, model, kind="lora", *, layers=16, keys=None, base="", **changes):
    """Put an adapter on `model` and write it, both as `mlx_lm.lora` does."""
    parameters = PARAMETERS | ({"keys": keys} if keys else {})
    model.freeze()
    if kind == "full":
        for layer in model.layers[-layers:]:
            layer.unfreeze()
    else:
        linear_to_lora_layers(model, layers, dict(parameters), use_dora=kind == "dora")
    disturb(model, 0.02)
    folder.mkdir()
    weights = dict(tree_flatten(model.trainable_parameters()))
    mx.save_safetensors(str(folder / "adapters.safetensors"), weights)
    tree = {"model": str(base), "fine_tune_type": kind, "num_layers": layers, "lora_parameters": parameters}
    (folder / "adapter_config.json").write_text(json.dumps(tree | {"learning_rate": 1e-5} | changes))
    return folder


@pytest.mark.parametrize(
    ("name", "mode", "kind", "how", "modules"),
    [
        ("llama", "", "lora", {}, 14),
        ("llama", "affine-4", "lora", {"keys": ["self_attn.q_proj", "mlp.up_proj"]}, 4),
        ("llama", "", "lora", {"layers": 1}, 7),
        ("llama", "", "lora", {"layers": -1, "keys": ["self_attn.v_proj"]}, 2),
        ("mistral", "", "lora", {"layers": 1, "keys": ["self_attn.q_proj", "lm_head"]}, 2),
        ("llama", "", "lora", {"layers": 1, "keys": ["model.layers.0.self_attn.o_proj"]}, 1),
        ("qwen3_moe", "", "lora", {"layers": 1}, 8),
        ("qwen3_moe", "affine-4", "lora", {"keys": ["mlp.switch_mlp.up_proj", "self_attn.q_proj"]}, 3),
        ("llama", "", "dora", {}, 14),
        ("llama", "affine-4", "dora", {"layers": 1, "keys": ["self_attn.q_proj"]}, 1),
        ("llama", "", "full", {"layers": 1}, 0),
    ],
)
def test_the_logits_are_those_of_mlx_lm(name, mode, kind, how, modules, tmp_path):
    folder = write_stock(tmp_path / "stock", tiny(name, mode), kind, **how)
    theirs, ours = load_adapters(tiny(name, mode), str(folder)), tiny(name, mode)
    plain = probe_logits(ours)
    info = load_adapter(ours, folder)
    assert (info.method, info.stock) == (kind, True)
    assert len(info.modules) == len(hybrid_layers(ours)) == modules
    found, expected = probe_logits(ours.eval()), probe_logits(theirs.eval())
    assert mx.abs(found - expected).max() <= LOGITS * max(1.0, float(mx.abs(expected).max()))
    assert mx.abs(found - plain).max() > EFFECT
    attach(again := tiny(name, mode), info.adapter)
    assert hybrid_layers(again).keys() == hybrid_layers(ours).keys()


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"keys": ["model.embed_tokens"]}, "model.embed_tokens is an embedding, a table without a product"),
        ({"fine_tune_type": "hybrid"}, '"hybrid" is not one of lora, dora, full'),
        ({"fine_tune_type": "dora"}, r"fine_tune_type is dora, but .*\.m is missing"),
        (
            {"lora_parameters": {"rank": 4, "dropout": 0.0, "alpha": 20}},
            "lora_parameters.scale must be a number",
        ),
        ({"lora_parameters": PARAMETERS | {"rank": 3}}, r"lora_a is \(64, 4\) .* not \(64, 3\)"),
        ({"lora_parameters": PARAMETERS | {"rank": 0}}, "rank must be at least 1"),
        ({"kind": "full", "lora_parameters": None, "fine_tune_type": "lora"}, "every lora_a is missing"),
    ],
)
def test_what_cannot_be_held_is_refused_by_name(how, said, tmp_path):
    folder = write_stock(tmp_path / "stock", tiny("llama"), **how)
    with pytest.raises(ConfigError, match=said) as refused:
        load_adapter(tiny("llama"), folder)
    assert str(folder) in str(refused.value)


@pytest.mark.parametrize(("name", "said"), [("qwen3", "does not fit"), ("lfm2", "has no module")])
def test_an_adapter_of_another_architecture_is_refused(name, said, tmp_path):
    folder = write_stock(tmp_path / "stock", tiny("llama"), keys=["self_attn.k_proj", "mlp.up_proj"])
    model = tiny(name)
    if name == "qwen3":
        model.layers[1].self_attn.k_proj = model.layers[1].mlp.up_proj
    with pytest.raises(ConfigError, match=said):
        load_adapter(model, folder)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return write_base(tmp_path_factory.mktemp("stock") / "tiny-base")


@pytest.fixture(scope="module")
def folders(base):
    """A stock folder of each kind on `base`."""
    return {
        kind: write_stock(base.parent / kind, load_model(base)[0], kind, layers=1, base=base)
        for kind in ("lora", "dora", "full")
    }


def invoke(*arguments, code=0):
    with no_pages():
        done = CliRunner().invoke(main, [str(a) for a in arguments])
    assert done.exit_code == code, done.output
    return done


@pytest.mark.parametrize("kind", ["lora", "dora", "full"])
def test_every_command_takes_it_and_says_what_is_not_checked(kind, base, folders, tmp_path):
    folder, data = folders[kind], tmp_path / "records.jsonl"
    expected = probe_logits(load_adapters(load_model(base)[0], str(folder)).eval())
    pair = open_pair(str(folder))  # chat and serve
    assert UNCHECKED in pair.describe()
    assert mx.abs(probe_logits(pair.model) - expected).max() <= LOGITS
    assert not mx.array_equal(probe_logits(pair.base), probe_logits(pair.model))
    rows = [{"prompt": f"{i} and {i}", "completion": f"{2 * i}", "language": "en"} for i in range(12)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    said = [invoke("generate", folder, "Hello", "--max-tokens", "3").stderr]
    said.append(
        invoke("evaluate", folder, "--on", data, "--retain", "none", "-o", tmp_path / "measured").stderr
    )
    form = "merged" if kind == "full" else "mlx-lm"
    said.append(invoke("export", folder, "--to", form, "-o", tmp_path / "out").stderr)
    settings = ["train.steps=1", "train.learning_rate=1e-12", "evaluate=false", "governance.enabled=false"]
    more = [word for setting in settings for word in ("--set", setting)]
    go_on = ("finetune", "--from", folder, "--data", data, "-o", tmp_path / "run", *more)
    said.append(invoke(*go_on, code=3).stderr)  # no step, no gain
    assert all(UNCHECKED in " ".join(line.split()) for line in said)
    if kind == "lora":
        stock = load_adapters(load_model(base)[0], str(tmp_path / "out"))
        assert mx.abs(probe_logits(stock.eval()) - expected).max() <= LOGITS
    assert mx.abs(probe_logits(load_any(str(tmp_path / "run")).model) - expected).max() <= LOGITS


def test_the_base_is_the_one_it_names_or_the_one_given(base, folders, tmp_path):
    folder = write_stock(tmp_path / "stock", load_model(base)[0], base=tmp_path / "gone")
    told = f"the local folder {tmp_path / 'gone'}; say with --base-model"
    with pytest.raises(ConfigError, match=re.escape(told)):
        load_any(str(folder))
    assert load_any(str(folder), base_name=str(base)).modules == 14
    path = folder / "adapter_config.json"
    path.write_text(path.read_text().replace(str(tmp_path / "gone"), ""))
    with pytest.raises(
        ConfigError, match="does not say which base it was trained on; name it with --base-model"
    ):
        load_any(str(folder))


@pytest.mark.real
@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_what_mlx_lm_trained_on_a_pretrained_model(kind, smollm2, tmp_path):
    for name in ("train", "valid"):
        rows = [{"text": f"The number after {i} is {i + 1}."} for i in range(4)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    places = ["--model", smollm2, "--data", tmp_path, "--adapter-path", tmp_path / "stock"]
    words = f"--fine-tune-type {kind} --iters 3 --batch-size 2 --num-layers 4 --val-batches 1 --learning-rate 1e-3"
    options = [*map(str, places), *words.split()]
    quick = os.environ | {
        "MLX_DISABLE_COMPILE": "1"
    }  # on the CPU each fused kernel costs a run of the C++ compiler
    subprocess.run([sys.executable, "-m", "mlx_lm", "lora", "--train", *options], check=True, env=quick)
    loaded, (theirs, _) = load_any(str(tmp_path / "stock")), load_model(smollm2)
    theirs.set_dtype(mx.float32)
    theirs = load_adapters(theirs, str(tmp_path / "stock"))
    assert loaded.change > EFFECT
    assert mx.abs(probe_logits(loaded.model) - probe_logits(theirs.eval())).max() <= LOGITS * 10
    assert read_adapter_config(tmp_path / "stock").adapter.layers == 4
