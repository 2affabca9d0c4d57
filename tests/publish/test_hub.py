"""`push` with the real Hub client against a Hub on this machine."""

import json
import os
import shutil
import time
from pathlib import Path

import pytest
from click.testing import CliRunner
from fake_hub import TOKEN, FakeHub
from huggingface_hub import constants

from mlx_hybrid.cli import main
from mlx_hybrid.errors import ConfigError
from mlx_hybrid.publish.hub import plan


@pytest.fixture
def hub(monkeypatch):
    server = FakeHub()
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # its store is a protocol of its own
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def mine(run):
    """A copy of the run, to be changed."""
    folder = Path(os.environ["MLX_HYBRID_RUNS"]) / "trial"
    shutil.copytree(run.path, folder)
    return folder


def push(*arguments, text=None):
    done = CliRunner().invoke(main, ["push", *map(str, arguments)], input=text)
    assert TOKEN not in done.output
    return done


def files(hub, name="me/trial"):
    return hub.repos[name]["files"]


def test_a_run_is_published_private_with_its_card(hub, mine):
    (mine / "evaluation").mkdir()
    (mine / "evaluation" / "held-out.json").write_text("{}")
    done = push("trial", "me/trial", "--yes")
    assert done.exit_code == 0, done.output
    assert hub.repos["me/trial"]["private"]
    assert set(files(hub)) == {
        "adapter_config.json",
        "adapters.safetensors",
        "evaluation/held-out.json",
        "README.md",
    }
    assert files(hub)["adapters.safetensors"] == (mine / "adapter" / "adapters.safetensors").read_bytes()
    assert files(hub)["README.md"].decode().startswith("---\nlibrary_name: mlx\n")
    assert done.stdout == f"{hub.url}/me/trial\n"
    assert "Not published: config.yaml" in done.stderr
    assert "mlx-hybrid chat me/trial" in done.stderr
    everything = b"".join(data for _, data in hub.seen) + b"".join(hub.blobs.values())
    assert TOKEN.encode() not in everything
    assert str(Path.home()).encode() not in everything
    assert str(mine).encode() not in everything


def test_nothing_is_sent_without_a_yes(hub, mine):
    asked = push("trial", "me/trial")
    assert asked.exit_code == 2
    assert "--yes" in asked.stderr
    looked = push("trial", "me/trial", "--dry-run")
    assert looked.exit_code == 0
    assert "Nothing was published." in looked.stderr
    assert not hub.requests


@pytest.mark.parametrize(
    ("fault", "code", "said"),
    [
        ({"whoami": [401]}, 2, "does not know the token"),
        ({"repos/create": [403]}, 2, "may not write there"),
        ({"commit": [403]}, 2, "may not write there"),
        ({"commit": [409] * 9}, 1, "answers 409 (Conflict); what was uploaded stays"),
        ({"commit": [500] * 99}, 1, "answers 500 (Internal Server Error)"),
        ({"preupload": [503] * 99}, 1, "answers 503 (Service Unavailable)"),
        ({"/upload/": [500] * 99}, 1, "answers 500 (Internal Server Error)"),
        ({"/upload/": ["drop"] * 99}, 1, "hung up"),
        ({"commit": ["drop"] * 99}, 1, "hung up"),
    ],
)
def test_a_refusal_and_a_fault_are_one_sentence(hub, mine, fault, code, said):
    hub.faults |= fault
    done = push("trial", "me/trial", "--yes")
    assert done.exit_code == code, done.output
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert not hub.repos.get("me/trial", {}).get("commits")


@pytest.mark.parametrize(
    "fault",
    [
        {"whoami": [502]},
        {"repos/create": [500]},
        {"commit": [409]},
        {"commit": [503, 412, 429]},
        {"commit": ["drop"]},
        {"/upload/": ["drop", 500]},
        {"preupload": ["drop"]},
        {"batch": [500]},
    ],
)
def test_a_fault_that_passes_does_not_stop_a_push(hub, mine, fault):
    hub.faults |= fault
    done = push("trial", "me/trial", "--yes")
    assert done.exit_code == 0, done.output
    assert len(hub.repos["me/trial"]["commits"]) == 1
    assert len(files(hub)) == 3


