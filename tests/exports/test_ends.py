"""What leaves MLX stops where the chat template ends an answer, or says how to be told."""

import json

import pytest
from mlx_lm.utils import load_config, load_tokenizer
from tiny_model import write_base, write_run

from mlx_hybrid.exports.export import Options, export
from mlx_hybrid.models.adapted import load_any

END = "<|end|>"


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """Its template ends turns with a token that config and tokenizer do not name."""
    folder = write_base(tmp_path_factory.mktemp("ends") / "base")
    for name, key, value in (("config", "eos_token_id", 96), ("tokenizer_config", "eos_token", "<s>")):
        path = folder / f"{name}.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    return folder


@pytest.fixture(scope="module")
def lora(base, tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("ends") / "run", base, method="lora")


def test_an_adapter_that_is_loaded_stops_there(lora, base):
    for name, more in ((lora.path, {}), (lora.adapter, {"base_name": str(base)}), (base, {})):
        assert load_any(str(name), **more).tokenizer.eos_token_ids == {96, 97}
    assert load_tokenizer(base).eos_token_ids == {96}


def test_a_whole_model_names_it(lora, tmp_path):
    export(str(lora.path), "fuse", tmp_path / "fused", Options(force=True))
    ends = json.loads((tmp_path / "fused" / "generation_config.json").read_text())["eos_token_id"]
    assert ends == load_config(tmp_path / "fused")["eos_token_id"] == [96, 97]


def test_settings_that_are_there_are_kept(lora, base, tmp_path):
    settings = {"temperature": 0.6, "eos_token_id": 95}
    (base / "generation_config.json").write_text(json.dumps(settings))
    export(str(lora.path), "merged", tmp_path / "merged", Options(force=True))
    (base / "generation_config.json").unlink()
    written = json.loads((tmp_path / "merged" / "generation_config.json").read_text())
    assert written == {"temperature": 0.6, "eos_token_id": [95, 96, 97]}


@pytest.mark.parametrize("to", ["peft", "mlx-lm"])
def test_an_adapter_s_readme_says_it(lora, tmp_path, to):
    report = export(str(lora.path), to, tmp_path / "out", Options(force=True))
    text = (tmp_path / "out" / "README.md").read_text()
    assert f"Answers end with `{END}`" in text
    assert "[96, 97]" in text
    assert f"--extra-eos-token '{END}'" in text
    assert json.loads((tmp_path / "out" / "export.json").read_text())["end_of_answers"] == END
    assert any(END in note for note in report.notes)


def test_a_base_that_names_its_end_is_left_alone(run, tmp_path):
    report = export(str(run.path), "merged", tmp_path / "out", Options(force=True))
    assert not (tmp_path / "out" / "generation_config.json").exists()
    assert "end_of_answers" not in report.facts
