"""Bad input: one sentence, the right exit code, no traceback, nothing half written."""

import io
import json

import pytest
from acting import refused, sets

from mlx_hybrid.chat.terminal import Lines
from mlx_hybrid.cli.generate import read_prompt
from mlx_hybrid.config import build_config
from mlx_hybrid.errors import ConfigError
from mlx_hybrid.run import create_run

GOOD = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
EMPTY = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": " "}]}
LONG = {"prompt": "a", "completion": "b " * 3000}
LONG_TURNS = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b " * 3000}]}
UNGOVERNED = sets("governance.enabled=false")


@pytest.fixture
def bad(finetune, tmp_path):
    """Call `finetune`, and check that it is refused and leaves nothing."""
    output = tmp_path / "runs" / "bad"

    def call(code, words, *more, **how):
        done = finetune(*more, output=output, **how)
        refused(done, code, *words)
        assert done.stderr.count("Error:") == 1
        assert not output.exists()
        assert not list(output.parent.glob(".*"))

    return call


BAD = {
    "--set train.learning_rat=1": ['unknown key "train.learning_rat"', 'did you mean "learning_rate"'],
    "--set method=hybird": ['unknown method "hybird"', 'did you mean "hybrid"'],
    "--set train.epochs": ["write key=value"],
    "--set adapter.low_rank.rank=-1": ["adapter.low_rank.rank must be at least 1"],
    "--method hra --set adapter.rotation.reflections=7": ["come in pairs", "use 8"],
    "--method boft --set adapter.rotation.factors=7": ["do not divide the 128 inputs", "block_size 8 with factors 4"],
    "--method lora --set adapter.unitary=[o_proj]": ["needs an orthogonal branch"],
    "--method boft --set adapter.rotation.reflections=32": [
        "adapter.rotation.reflections would do nothing", "this is butterfly",
    ],
    "--method hra --set train.weight_decay=1e-3": ["adapter.low_rank.rank adds"],
    "--set train.patience=3 --set data.valid_share=0": ["train.patience is 3", "data.valid_share"],
    "--set adapter.layers=9": ["the model has 2 layers"],
    "nothing-like-it": ['No recipe "nothing-like-it"', "quickstart"],
    "missing.yaml": ["missing.yaml: no such file"],
}  # fmt: skip


@pytest.mark.parametrize("asked", BAD)
def test_settings(asked, bad):
    bad(2, BAD[asked], *asked.split())


ODD_LINES = ["{broken", '{"text": "a line of text"}', json.dumps(EMPTY), '{"nothing": 1}', "[1, 2]"]


@pytest.mark.parametrize("line", ODD_LINES)
def test_records(line, bad, tmp_path):
    path = tmp_path / "records.jsonl"
    path.write_text(f"{json.dumps(GOOD)}\n{line}\n")
    bad(3, ["records.jsonl:2"], *UNGOVERNED, data=path)


@pytest.mark.parametrize(
    ("name", "text", "code", "words", "more"),
    [
        (
            "records.jsonl", f"{json.dumps(LONG)}\n" * 3, 3,
            ["records.jsonl:1", "train.max_tokens", "drop or truncate"], [*UNGOVERNED, *sets("data.test_share=0")],
        ),
        ("none.jsonl", "", 3, ["none.jsonl: no record in there"], []),
        ("broken.jsonl", "{a\n{b\n", 2, ["broken.jsonl:1: not JSON", "files of records are .jsonl"], []),
        ("array.json", '[\n{"text": "a"},\n', 2, ["array.json:1: not one whole JSON array"], []),
        ("table.xlsx", "PK", 2, ["table.xlsx: is a zip archive or a spreadsheet", "CSV"], []),
        ("pairs.csv", "question,answer\nhi,you\n", 2, ["csv:2", "--map question=prompt,answer=completion"], []),
        ("dpo.jsonl", '{"prompt": "a", "chosen": "b", "rejected": "c"}', 2, ["preference pairs"], []),
        ("absent.jsonl", None, 2, ["absent.jsonl"], []),
    ],
)  # fmt: skip
def test_a_file_without_records_to_train_on_says_what_it_holds(name, text, code, words, more, bad, tmp_path):
    if text is not None:
        (tmp_path / name).write_text(text)
    bad(code, words, *more, data=tmp_path / name)


def test_records_dropped_for_length_are_told(finetune, records, settings, tmp_path):
    path = tmp_path / "records.jsonl"
    path.write_text(records.read_text() + json.dumps(LONG_TURNS) + "\n")
    more = sets("train.too_long=drop", "train.steps=1", "evaluate=false")
    done = finetune(*settings, *more, data=path)
    assert "Over train.max_tokens (1024) and dropped: 1 records." in done.stderr


@pytest.mark.parametrize(
    ("model", "words"), [("", []), ("nowhere", []), ("./no/where", []), ("nobody/nothing", ["offline"])]
)
def test_what_is_no_model_is_refused(model, words, bad, finetune):
    bad(2, [model, *words], model=model)
    assert words or "Records:" not in finetune(model=model).stderr  # before the records are read


def test_a_block_size_is_refused_before_the_base_is_scored(finetune, settings):
    done = finetune(*settings, "--method", "hybrid-boft", *sets("adapter.rotation.factors=7"))
    refused(done, 2)
    assert "Scoring" not in done.stderr


def test_a_run_whose_base_is_elsewhere_says_how_to_name_it(run, tmp_path):
    made = create_run(build_config({"model": "models/mine"}, "test"), tmp_path / "first")
    made.update(status="finished", base={"id": "mine"})
    made.adapter.mkdir()
    said = "its base, models/mine, is not there from here; say with --base-model"
    refused(run("generate", made.path, "Hello"), 2, said)


def test_an_output_that_cannot_be_written_and_one_that_exists(finetune, tmp_path):
    (tmp_path / "file").write_text("")
    refused(finetune(output=tmp_path / "file" / "run"), 2, "cannot be written")
    output = tmp_path / "run"
    output.mkdir()
    (output / "precious").write_text("kept")
    refused(finetune(output=output), 2, "exists already")
    assert [path.name for path in output.iterdir()] == ["precious"]


def test_an_unknown_run_names_the_nearest(run, tmp_path, monkeypatch):
    monkeypatch.setenv("MLX_HYBRID_RUNS", str(tmp_path))
    create_run(build_config({"name": "first"}, "test"), None).update(status="finished")
    refused(run("runs", "frist"), 2, 'did you mean "first"')
    assert json.loads(run("runs", "last", "--json").output)["status"] == "finished"


@pytest.mark.parametrize("errors", ["strict", "surrogateescape"])
def test_a_prompt_that_is_no_text_is_refused(errors, monkeypatch):
    piped = io.TextIOWrapper(io.BytesIO(b"\xff\xfe bad\n"), encoding="utf-8", errors=errors)
    monkeypatch.setattr("sys.stdin", piped)
    with pytest.raises(ConfigError, match="not UTF-8"):
        read_prompt("-")
    piped.seek(0)
    with pytest.raises(ConfigError, match="not UTF-8"):
        Lines().read("> ")