def test_a_push_that_broke_off_goes_on(hub, mine):
    shutil.copy(mine / "adapter" / "adapters.safetensors", mine / "adapter" / "model.safetensors")
    other = mine / "adapter" / "model.safetensors"
    data = other.read_bytes()
    other.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))  # another file of the same header
    hub.faults["commit"] = [500] * 99
    assert push("trial", "me/trial", "--yes").exit_code == 1
    assert sorted(hub.uploaded.values()) == [1, 1]
    hub.faults.clear()
    assert push("trial", "me/trial", "--yes").exit_code == 0
    assert sorted(hub.uploaded.values()) == [1, 1]
    assert len(files(hub)) == 4
    assert push("trial", "me/trial", "--yes").exit_code == 0
    assert len(hub.repos["me/trial"]["commits"]) == 1


def test_visibility_is_kept_or_refused(hub, mine):
    hub.add_repo("me/open", private=False)
    done = push("trial", "me/open", "--yes")
    assert done.exit_code == 2
    assert "exists and is public" in done.stderr
    assert not files(hub, "me/open")
    assert json.loads(push("trial", "me/open", "--yes", "--public", "--json").stdout)["created"] is False
    assert len(files(hub, "me/open")) == 3
    assert push("trial", "me/new", "--yes", "--public").exit_code == 0
    assert not hub.repos["me/new"]["private"]
    hub.add_repo("me/closed")
    assert "exists and is private" in push("trial", "me/closed", "--yes", "--public").stderr


def test_offline_and_without_a_token_nothing_is_tried(hub, mine, monkeypatch):
    done = push("trial", "me/trial", "--yes", "--offline")
    assert done.exit_code == 2
    assert "Offline: nothing is pushed" in done.stderr
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", "/nowhere")
    done = push("trial", "me/trial", "--yes")
    assert done.exit_code == 2
    assert "hf auth login" in done.stderr
    assert not hub.requests


@pytest.mark.parametrize("name", ["trial", "a/b/c", "me/..", "me/sp ace", "https://x/y"])
def test_a_repository_is_owner_and_name(hub, mine, name):
    assert push("trial", name, "--dry-run").exit_code == 2


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"path": "/home/ana/data.jsonl"}', "path of a home folder"),
        ('{"path": "/Users/ana/data.jsonl"}', "path of a home folder"),
        ('{"path": "C:\\\\Users\\\\ana"}', "path of a home folder"),
        ('{"note": "hf_abcdefghijklmnopqrstuvwxyz"}', "access token"),
    ],
)
def test_what_is_private_stops_a_push(mine, text, said):
    (mine / "evaluation").mkdir()
    (mine / "evaluation" / "held-out.json").write_text("{}\n")
    (mine / "evaluation" / "notes.json").write_text(f"\n{text}")
    with pytest.raises(ConfigError, match=rf"notes\.json, line 2: holds .*{said}"):
        plan(mine, "me/trial")


def test_weights_are_looked_into_and_links_refused(mine, tmp_path):
    config = mine / "adapter" / "adapter_config.json"
    config.rename(tmp_path / "elsewhere.json")
    config.symlink_to(tmp_path / "elsewhere.json")
    with pytest.raises(ConfigError, match="is a link"):
        plan(mine, "me/trial")
    config.unlink()
    shutil.copy(tmp_path / "elsewhere.json", config)
    head = json.dumps({"__metadata__": {"from": f"{Path.home()}/secret"}}).encode()
    (mine / "adapter" / "model.safetensors").write_bytes(len(head).to_bytes(8, "little") + head)
    with pytest.raises(ConfigError, match="your home folder"):
        plan(mine, "me/trial")
    (mine / "adapter" / "model.safetensors").write_bytes(b"\x20")
    with pytest.raises(ConfigError, match="cut off"):
        plan(mine, "me/trial")


def test_only_known_files_of_a_folder_are_taken(mine, tmp_path, base_folder):
    folder = tmp_path / "model"
    shutil.copytree(base_folder, folder)
    for name in (".env", "train.log", "data.jsonl", "model.pt", "code.py"):
        (folder / name).write_text("x")
    (folder / "secret").mkdir()
    (folder / "secret" / "config.json").write_text("{}")
    publication = plan(folder, "me/model")
    assert set(publication.files) == {
        "config.json",
        "model.safetensors",
        "model.safetensors.index.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "README.md",
    }
    assert {".env", "secret/config.json", "data.jsonl"} <= set(publication.left_out)


def test_what_is_nothing_to_publish_is_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="holds no run"):
        plan(tmp_path / "empty", "me/x")
