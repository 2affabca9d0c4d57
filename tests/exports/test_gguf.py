"""An adapter as GGUF: what llama.cpp reads in it, and the Modelfile beside it."""

import json
import shutil

import numpy as np
import pytest
from click.testing import CliRunner
from gguf import GGUFReader
from hf_bases import dense_base, folder_of, one_thread, trained  # noqa: F401
from toys import byte_tokenizer, wrapped

from mlx_hybrid.cli import main
from mlx_hybrid.errors import ConfigError
from mlx_hybrid.exports.adapter import open_source
from mlx_hybrid.exports.export import Options, export
from mlx_hybrid.exports.gguf import go_template
from mlx_hybrid.models.base import BUNDLED, read_tokenizer

pytestmark = [pytest.mark.peft, pytest.mark.usefixtures("one_thread")]


def permuted(weight, heads):
    """The rows of q or k as llama.cpp's converter orders them: of each head those of either half in turn."""
    rows = []
    for head in np.split(weight, heads):
        first, second = np.split(head, 2)
        rows += [row for pair in zip(first, second, strict=True) for row in pair]
    return np.stack(rows)


@pytest.mark.parametrize("packed", [False, True], ids=["dense", "4-bit"])
@pytest.mark.parametrize(
    ("architecture", "named"), [("llama", "llama"), ("gemma3_text", "gemma3"), ("phi3", "phi3")]
)
def test_the_file_adds_what_the_adapter_adds(tmp_path, architecture, named, packed):
    """As llama.cpp reads it, alpha / r · B A on the weight of that name, against the merged weight."""
    model = folder_of(architecture, packed=packed)
    adapter = trained("hybrid", architecture, packed=packed)
    report = export(str(adapter), "gguf", tmp_path / "out", Options(model=model))
    assert report.checks["logits"]["passed"]
    assert not (tmp_path / "out" / "base").exists()
    reader, source = GGUFReader(tmp_path / "out" / "adapter.gguf"), open_source(str(adapter), model=model)
    told = {key: field.contents() for key, field in reader.fields.items()}
    assert (told["general.type"], told["adapter.type"], told["general.architecture"]) == (
        "adapter",
        "lora",
        named,
    )
    stored = {tensor.name: tensor.data for tensor in reader.tensors}
    assert len(stored) == 2 * len(source.info.modules)
    heads = {"attn_q": 4, "attn_k": 2} if named == "llama" else {}
    places = {
        "self_attn.v_proj": "attn_v",
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "mlp.down_proj": "ffn_down",
        "mlp.gate_up_proj": "ffn_up",
        "self_attn.qkv_proj": "attn_qkv",
    }
    for part, place in places.items():
        module = f"model.layers.1.{part}"
        if module not in source.info.modules:
            continue
        layer = source.layer(module, source.base)
        update = np.array(layer.merged_weight() - layer.linear.weight)
        update = permuted(update, heads[place]) if place in heads else update
        a, b = (stored[f"blk.1.{place}.weight.lora_{leaf}"] for leaf in "ab")
        assert a.shape[1] == update.shape[1]
        np.testing.assert_allclose(told["adapter.lora.alpha"] / len(a) * b @ a, update, atol=2e-6)


@pytest.mark.parametrize("method", ["boft", "hybrid-boft", "dora"])
def test_what_is_no_lora_is_refused_with_the_way_out(tmp_path, method):
    with pytest.raises(ConfigError, match=r"is not exactly a LoRA .*--merged"):
        export(str(trained(method, "llama")), "gguf", tmp_path / "out", Options(model=folder_of("llama")))
    assert not (tmp_path / "out").exists()


def test_the_command_says_how_to_run_it(tmp_path):
    words = ["--to", "gguf", "--model", str(dense_base("llama")), "-o", str(tmp_path / "My Adapter")]
    done = CliRunner().invoke(main, ["export", str(trained("lora", "llama")), *words])
    assert done.exit_code == 0, done.output
    made = tmp_path / "My Adapter"
    assert (
        f"ollama before 0.34.1: ollama create my-adapter -f '{made}/Modelfile' && ollama run my-adapter"
        in done.stdout
    )
    assert f"llama-cli -m path/to/llama.gguf --lora '{made}/adapter.gguf'" in done.stdout
    text = (made / "Modelfile").read_text()
    assert text.startswith("FROM path/to/llama.gguf\nADAPTER ./adapter.gguf\n")
    assert "write where it is, or name it with --base-id" in done.stderr
    assert "ollama from 0.34.1 on, take no adapters: --merged makes a whole model" in done.stderr
    told = (made / "README.md").read_text()
    assert "llama-cli -m path/to/llama.gguf --lora adapter.gguf" in told
    assert "With ollama before 0.34.1:" in told
    assert "take no adapters: `mlx-hybrid export RUN --to gguf --merged`" in told
    assert json.loads((made / "export.json").read_text())["to"] == "gguf"


def test_a_modelfile_stops_and_samples_as_the_model_was_set(tmp_path):
    adapter, base = tmp_path / "adapter", dense_base("llama")
    shutil.copytree(trained("lora", "llama"), adapter)
    tree = json.loads((adapter / "adapter_config.json").read_text())
    tree["mlx_hybrid"]["temperature"] = 0.75
    (adapter / "adapter_config.json").write_text(json.dumps(tree))
    export(str(adapter), "gguf", tmp_path / "out", Options(model=str(base)))
    text = (tmp_path / "out" / "Modelfile").read_text()
    assert "PARAMETER temperature 0.75\n" in text
    assert all(f'PARAMETER stop "{end}"' in text for end in read_tokenizer(str(base)).end_markers)


def test_go_writes_the_turns_that_the_template_writes():
    text = go_template(read_tokenizer(BUNDLED))
    assert "{{ if .System }}<|system|>{{ .System }}<|end|>{{ else }}" in text
    assert "<|user|>{{ .Content }}<|end|><|assistant|>" in text
    assert "{{ .Content }}<|end|>" in text
    assert "<s>" not in text  # the engine writes BOS itself


def test_a_template_that_counts_its_turns_is_left_to_the_base():
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}{{ loop.index }}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    )
    assert go_template(wrapped(tokenizer)) is None
