"""What is fetched from the Hub with the real client: a pushed adapter put on its base, and a data set."""

import json

import mlx.core as mx
import pytest
from click.testing import CliRunner
from huggingface_hub import constants
from test_hub import hub, mine, push  # noqa: F401
from tiny_model import write_base

from mlx_hybrid.adapters.store import probe_logits
from mlx_hybrid.cli import main
from mlx_hybrid.config import DataConfig
from mlx_hybrid.errors import ConfigError
from mlx_hybrid.models.adapted import load_any
from mlx_hybrid.records.files import find_sources


@pytest.fixture
def published(hub, mine, monkeypatch, tmp_path):  # noqa: F811
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    assert push("trial", "me/trial", "--yes").exit_code == 0
    return hub


def test_a_published_adapter_is_the_run_itself(published, run, base_folder):
    ours = load_any("me/trial", base_name=str(base_folder))
    theirs = load_any(str(run.path))
    assert mx.array_equal(probe_logits(ours.model), probe_logits(theirs.model))
    assert (ours.name, ours.modules, ours.change) == ("trial", theirs.modules, theirs.change)
    assert ours.change > 1e-3


def test_it_answers_and_is_exported_by_its_id(published, base_folder, tmp_path):
    asked = ["generate", "me/trial", "hello", "--base-model", str(base_folder), "--max-tokens", "3"]
    done = CliRunner().invoke(main, asked)
    assert done.exit_code == 0, done.output
    assert "adapter on 14 modules" in done.stderr
    out = tmp_path / "lora"
    done = CliRunner().invoke(
        main, ["export", "me/trial", "--model", str(base_folder), "--to", "lora", "-o", str(out)]
    )
    assert done.exit_code == 0, done.output
    assert (out / "adapter_model.safetensors").is_file()


def test_a_base_on_another_machine_is_asked_for(published):
    with pytest.raises(ConfigError, match=r"^trial: was trained on the local folder tiny; .*--base-model"):
        load_any("me/trial")


def test_another_base_and_a_base_for_a_model_are_refused(published, base_folder, tmp_path):
    other = write_base(tmp_path / "other", endless=True)
    with pytest.raises(ConfigError, match="whose weights are not those of"):
        load_any("me/trial", base_name=str(other))
    with pytest.raises(ConfigError, match="is a model, not an adapter"):
        load_any(str(base_folder), base_name=str(other))


def test_a_peft_adapter_is_sent_to_import(published):
    published.add_repo("me/peft")
    published.repos["me/peft"]["files"] = {
        "adapter_config.json": b"{}",
        "adapter_model.safetensors": b"\0" * 16,
    }
    published.repos["me/peft"]["commits"] = ["1" * 40]
    with pytest.raises(ConfigError, match=r"me/peft: is a PEFT adapter; `mlx-hybrid import"):
        load_any("me/peft")


def test_what_is_not_on_the_hub_is_named(published):
    with pytest.raises(ConfigError, match="me/nothing: no such folder here, and not to be had from the Hub"):
        load_any("me/nothing")


def test_a_data_set_keeps_its_splits(published):
    published.add_repo("me/data")
    files = {"data/train.jsonl": b'{"text": "a"}\n', "data/test.jsonl": b'{"text": "b"}\n', "README.md": b"#"}
    published.repos["me/data"] |= {"files": files, "commits": ["2" * 40]}
    sources = find_sources(DataConfig(paths=("me/data",)))
    for part in ("train", "test"):
        (source,) = getattr(sources, part)
        assert source.path.read_bytes() == files[f"data/{part}.jsonl"]
        assert (source.name, source.revision) == (f"me/data:data/{part}.jsonl", "2" * 40)
    assert sources.valid == ()


@pytest.fixture
def records(tmp_path):
    path = tmp_path / "records.jsonl"
    rows = ({"prompt": f"What is {n}?", "completion": f"It is {n}."} for n in range(20))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_dry_run_and_an_estimate_fetch_no_weights(hub, base_folder, records, monkeypatch, tmp_path):  # noqa: F811
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    hub.add_repo("me/tiny")
    files = {path.name: path.read_bytes() for path in base_folder.iterdir()}
    hub.repos["me/tiny"] |= {"commits": ["1" * 40], "files": files}

    def call(command, *more):
        settings = ["--model", "me/tiny", "--data", str(records), "--set", "governance.enabled=false", *more]
        return CliRunner().invoke(main, [command, *settings])

    done = call("finetune", "--dry-run")
    assert done.exit_code == 0, done.output
    assert "# tokens:" in done.stdout
    wrong = call("finetune", "--dry-run", "--set", "adapter.targets=[q_prj]")
    assert wrong.exit_code == 2
    assert 'did you mean "q_proj"' in wrong.stderr
    assert call("estimate").exit_code == 0
    fetched = {path.name for path in (tmp_path / "cache").rglob("snapshots/*/*")}
    assert "tokenizer.json" in fetched
    assert not [name for name in fetched if name.endswith(".safetensors")]
