"""A run on a GGUF file, from training to the exports; and what doctor and estimate say of one."""

import json
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from acting import refused, sets
from gguf_files import write_gguf

from mlx_hybrid.config import load_config
from mlx_hybrid.jobs import finetune as job
from mlx_hybrid.models.adapted import load_any

pytestmark = pytest.mark.slow

PACKED = {f"blk.{i}.ffn_down.weight": "Q6_K" for i in (0, 1)} | {"token_embd.weight": "Q6_K"}


@pytest.fixture
def gguf(tmp_path, monkeypatch):
    """A tiny model whose head and some of whose layers stay packed, named from its own folder."""
    write_gguf(tmp_path / "tiny.gguf", kind="Q4_K", kinds=PACKED)
    monkeypatch.chdir(tmp_path)
    return "tiny.gguf"


@pytest.mark.peft
def test_a_run_on_a_gguf_file_finishes(run, gguf, records, settings, tmp_path):
    short = ["--method", "hybrid", *sets("train.steps=6", "evaluate=false")]
    begun = run("finetune", "--model", gguf, "--data", records, "--output", "run", *settings, *short)
    assert begun.exit_code in (0, 3), begun.output
    base = json.loads((tmp_path / "run" / "run.json").read_text())["base"]
    assert base["id"] == "tiny.gguf"
    stops = iter([False, False, True])
    for _ in job.finetune(load_config(Path("run/config.yaml")), output=Path("cut"), stop=lambda: next(stops)):
        pass
    assert run("finetune", "--resume", "cut").exit_code == begun.exit_code
    cut, whole = (Path(name, "adapter", "adapters.safetensors").read_bytes() for name in ("cut", "run"))
    assert cut == whole
    loaded = load_any("run")
    assert loaded.change > 0
    run("generate", "run", "no river", "--max-tokens", "3", code=0)
    other = tmp_path / "other.jsonl"
    other.write_text(
        "".join(json.dumps({"prompt": f"so {i} is it", "completion": "up"}) + "\n" for i in range(4))
    )
    run("evaluate", "run", "--on", other, "--output", "measured", code=0)
    run("export", "run", "--to", "peft", "-o", "peft", code=0)
    report = json.loads((tmp_path / "peft" / "export.json").read_text())
    assert report["base"]["kind"] == "dequantised"
    assert (tmp_path / "peft" / "base" / "tokenizer.json").is_file()
    run("fuse", "run", "-o", "fused", code=0)
    tokens = mx.array([[5, 9, 77]])
    want, got = loaded.model(tokens), load_any("fused").model(tokens)
    assert np.abs(np.array(want - got)).max() < 0.02 * np.abs(np.array(want)).max()
    refused(run("export", "run", "--to", "mlx-lm", "-o", "x"), 2, "tiny.gguf: is a GGUF file, which mlx-lm")
    refused(run("fuse", "run", "--requantise", "-o", "x"), 2, "tiny.gguf: is a GGUF file, which MLX does not")
    write_gguf(tmp_path / "tiny.gguf", kind="Q4_K", kinds={**PACKED, "blk.0.ffn_up.weight": "Q8_0"})
    refused(run("generate", "run", "no river"), 2, "tiny.gguf")


def test_a_base_without_a_template_is_trained_on_a_plain_one(run, gguf, records, settings):
    write_gguf(Path(gguf), kind="Q4_K", drop=("template",))
    words = ("--model", gguf, "--data", records, "--output", "run", *settings, "--steps", "1")
    assert run("finetune", *words, *sets("evaluate=false")).exit_code in (0, 3)
    assert load_any("run").tokenizer.given
    run("generate", "run", "no river", "--max-tokens", "3", code=0)


def test_doctor_and_estimate_say_what_weights_take(run, gguf):
    said = run("doctor", gguf, code=0).output
    assert "Q4_K" in said
    rows = json.loads(run("doctor", gguf, "--json", code=0).output)["weights"]
    assert {row["type"] for row in rows} == {"Q4_K", "Q6_K", "F32"}
    estimate = json.loads(run("estimate", "--model", gguf, "--json", code=0).output)
    assert estimate["bytes"]["base"] == sum(row["bytes"] for row in rows)
    refused(run("doctor", "bundled"), 2, "bundled: is a folder")


@pytest.mark.parametrize(
    "words", [["finetune", "--data", "r.jsonl", "--model"], ["chat"], ["serve"], ["doctor"]]
)
def test_a_bad_file_is_refused_before_anything_is_written(words, run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "r.jsonl").write_text('{"prompt": "a", "completion": "b"}\n' * 20)
    (tmp_path / "bad.gguf").write_bytes(b"GGUF\x03\0\0\0" + bytes(9))
    refused(run(*words, "bad.gguf"), 2, "bad.gguf: is cut off or damaged")
    assert {path.name for path in tmp_path.iterdir()} == {"r.jsonl", "bad.gguf"}
