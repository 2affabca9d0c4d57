"""`estimate`: what memory goes to, and what would fit."""

import json
from dataclasses import replace

from acting import refused

from mlx_hybrid.cli.output import command
from mlx_hybrid.training.memory import shape


def test_it_lists_what_memory_goes_to(run, quantised_folder, records, settings):
    result = run("estimate", "--model", quantised_folder, "--data", records, *settings, code=0)
    for item in ("base", "optimiser", "activations", "attention scores", "logits", "Peak:", "May be used:"):
        assert item in result.output
    assert "from the records: 8 rows" in result.output
    words = ("--model", quantised_folder, "--data", records, *settings)
    assert result.output.splitlines()[-1] == f"Next: {command('finetune', *words)}"


def test_the_next_command_trains_what_was_estimated(run, quantised_folder, tmp_path):
    config = tmp_path / "mine.yaml"
    config.write_text(f"model: {quantised_folder}\n")
    words = (config, "--method", "hra", "--set", "train.batch_size=2")
    for memory in ((), ("--memory", "64"), ("--memory=64",)):
        result = run("estimate", *words[:3], *memory, *words[3:])
        assert result.output.splitlines()[-1] == f"Next: {command('finetune', *words)}"


def test_without_records_the_settings_bound_the_batch(run, quantised_folder):
    result = run("estimate", "--model", quantised_folder, "--json", "--set", "train.max_tokens=65")
    tree = json.loads(result.output)
    assert tree["batch"] == {"rows": 8, "tokens": 64, "targets": 512, "held": 128}
    assert tree["batch_from"] == "train.max_tokens"
    assert tree["fits"]


def test_without_records_an_ordinary_length_is_assumed_and_others_are_tabulated(run, quantised_folder):
    asked = ("estimate", "--model", quantised_folder)
    said, tree = run(*asked, code=0).output, json.loads(run(*asked, "--json", code=0).output)
    assert "an ordinary length of 512 tokens, for want of records: 8 rows of 511 tokens" in said
    batches, lengths, needed = (tree["table"][key] for key in ("batches", "tokens", "needed_bytes"))
    table = {(n, tokens): need for n, row in zip(batches, needed) for tokens, need in zip(lengths, row)}
    whole = json.loads(run(*asked, "--json", "--batch-size", 4, "--max-tokens", 257, code=0).output)
    assert table[4, 256] == whole["peak_bytes"] + whole["cache_bytes"]
    assert f"{table[32, 4096] / 1e9:.2f}" in said
    small = run(*asked, "--memory", table[8, 512] / 0.9e9, code=0).output
    assert "!" in small.partition("may be used:")[2]


def test_the_table_counts_what_a_batch_of_its_size_would(run, quantised_folder, monkeypatch):
    """Also of a vocabulary beside whose logits, the base's among them, nothing else counts."""
    monkeypatch.setattr(
        shape, "model_shape", lambda config, own=shape.model_shape: replace(own(config), vocabulary=10**6)
    )
    asked = ("estimate", "--model", quantised_folder, "--json")
    table = json.loads(run(*asked).output)["table"]
    for n, row in list(zip(table["batches"], table["needed_bytes"]))[:2]:
        for tokens, need in list(zip(table["tokens"], row))[:2]:
            whole = json.loads(run(*asked, "--batch-size", n, "--max-tokens", tokens + 1).output)
            assert need == whole["peak_bytes"] + whole["cache_bytes"]
            unheld = json.loads(
                run(
                    *asked, "--batch-size", n, "--max-tokens", tokens + 1, "--set", "train.prompt_weight=0"
                ).output
            )
            assert unheld["peak_bytes"] < whole["peak_bytes"]


def test_a_misspelt_method_names_the_nearest(run):
    for name in ("estimate", "finetune"):
        refused(run(name, "--method", "hybird"), 2, 'unknown method "hybird"; did you mean "hybrid"?')


def test_what_will_not_fit_exits_4_and_names_the_change(run, quantised_folder):
    result = run("estimate", "--model", quantised_folder, "--memory", "0.03", code=4)
    assert "It will not fit. The smallest change that does: --set train." in result.output
    tree = json.loads(run("estimate", "--model", quantised_folder, "--memory", "0.03", "--json").output)
    assert not tree["fits"]
    assert tree["change"]
