"""A GGUF base under an adapter, and a whole GGUF model written from it."""

import json
import os

import gguf
import mlx.core as mx
import numpy as np
import pytest
from gguf_files import HEADS, KV, write_gguf
from hf_bases import adapter_on, folder_of, one_thread, trained  # noqa: F401
from test_gguf import permuted

from mlx_hybrid.errors import ConfigError
from mlx_hybrid.exports.adapter import open_source
from mlx_hybrid.exports.checks import ExportMismatch
from mlx_hybrid.exports.export import Options, export
from mlx_hybrid.exports.gguf import WRITTEN, encode
from mlx_hybrid.exports.weights import GgufWeights, write_dense
from mlx_hybrid.models.base import load_base
from mlx_hybrid.models.gguf.file import open_gguf

pytestmark = [pytest.mark.peft, pytest.mark.usefixtures("one_thread")]

STEPS = (0.0, 5e-4, 4e-3, 0.09, 0.08, 0.045, 0.04, 0.006, 0.08, 0.04, 0.02)
"""Relative error of normal weights in each format of WRITTEN."""


def decoded(kind, rows):
    return gguf.dequantize(rows.view("<f4") if kind == "F32" else rows, gguf.GGMLQuantizationType[kind])


@pytest.mark.parametrize(("kind", "step"), zip(WRITTEN, STEPS, strict=True))
def test_blocks_hold_the_weights_as_gguf_reads_them(kind, step):
    weights = (0.05 * np.random.default_rng(0).standard_normal((6, 512))).astype(np.float32)
    weights[0], weights[1, :256] = (
        0.0,
        np.abs(weights[1, :256]) + 0.1,
    )  # nothing at all, and nothing below zero
    rows = encode(kind, weights)
    back = (
        decoded(kind, rows.view("<f2") if kind == "F16" else rows).astype(np.float32).reshape(weights.shape)
    )
    assert np.linalg.norm(back - weights) <= step * np.linalg.norm(weights)
    assert not back[0].any()
    again = encode(kind, back)
    again = decoded(kind, again.view("<f2") if kind == "F16" else again).reshape(weights.shape)
    np.testing.assert_allclose(again, back, atol=1e-6)


@pytest.mark.parametrize("architecture", ["llama", "gemma3", "phi3", "qwen3"])
def test_weights_are_those_of_the_file(tmp_path, architecture):
    dense = write_gguf(tmp_path / "x.gguf", architecture, "Q8_0")
    weights = GgufWeights(tmp_path / "x.gguf")
    assert sorted(t.name for t in weights.tensors.values()) == sorted(dense)
    for name, tensor in weights.tensors.items():
        own = tensor.name
        value = np.array(weights.dense(name, mx.float32))
        if architecture == "llama" and (".attn_q." in own or ".attn_k." in own):
            value = permuted(value, HEADS if ".attn_q." in own else KV)
        value = value + 1 if architecture == "gemma3" and own.endswith("norm.weight") else value
        np.testing.assert_allclose(value, dense[own], atol=1e-6)
        if own.endswith("norm.weight"):
            held = weights.from_model(name, mx.array(dense[own]))
            assert mx.array_equal(held, weights.unpacked(name))
            assert mx.array_equal(weights.from_model(name, weights.unpacked(name), -1), mx.array(dense[own]))
    with pytest.raises(ConfigError, match=r"x.gguf: holds no tensor model.nothing"):
        weights.read("model.nothing")


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    """A tiny GGUF model of several types, and an adapter on it."""
    folder = tmp_path_factory.mktemp("gguf")
    base = folder / "base.gguf"
    kinds = {"token_embd.weight": "Q8_0", "blk.0.ffn_up.weight": "Q3_K", "blk.1.ffn_up.weight": "Q4_0"}
    write_gguf(base, "llama", "Q4_K", kinds=kinds)
    return base, adapter_on(str(base), folder / "adapter")


def logits(model):
    return np.array(model(mx.array([[5, 9, 40, 17, 80]])).astype(mx.float32))


def test_an_adapter_on_a_gguf_file_is_exported_for_it(tuned, tmp_path):
    base, adapter = tuned
    report = export(str(adapter), "gguf", tmp_path / "out", Options(model=str(base)))
    assert report.checks["logits"]["passed"]
    place = os.path.relpath(base, tmp_path / "out")
    text = (tmp_path / "out" / "Modelfile").read_text()
    assert text.startswith(f"FROM {place}\nADAPTER ./adapter.gguf\n")
    assert f"llama-cli -m {base} --lora" in report.commands["llama.cpp"]


