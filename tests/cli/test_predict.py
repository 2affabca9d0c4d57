"""`predict`: labels with calibrated probabilities, from files as people have them, gone on with after a stop."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from acting import refused, rows_of, write_rows
from toys import log_likelihoods

import mlx_hybrid
from mlx_hybrid.errors import ConfigError
from mlx_hybrid.evaluation.metrics.calibration import read_calibration
from mlx_hybrid.jobs.predict import chosen_from, seen_options
from mlx_hybrid.records.record import Record

PROMPTS = ["no river stone", "so cloud bread", "no train music", "so garden winter"] * 20


@pytest.fixture(scope="module")
def trained(finished, tmp_path_factory) -> Path:
    return Path(shutil.copytree(finished("lora").path, tmp_path_factory.mktemp("predict") / "run"))


def test_records_are_labelled_by_the_options_the_run_was_trained_on(run, finished, tmp_path):
    trained = Path(shutil.copytree(finished("lora").path, tmp_path / "run"))
    file = write_rows(
        tmp_path / "new.jsonl", [{"id": n, "prompt": text} for n, text in enumerate(PROMPTS[:5])]
    )
    done = run("predict", trained, file, code=0)
    rows = rows_of(done.stdout)
    assert [(row["line"], row["id"]) for row in rows] == [(n + 1, n) for n in range(5)]
    assert "Calibrating on" in done.stderr
    kept = read_calibration(trained / "adapter")
    model, tokenizer = mlx_hybrid.load(trained)
    for row, text in zip(rows, PROMPTS):
        assert set(row["probabilities"]) == {"up", "down"}
        assert row["probability"] == max(row["probabilities"].values())
        asked = tokenizer.ask([{"role": "user", "content": text}])
        logits = []
        for option in row["probabilities"]:
            whole = tokenizer.render(
                [{"role": "user", "content": text}, {"role": "assistant", "content": option}], tools=None
            )
            tokens = tokenizer.encode(whole, add_special_tokens=False)
            end = max(n for n, token in enumerate(tokens) if token in tokenizer.eos_token_ids) + 1
            nats = log_likelihoods(model, tokens[:end])[len(asked) - 1 :].sum()
            logits.append(nats / kept.temperature["all"] + kept.bias["all"][option])
        shares = np.exp(logits - np.logaddexp.reduce(logits))
        assert list(row["probabilities"].values()) == pytest.approx(shares, abs=2e-3)
    again = run("predict", trained, file, code=0)
    assert "Calibrating on" not in again.stderr
    assert again.stdout == done.stdout
    plain = rows_of(run("predict", trained, file, "--dev", "none", code=0).stdout)
    assert not any(row["calibrated"] for row in plain)


OTHER_BATCHES = 1e-5
"""A score does not move by more with what else is in its batch, and a call that goes on begins another one."""


def test_a_stopped_call_goes_on(run, trained, tmp_path):
    file, output = (
        write_rows(tmp_path / "new.jsonl", [{"prompt": text} for text in PROMPTS]),
        tmp_path / "out.jsonl",
    )
    run("predict", trained, file, "-o", output, code=0)
    whole = output.read_text()
    assert len(rows_of(whole)) == len(PROMPTS)
    kept = whole.splitlines(keepends=True)
    output.write_text("".join(kept[:70]) + kept[70][:9])
    run("predict", trained, file, "-o", output, code=0)
    again = output.read_text()
    assert again.splitlines()[:70] == whole.splitlines()[:70]
    for one, other in zip(rows_of(again), rows_of(whole), strict=True):
        assert (one["line"], one["label"]) == (other["line"], other["label"])
        assert one["probabilities"] == pytest.approx(other["probabilities"], abs=OTHER_BATCHES)
    other = write_rows(tmp_path / "other.jsonl", [{"prompt": text} for text in PROMPTS[:3]])
    said = "rows of other records, options or weights"
    refused(run("predict", trained, other, "-o", output), 2, said)
    edited = write_rows(file, [{"prompt": f"{text} more"} for text in PROMPTS])
    refused(run("predict", trained, edited, "-o", output), 2, said)
    write_rows(file, [{"prompt": text} for text in PROMPTS])
    refused(run("predict", trained, file, "-o", output, "--dev", "none"), 2, said)
    output.write_text("notes\n")
    refused(run("predict", trained, other, "-o", output), 2, "holds other lines than predict writes")


@pytest.mark.parametrize(
    ("name", "text", "more"),
    [
        ("a.csv", "question,id\nno river stone,7\n", ("--map", "question=prompt")),
        ("a.jsonl", '{"messages": [{"role": "user", "content": "no river stone"}], "id": 7}\n', ()),
        ("a.jsonl", '{"text": "no river stone", "id": 7, "options": ["up", "down"]}\n', ()),
        ("a.jsonl", '{"instruction": "no river", "input": "stone", "id": 7}\n', ("--options", "down,up")),
        ("a.json", '[{"conversations": [{"from": "human", "value": "no river stone"}], "id": 7}]', ()),
    ],
    ids=["csv", "messages", "text", "alpaca", "sharegpt"],
)
def test_files_as_people_have_them(name, text, more, run, trained, tmp_path):
    (tmp_path / name).write_text(text)
    (row,) = rows_of(run("predict", trained, tmp_path / name, *more, code=0).stdout)
    assert str(row["id"]) == "7"
    assert set(row["probabilities"]) == {"up", "down"}
    assert row["calibrated"]


def test_from_python_and_with_other_options(trained, quantised_folder):
    row, other = mlx_hybrid.predict(trained, ["no river stone", {"prompt": "so what"}])
    assert row["label"] in ("up", "down")
    assert sum(other["probabilities"].values()) == pytest.approx(1, abs=1e-5)
    (row,) = mlx_hybrid.predict(quantised_folder, ["no river"], options=["left", "right"])
    assert not row["calibrated"]


def test_a_calibration_is_for_the_answers_that_it_was_fitted_to(trained):
    swapped, odd = {"up": "down", "down": "up"}, ["up", "sideways"]
    asked = [{"prompt": "no river stone"} | ({"options": own} if own else {}) for own in (None, swapped, odd)]
    rows = list(mlx_hybrid.predict(trained, asked))
    assert [row["calibrated"] for row in rows] == [True, False, False]
    (alone,) = mlx_hybrid.predict(trained, asked[:1])
    assert alone["probabilities"] == pytest.approx(rows[0]["probabilities"], abs=OTHER_BATCHES)


def trained_on(*rows: tuple[str, str | None, str, str]) -> dict:
    """What was seen of records (language, task, label, answer)."""
    fields = ({"language": l, "task": t, "label": n, "prompt": "?", "completion": a} for l, t, n, a in rows)
    return seen_options([Record(own, "train.jsonl", line) for line, own in enumerate(fields, 1)])


TASKS = (
    ("en", "topic", "food", "food"),
    ("en", "topic", "sport", "sport"),
    ("en", "mood", "good", "good"),
    ("en", "mood", "bad", "bad"),
)
TONGUES = (
    ("en", None, "yes", "yes"),
    ("en", None, "no", "no"),
    ("sw", None, "yes", "ndiyo"),
    ("sw", None, "no", "hapana"),
)


@pytest.mark.parametrize(
    ("seen", "asked", "answers"),
    [
        (TASKS, {"language": "en", "task": "mood"}, ["good", "bad"]),
        (TASKS, {"language": "en"}, "was trained on the labels of mood, topic; name one under `task`"),
        (TASKS, {"task": "colour"}, "was trained on no labels of the task colour"),
        (TONGUES, {"language": "eng_Latn"}, ["yes", "no"]),
        (TONGUES, {"language": "sw-KE", "task": "any"}, ["ndiyo", "hapana"]),
        (TONGUES, {"language": "de"}, "other answers in each language; name one under `language`"),
        (TONGUES[:2], {"language": "de"}, ["yes", "no"]),
        ((*TONGUES[:2], ("en", None, "no", "nope")), {"language": "en"}, "other answers in each record"),
        (TONGUES, {"language": "de", "options": ["ja", "nein"]}, ["ja", "nein"]),
    ],
)  # fmt: skip
def test_options_are_those_of_the_record_s_own_task_and_language(seen, asked, answers):
    record = Record({"prompt": "?", "completion": "?", **asked}, "new.jsonl", 7)
    if isinstance(answers, list):
        assert list(chosen_from(record, (), trained_on(*seen), "run").values()) == answers
        return
    with pytest.raises(ConfigError, match=f"new.jsonl:7: .*{answers}"):
        chosen_from(record, (), trained_on(*seen), "run")


@pytest.mark.parametrize(
    ("text", "more", "code", "words"),
    [
        ("", (), 3, "No records to label"),
        ('{"question": "x"}\n', (), 2, "--map question=prompt"),
        ('{"prompt": "x"}\nnot json\n', (), 3, "a.jsonl:2: not JSON"),
        ('{"prompt": "x", "options": ["a"]}\n', (), 3, "1 options; a choice is between 2"),
        ('{"prompt": "x", "options": 3}\n', (), 3, "options must be a list of answers"),
        ('{"prompt": "x"}\n', ("--options", "one"), 3, "1 options"),
        ('{"prompt": "x"}\n{"prompt": ""}\n', (), 3, "a.jsonl:2: the prompt is empty"),
        ('{"prompt": "x \\ud800 y"}\n', (), 3, "a.jsonl:1: holds half a pair, U+D800"),
        ('{"prompt": "x"}\n', ("--dev", "nowhere.jsonl"), 2, "nowhere.jsonl: no such file"),
        ('{"prompt": "x"}\n', ("-o", "nowhere/out.jsonl"), 2, "nowhere: no such folder"),
    ],
    ids=[
        "empty",
        "keys",
        "json",
        "one option",
        "options",
        "one given",
        "blank",
        "half",
        "dev",
        "output",
    ],
)
def test_what_cannot_be_labelled_is_one_sentence(text, more, code, words, run, trained, tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_text(text)
    done = run("predict", trained, file, *more)
    refused(done, code, words)
    assert done.stdout == ""


def test_a_prompt_beyond_the_context_is_refused(run, trained, tmp_path):
    file = write_rows(tmp_path / "a.jsonl", [{"prompt": "river " * 600}])
    done = run("predict", trained, file, "--dev", "none", code=3)
    assert "a.jsonl:1: has " in done.stderr
    assert "and the model's context is 512; shorten or leave it out" in done.stderr
    assert done.stdout == ""


def test_what_was_trained_on_is_not_calibrated_on(run, trained, records, tmp_path):
    file = write_rows(tmp_path / "a.jsonl", [{"prompt": "x"}])
    refused(run("predict", trained, file, "--dev", records), 2, "records were trained on; name others")


def test_a_model_without_labels_asks_for_options(run, quantised_folder, tmp_path):
    file = write_rows(tmp_path / "a.jsonl", [{"prompt": "x"}])
    refused(run("predict", quantised_folder, file), 2, "was trained on no labels; give --options a,b,c")
