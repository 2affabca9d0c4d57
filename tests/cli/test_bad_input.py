"""Bad input: one sentence, the right exit code, no traceback, nothing half written."""

import io
import json
import shutil
from pathlib import Path

import pytest

from mlx_hybrid.chat.lines import Lines
from mlx_hybrid.cli.generate import read_prompt
from mlx_hybrid.config import build_config
from mlx_hybrid.errors import ConfigError
from mlx_hybrid.run import create_run

GOOD = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
EMPTY = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": " "}]}
LONG = {"prompt": "a", "completion": "b " * 3000}

SETTINGS = [  # (extra arguments, exit code, words of the message)
    (
        ["--set", "train.learning_rat=1"],
        2,
        ['unknown key "train.learning_rat"', 'did you mean "learning_rate"'],
    ),
    (["--set", "method=hybird"], 2, ['unknown method "hybird"', 'did you mean "hybrid"']),
    (["--method", "hybird"], 2, ['unknown method "hybird"', 'did you mean "hybrid"']),
    (["--set", "train.epochs"], 2, ["write key=value"]),
    (["--set", "adapter.low_rank.rank=-1"], 2, ["adapter.low_rank.rank must be at least 1"]),
    (["--set", "adapter.rotation.reflections=7"], 2, ["come in pairs", "use 8"]),
    (
        ["--method", "boft", "--set", "adapter.rotation.factors=7"],
        2,
        ["do not divide the 128 inputs", "block_size 8 with factors 4"],
    ),
    (["--set", "adapter.targets=[q_prj]"], 2, ['no module "q_prj"', 'did you mean "q_proj"']),
    (["--set", "adapter.unitary=[o_prj]"], 2, ['no adapted module "o_prj"', 'did you mean "o_proj"']),
    (["--method", "lora", "--set", "adapter.unitary=[o_proj]"], 2, ["needs an orthogonal branch"]),
    (
        ["--method", "boft", "--set", "adapter.rotation.reflections=32"],
        2,
        ["adapter.rotation.reflections would do nothing", "this is butterfly"],
    ),
    (["--method", "hra", "--set", "train.learning_rate=1e-3"], 2, ["train.orthogonal_learning_rate acts"]),
    (
        ["--set", "train.patience=3", "--set", "data.valid_share=0"],
        2,
        ["train.patience is 3", "data.valid_share"],
    ),
    (["--set", "adapter.layers=9"], 2, ["the model has 2 layers"]),
    (["nothing-like-it"], 2, ['No recipe "nothing-like-it"', "quickstart"]),
    (["missing.yaml"], 2, ["missing.yaml: no such file"]),
]

DATA = [  # (lines, exit code, words of the message)
    (["{broken"], 3, ["records.jsonl:2"]),
    ([json.dumps({"text": "a line of text"})], 3, ["records.jsonl:2"]),
    ([json.dumps(EMPTY)], 3, ["records.jsonl:2"]),
    ([json.dumps({"nothing": 1})], 3, ["records.jsonl:2"]),
    (["[1, 2]"], 3, ["records.jsonl:2"]),
]


def check(result, code: int, words: list[str], output: Path) -> None:
    assert result.exit_code == code, result.stderr
    assert result.stderr.count("Error:") == 1
    assert "Traceback" not in result.stderr
    for word in words:
        assert word in result.stderr
    assert not output.exists()
    assert not list(output.parent.glob(".*"))


@pytest.mark.parametrize(("arguments", "code", "words"), SETTINGS)
def test_settings(arguments, code, words, run, quantised_folder, records, tmp_path):
    output = tmp_path / "runs" / "bad"
    result = run("finetune", "--model", quantised_folder, "--data", records, "-o", output, *arguments)
    check(result, code, words, output)


@pytest.mark.parametrize(("lines", "code", "words"), DATA)
def test_records(lines, code, words, run, quantised_folder, tmp_path):
    path, output = tmp_path / "records.jsonl", tmp_path / "runs" / "bad"
    path.write_text("\n".join([json.dumps(GOOD), *lines]) + "\n")
    result = run(
        "finetune",
        "--model",
        quantised_folder,
        "--data",
        path,
        "-o",
        output,
        "--set",
        "governance.enabled=false",
    )
    check(result, code, words, output)


def test_a_record_over_the_limit_names_its_place_and_the_way_out(run, quantised_folder, tmp_path):
    path, output = tmp_path / "records.jsonl", tmp_path / "runs" / "bad"
    path.write_text("\n".join(json.dumps(r) for r in [LONG] * 3) + "\n")
    more = ("--set", "governance.enabled=false", "--set", "data.test_share=0")
    result = run("finetune", "--model", quantised_folder, "--data", path, "-o", output, *more)
    check(result, 3, ["records.jsonl:1", "train.max_tokens", "drop or truncate"], output)


def test_records_dropped_for_length_are_told(run, quantised_folder, records, settings, tmp_path):
    path = tmp_path / "records.jsonl"
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b " * 3000}]
    path.write_text(records.read_text() + json.dumps({"messages": turns}) + "\n")
    more = ("--set", "train.too_long=drop", "--set", "train.steps=1", "--set", "evaluate=false")
    result = run(
        "finetune", "--model", quantised_folder, "--data", path, "-o", tmp_path / "run", *settings, *more
    )
    assert "Over train.max_tokens (1024) and dropped: 1 records." in result.stderr


