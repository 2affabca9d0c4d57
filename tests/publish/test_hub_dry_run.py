"""What a dry run and an estimate fetch of a model on the Hub: no weights."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from huggingface_hub import constants
from test_hub import hub  # noqa: F401

from mlx_hybrid.cli import main


@pytest.fixture
def records(tmp_path):
    path = tmp_path / "records.jsonl"
    path.write_text(
        "".join(
            json.dumps({"prompt": f"What is {n}?", "completion": f"It is {n}."}) + "\n" for n in range(20)
        )
    )
    return path


def test_no_weights_are_fetched(hub, base_folder, records, monkeypatch, tmp_path):  # noqa: F811
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
    fetched = {path.name for path in Path(tmp_path / "cache").rglob("snapshots/*/*")}
    assert "tokenizer.json" in fetched
    assert not [name for name in fetched if name.endswith(".safetensors")]
