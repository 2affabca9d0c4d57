"""`estimate`, and the refusal of `finetune`."""

import json

from mlx_hybrid.cli.commands import command
from mlx_hybrid.training.memory import fit as module


def test_it_lists_what_memory_goes_to(run, quantised_folder, records, settings):
    result = run("estimate", "--model", quantised_folder, "--data", records, *settings)
    assert result.exit_code == 0, result.stderr
    for item in ("base", "optimiser", "activations", "attention scores", "logits", "Peak:", "May be used:"):
        assert item in result.output
    assert "from the records: 8 rows" in result.output
    words = ("--model", quantised_folder, "--data", records, *settings)
    assert result.output.splitlines()[-1] == f"Next: {command('finetune', *words)}"


def test_the_next_command_trains_what_was_estimated(run, quantised_folder, tmp_path):
    config = tmp_path / "mine.yaml"
    config.write_text(f"model: {quantised_folder}\n")
    for words in (
        (config, "--method", "hra"),
        ("--model", quantised_folder, "--set", "train.batch_size=2"),
        (),
    ):
        result = run("estimate", *words)
        assert result.output.splitlines()[-1] == f"Next: {command('finetune', *words)}"


def test_without_records_the_settings_bound_the_batch(run, quantised_folder):
    result = run("estimate", "--model", quantised_folder, "--json", "--set", "train.max_tokens=65")
    tree = json.loads(result.output)
    assert tree["batch"] == {"rows": 8, "tokens": 64, "targets": 512}
    assert tree["batch_from"] == "train.max_tokens"
    assert tree["fits"]


def test_a_misspelt_method_names_the_nearest(run):
    results = [run(command, "--method", "hybird") for command in ("estimate", "finetune")]
    assert [result.exit_code for result in results] == [2, 2]
    assert all('unknown method "hybird"; did you mean "hybrid"?' in result.stderr for result in results)


def test_what_will_not_fit_exits_4_and_names_the_change(run, quantised_folder):
    result = run("estimate", "--model", quantised_folder, "--memory", "0.03")
    assert result.exit_code == 4
    assert "It will not fit. The smallest change that does: --set train." in result.output
    tree = json.loads(run("estimate", "--model", quantised_folder, "--memory", "0.03", "--json").output)
    assert not tree["fits"]
    assert tree["change"]


def test_finetune_refuses_it_unless_forced(run, quantised_folder, records, settings, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "memory_limit", lambda: 1_000_000)
    call = ("finetune", "--model", quantised_folder, "--data", records, "-o", tmp_path / "trained", *settings)
    refused = run(*call)
    assert refused.exit_code == 4
    assert "--force" in refused.stderr
    assert not (tmp_path / "trained").exists()
    assert run(*call, "--force").exit_code == 0