@pytest.mark.parametrize("half", [False, True], ids=["own types", "F16"])
def test_a_whole_model_is_the_file_with_the_changed_tensors(tuned, tmp_path, half):
    base, adapter = tuned
    options = Options(model=str(base), merged=True, f16=half, force=not half)
    report = export(str(adapter), "gguf", tmp_path / "out", options)
    before, after = (gguf.GGUFReader(p) for p in (base, tmp_path / "out" / "model.gguf"))
    assert {k: f.contents() for k, f in before.fields.items() if not k.startswith("GGUF.")} == {
        k: f.contents() for k, f in after.fields.items() if not k.startswith("GGUF.")
    }
    source, held = open_source(str(adapter), model=str(base)), {t.name: t for t in after.tensors}
    own = {source.base.tensors[f"{module}.weight"].name for module in source.info.modules}
    for tensor in before.tensors:
        there = held[tensor.name]
        if tensor.name not in own:
            assert np.array_equal(there.data, tensor.data)
        else:
            unwritten = tensor.tensor_type.name == "Q3_K"
            assert there.tensor_type.name == ("F16" if half or unwritten else tensor.tensor_type.name)
    assert any("Q3_K is not written here" in note for note in report.notes) != half
    survival = report.checks["survival"]["surviving_share"]
    assert survival == pytest.approx(1, abs=0.01 if half else 0.2)
    model = load_base(str(base)).model
    from mlx_hybrid.adapters.store import load_adapter

    plain = logits(model)
    load_adapter(model, adapter)
    ours, theirs = logits(model.eval()), logits(load_base(str(tmp_path / "out" / "model.gguf")).model)
    assert np.abs(theirs - ours).max() < (0.01 if half else 0.3) * np.abs(ours - plain).max()
    assert (tmp_path / "out" / "Modelfile").read_text().startswith("FROM ./model.gguf\nTEMPLATE")
    assert json.loads((tmp_path / "out" / "export.json").read_text())["merged"] is True


def test_the_template_of_the_adapter_goes_along(tmp_path):
    """Into a whole model's metadata; beside an adapter it is named, on a base in a folder whose name has a space."""
    base, adapter = tmp_path / "my models" / "base.gguf", tmp_path / "adapter"
    base.parent.mkdir()
    write_gguf(base, "llama", "F16")
    adapter_on(str(base), adapter)
    tree = json.loads((adapter / "adapter_config.json").read_text())
    given = "{% for m in messages %}{{ m.role }}: {{ m.content }}<|im_end|>\n{% endfor %}"
    tree["mlx_hybrid"]["chat_template"] = given
    (adapter / "adapter_config.json").write_text(json.dumps(tree))
    report = export(str(adapter), "gguf", tmp_path / "out", Options(model=str(base)))
    named = f"--jinja --chat-template-file {tmp_path / 'out' / 'chat_template.jinja'}"
    assert report.commands["llama.cpp"].startswith(f"llama-cli -m '{base}' --lora ")
    assert report.commands["llama.cpp"].endswith(named)
    assert "--jinja --chat-template-file chat_template.jinja" in (tmp_path / "out" / "README.md").read_text()
    export(str(adapter), "gguf", tmp_path / "whole", Options(model=str(base), merged=True, f16=True))
    metadata = open_gguf(tmp_path / "whole" / "model.gguf").metadata
    assert metadata == open_gguf(base).metadata | {"tokenizer.chat_template": given}


def test_a_lost_update_is_refused_with_the_way_that_works(tuned, tmp_path):
    from test_merge import shrink

    base, _ = tuned
    small = shrink(adapter_on(str(base), tmp_path / "lora", "lora"), tmp_path / "small", 0.02)
    with pytest.raises(ExportMismatch, match=r"of the update survives .*--f16 keeps all of it"):
        export(str(small), "gguf", tmp_path / "out", Options(model=str(base), merged=True))
    assert not (tmp_path / "out").exists()


def test_a_folder_s_adapter_is_made_for_a_gguf_file_that_is_named(tmp_path):
    """The same weights in a folder and in a file."""
    write_gguf(tmp_path / "base.gguf", "llama", "F16")
    (tmp_path / "folder").mkdir()
    write_dense(GgufWeights(tmp_path / "base.gguf"), tmp_path / "folder", mx.float16)
    adapter = adapter_on(str(tmp_path / "folder"), tmp_path / "adapter")
    options = Options(model=str(tmp_path / "folder"), base_id=str(tmp_path / "base.gguf"))
    report = export(str(adapter), "gguf", tmp_path / "out", options)
    assert report.checks["logits"]["passed"]
    assert (report.base["id"], report.base["kind"]) == ("base.gguf", "original")
    assert str(tmp_path) not in (tmp_path / "out" / "export.json").read_text()
    assert (tmp_path / "out" / "Modelfile").read_text().startswith("FROM ../base.gguf\n")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"merged": True}, "needs the base as a GGUF file; name it with --base-id"),
        ({"f16": True}, "--f16 is for the whole model"),
    ],
)
def test_a_folder_s_adapter_needs_the_gguf_file_named(tmp_path, options, said):
    options = Options(model=folder_of("llama"), **options)
    with pytest.raises(ConfigError, match=said):
        export(str(trained("lora", "llama")), "gguf", tmp_path / "out", options)


def test_an_unpacked_copy_loads_in_transformers(tmp_path):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    dense = write_gguf(tmp_path / "x.gguf", "llama", "Q8_0")
    (tmp_path / "copy").mkdir()
    write_dense(GgufWeights(tmp_path / "x.gguf"), tmp_path / "copy", mx.float32)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "copy", dtype=torch.float32)
    q = model.model.layers[0].self_attn.q_proj.weight.detach().numpy()
    own = dense["blk.0.attn_q.weight"].reshape(HEADS, -1, 2, 256).swapaxes(1, 2).reshape(q.shape)
    assert np.array_equal(q, own)
    assert AutoTokenizer.from_pretrained(tmp_path / "copy").chat_template
    assert gguf.GGUFReader(tmp_path / "x.gguf").tensors
