"""The surface of the command line: help, recipes, doctor, what is imported."""

import json
import os
import shlex
import subprocess
from pathlib import Path

import click
import pytest
from acting import refused

from mlx_hybrid.cli import COMMANDS, main
from mlx_hybrid.config import Config, load_config
from mlx_hybrid.config.recipes import recipes, summary
from mlx_hybrid.files import write_text

PROJECT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_says_what_it_does_and_how(name, run):
    result = run(name, "--help", code=0)
    assert "Example" in result.output
    assert f"mlx-hybrid {name}" in result.output
    own = main.get_command(click.Context(main), name)
    assert own.name == name
    assert own.help.split("\n\n")[0].endswith(".")


def test_help_lists_every_command(run):
    output = run("--help").output
    assert all(f"\n  {name} " in output for name in COMMANDS)


def test_an_unknown_command_names_the_nearest(run):
    refused(run("finetun"), 2, 'did you mean "finetune"')


def test_debug_and_offline_may_stand_after_the_command(run):
    run("recipes", "--offline", "--debug", code=0)


def test_every_recipe_is_a_valid_configuration_with_its_command(run):
    for name, path in recipes().items():
        assert isinstance(load_config(path), Config)
        assert summary(path)
        assert f"mlx-hybrid finetune {name}" in path.read_text()
        assert name in run("recipes").output
        assert run("recipes", "show", name).output == path.read_text()


@pytest.mark.parametrize("name", recipes())
def test_a_copied_recipe_ends_with_the_first_command_it_opens_with(name, run, tmp_path):
    *_, last = run("recipes", "copy", name, "-o", tmp_path / "my own", code=0).output.splitlines()
    words = shlex.split(last.removeprefix("Next: "))
    command = main.get_command(click.Context(main), words[words.index("mlx-hybrid") + 1])
    assert {word for word in words if word.startswith("--")} <= {
        *(option for own in command.params for option in own.opts), "--hostfile", "--backend", "--",
    }  # fmt: skip
    own = [word for word in words if Path(word).suffix in (".yaml", ".jsonl") and str(tmp_path) in word]
    assert all(Path(word).is_file() for word in own)
    assert own or words[1] == "task"


def test_a_page_is_written_through_a_link_and_into_a_pipe(tmp_path):
    (tmp_path / "real").write_text("old")
    (tmp_path / "link").symlink_to("real")
    write_text(tmp_path / "link", "new")
    assert ((tmp_path / "link").is_symlink(), (tmp_path / "real").read_text()) == (True, "new")
    os.mkfifo(tmp_path / "pipe")
    reader = subprocess.Popen(["cat", tmp_path / "pipe"], stdout=subprocess.PIPE, text=True)
    write_text(tmp_path / "pipe", "through")
    assert reader.communicate()[0] == "through"
    assert (tmp_path / "pipe").is_fifo()


def test_doctor_reports_facts(run):
    facts = json.loads(run("doctor", "--json").output)["facts"]
    assert facts["mlx-hybrid"]
    assert facts["memory_gb"] > 0


def test_runs_without_any_names_the_next_command(run):
    assert run("runs").output.endswith("Next: mlx-hybrid finetune\n")


def test_generated_pages_are_what_the_program_says(monkeypatch):
    monkeypatch.syspath_prepend(str(PROJECT / "tools"))
    import help_pages

    for path, text in help_pages.pages().items():
        assert path.read_text() == text, "run python tools/help_pages.py"