def test_a_missing_file(run, quantised_folder, tmp_path):
    output = tmp_path / "runs" / "bad"
    result = run("finetune", "--model", quantised_folder, "--data", "absent.jsonl", "-o", output)
    check(result, 2, ["absent.jsonl"], output)


@pytest.mark.parametrize(
    ("pattern", "words"),
    [("*.safetensors", "no .safetensors weights"), ("tokenizer*", "no tokenizer in the folder")],
)
def test_a_model_folder_that_is_not_whole(pattern, words, run, quantised_folder, records, tmp_path):
    output = tmp_path / "runs" / "bad"
    folder = shutil.copytree(quantised_folder, tmp_path / "model", ignore=shutil.ignore_patterns(pattern))
    result = run("finetune", "--model", folder, "--data", records, "-o", output)
    check(result, 2, [words], output)
    assert words in run("generate", folder, "Hello").stderr


@pytest.mark.parametrize("model", ["", "nowhere", "./no/where"])
def test_what_is_no_model_is_refused_before_the_records_are_read(model, run, records, tmp_path):
    result = run("finetune", "--model", model, "--data", records, "-o", tmp_path / "runs" / "bad")
    assert result.exit_code == 2
    assert "Records:" not in result.stderr


def test_a_block_size_is_refused_before_the_base_is_scored(
    run, quantised_folder, records, settings, tmp_path
):
    more = ("--method", "hybrid-boft", "--set", "adapter.rotation.factors=7")
    result = run(
        "finetune", "--model", quantised_folder, "--data", records, "-o", tmp_path / "bad", *settings, *more
    )
    assert result.exit_code == 2
    assert "Scoring" not in result.stderr


def test_a_run_whose_base_is_elsewhere_says_how_to_name_it(run, tmp_path):
    made = create_run(build_config({"model": "models/mine"}, "test"), tmp_path / "first")
    made.update(status="finished", base={"id": "mine"})
    made.adapter.mkdir()
    result = run("generate", made.path, "Hello")
    assert result.exit_code == 2
    assert "the folder models/mine, is not there from here; say with --base-model" in result.stderr


def test_a_model_that_is_nowhere(run, records, tmp_path):
    output = tmp_path / "runs" / "bad"
    result = run("finetune", "--model", "nobody/nothing", "--data", records, "-o", output)
    check(result, 2, ["nobody/nothing", "offline"], output)


def test_an_output_that_cannot_be_written(run, quantised_folder, records, tmp_path):
    (tmp_path / "file").write_text("")
    output = tmp_path / "file" / "run"
    result = run("finetune", "--model", quantised_folder, "--data", records, "-o", output)
    assert result.exit_code == 2
    assert "cannot be written" in result.stderr


def test_a_run_that_exists_is_left_alone(run, quantised_folder, records, tmp_path):
    output = tmp_path / "run"
    output.mkdir()
    (output / "precious").write_text("kept")
    result = run("finetune", "--model", quantised_folder, "--data", records, "-o", output)
    assert result.exit_code == 2
    assert "exists already" in result.stderr
    assert [path.name for path in output.iterdir()] == ["precious"]


def test_an_unknown_run_names_the_nearest(run, quantised_folder, records, settings, tmp_path, monkeypatch):
    monkeypatch.setenv("MLX_HYBRID_RUNS", str(tmp_path))
    data = ["finetune", "--model", quantised_folder, "--data", records, *settings]
    assert run(*data, "--set", "name=first").exit_code == 0
    result = run("runs", "frist")
    assert result.exit_code == 2
    assert 'did you mean "first"' in result.stderr
    assert json.loads(run("runs", "last", "--json").output)["status"] == "finished"


GOVERNED = [  # (name, text, exit code, words of the message): with governance on, a file without any record
    ("none.jsonl", "", 3, ["none.jsonl: no record in there"]),
    ("broken.jsonl", "{a\n{b\n", 3, ["2 lines are no records", "broken.jsonl:1: not JSON"]),
    ("array.json", '[\n{"text": "a"},\n', 3, ["array.json:1: not one JSON object a line"]),
    ("table.csv", "prompt,completion\nhi,hello\n", 2, ["table.csv: is a table", "Parquet"]),
]


@pytest.mark.parametrize(("name", "text", "code", "words"), GOVERNED)
def test_a_file_without_records_says_what_it_holds(name, text, code, words, run, quantised_folder, tmp_path):
    path, output = tmp_path / name, tmp_path / "runs" / "bad"
    path.write_text(text)
    result = run("finetune", "--model", quantised_folder, "--data", path, "-o", output)
    check(result, code, words, output)


@pytest.mark.parametrize("errors", ["strict", "surrogateescape"])
def test_a_prompt_that_is_no_text_is_refused(errors, monkeypatch):
    piped = io.TextIOWrapper(io.BytesIO(b"\xff\xfe bad\n"), encoding="utf-8", errors=errors)
    monkeypatch.setattr("sys.stdin", piped)
    with pytest.raises(ConfigError, match="not UTF-8"):
        read_prompt("-")
    piped.seek(0)
    with pytest.raises(ConfigError, match="not UTF-8"):
        Lines().read("> ")
