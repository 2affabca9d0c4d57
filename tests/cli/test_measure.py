"""`task` and `evaluate` on a made-up benchmark and tiny models."""

import json
import re
import shutil
from pathlib import Path

import pytest
from acting import printed, refused, rows_of, sets, write_rows
from benchmark import write_sib200

from mlx_hybrid.cli.output import command
from mlx_hybrid.evaluation.results import read_results

pytestmark = pytest.mark.slow


@pytest.fixture
def copy(tmp_path) -> Path:
    return write_sib200(tmp_path / "copy")


@pytest.fixture(scope="module")
def task_folder(run, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("task")
    copy = write_sib200(folder / "copy")
    asked = ("--languages", "en,de", "--shots", 7, "-o", folder / "sib")
    run("task", "sib200", "--from", copy, *asked, code=0)
    return folder / "sib"


@pytest.fixture(scope="module")
def measurable(run, quantised_folder, task_folder) -> Path:
    output = task_folder.parent / "trained"
    of_run = ("--model", quantised_folder, "--data", task_folder, "-o", output, "--method", "lora")
    short = sets("governance.enabled=false", "train.steps=6", "evaluate=false")
    run("finetune", *of_run, *short, code=0)
    return output


@pytest.fixture
def trained(measurable, tmp_path) -> Path:
    """A copy of the one run, to be written in."""
    return Path(shutil.copytree(measurable, tmp_path / "trained"))


def test_a_task_becomes_three_files_that_finetune_takes(run, task_folder):
    sizes = {name: len(rows_of(task_folder / f"{name}.jsonl")) for name in ("train", "valid", "test")}
    assert sizes == {"train": 14, "valid": 28, "test": 28}
    told = json.loads((task_folder / "task.json").read_text())
    assert told["splits"]["train"]["shots"] == 7
    assert told["splits"]["test"]["languages"] == ["deu_Latn", "eng_Latn"]
    part = task_folder.with_name("part")
    asked = ("--from", task_folder.with_name("copy"), "--languages", "en", "--split", "test", "-o", part)
    said = run("task", "sib200", *asked, code=0).output
    assert said.splitlines()[-1] == f"Next: mlx-hybrid evaluate last --on {part}"
    assert not (part / "train.jsonl").exists()


BAD_TASKS = {
    "sib20 --languages en": 'unknown task "sib20"; did you mean "sib200"?',
    "sib200 --languages xx": '"xx" is no language code',
    "sib200 --languages am": "not in this copy",
    "sib200 --languages en --split tests": 'did you mean "test"?',
    "sib200 --languages en --shots 99": "99 shots were asked of eng_latn",
    "adapt": "needs --languages",
    "flores --languages en,de --shots 8": "--shots 8 draws from the train split",
}


@pytest.mark.parametrize("asked", BAD_TASKS)
def test_a_task_that_cannot_be_is_one_sentence(asked, run, copy, tmp_path):
    code = 3 if "99" in asked else 2
    said = run("task", *asked.split(), "--from", copy, "-o", tmp_path / "out", code=code).stderr
    assert said.count("\n") == 1
    assert BAD_TASKS[asked] in said.lower()
    assert not (tmp_path / "out").exists()


def test_misaligned_rows_are_named_and_nothing_is_written_over(run, copy, task_folder, tmp_path):
    asked = ("task", "sib200", "--from", copy, "--languages", "en,de", "-o")
    refused(run(*asked, task_folder), 2, "exists already")
    path = copy / "sib200" / "deu_Latn" / "test.tsv"
    path.write_text("\n".join(path.read_text().splitlines()[:-1]) + "\n")
    refused(run(*asked, tmp_path / "out"), 3, "misaligned at 1 rows, the first being sib200-213")


def test_a_run_is_measured_beside_its_base_on_its_own_test_files(run, trained):
    asked = ("--limit", 5, "--variants", "lower,nfd", "--examples")
    result = run("evaluate", trained, *asked, pages=True, code=0)
    results = read_results(trained / "evaluation" / "test-limit-5.json")
    assert results.columns == ["base", "adapted", "difference"]
    assert results.facts["records"] == 10
    change = results.get("accuracy", "difference")
    assert change.low <= change.value <= change.high
    assert {row.variant for row in results.rows if row.metric == "changed"} == {"lower", "nfd"}
    rows = rows_of(trained / "evaluation" / "test-limit-5.adapted.examples.jsonl")
    right = sum(row["right"] for row in rows) / len(rows)
    assert right == pytest.approx(results.get("accuracy", "adapted").value)
    assert sum(rows[0]["probabilities"].values()) == pytest.approx(1)
    assert results.get("bits_per_byte", "difference", variant="retention").n == 17 * 5
    assert "text outside the task" in (trained / "README.md").read_text()
    assert "adapted" in (trained / "report.html").read_text()
    assert result.stdout.rstrip().endswith(f"Next: mlx-hybrid report {trained}")
    assert "answers" in result.stderr
    again = run("evaluate", trained, *asked, "--json", code=0)
    assert "answers" not in again.stderr
    assert printed(again).rows == results.rows
    config = json.loads((trained / "adapter" / "adapter_config.json").read_text())
    assert "temperature" not in config["mlx_hybrid"]


def test_a_run_without_test_files_is_measured_on_what_it_held_back(run, finished, tmp_path):
    path = finished("hybrid").path
    result = run("evaluate", path, "--dev", "none", "--json", "-o", tmp_path, code=0)
    told, kept = printed(result), read_results(path / "evaluation" / "held-out.json")
    held = json.loads((path / "run.json").read_text())["records"]["test"]
    assert told.facts["records"] == kept.facts["records"] == held
    for metric in ("accuracy", "macro_f1", "nll", "ece"):
        for m in ("base", "adapted"):
            own, before = told.get(metric, m), kept.get(metric, m)
            assert own.n == before.n
            # the base stands alone there and under its adapter here: a sum may round otherwise
            bounds = [(row.value, row.low, row.high) for row in (own, before)]
            assert bounds[0] == pytest.approx(bounds[1], abs=1e-6)
    losses = [told.get("nll", model).value for model in ("base", "adapted")]
    assert losses[0] != pytest.approx(losses[1], abs=1e-3)
    own = run("evaluate", path, "--json", "-o", tmp_path / "own")
    assert printed(own).get("temperature", "adapted")


def test_held_back_records_of_two_kinds_are_measured_as_far_as_they_are_choices(run, finetune, tmp_path):
    answers = ("yes", "no")
    rows = [{"prompt": f"{n} up?", "completion": answers[n % 2], "label": str(n % 2)} for n in range(30)]
    rows += [{"prompt": f"say {n}", "completion": f"{n}"} for n in range(30)]
    data = write_rows(tmp_path / "rows.jsonl", rows)
    settings = sets("governance.enabled=false", "train.steps=1", "data.test_share=0.3", "evaluate=false")
    finetune("--method", "lora", *settings, data=data, code=0)
    result = run("evaluate", tmp_path / "trained", "--json", "--no-baseline", code=0)
    told = json.loads(result.stdout)
    assert told["kind"] == "classification"
    left = 18 - told["records"]
    assert left > 0
    said = f"the {told['records']} of kind classification are measured, {left} of others are not"
    assert said in result.stderr
    data.write_text(data.read_text().replace("29 up", "30 up"))
    refused(run("evaluate", tmp_path / "trained"), 3, "data changed since it was trained")


def test_an_adapter_folder_is_trained_on_from_and_a_model_anew(
    run, trained, quantised_folder, task_folder, tmp_path
):
    adapter = Path(shutil.copytree(trained / "adapter", tmp_path / "adapter"))
    based = ("--base-model", quantised_folder)
    for target, more, words in (
        (adapter, (*based, "--no-baseline"), ("--from", adapter, "--model", quantised_folder)),
        (quantised_folder, (), ("--model", quantised_folder)),
    ):
        result = run("evaluate", target, *more, "--on", task_folder, "--limit", 1, "--dev", "none", code=0)
        assert result.stdout.splitlines()[-1] == f"Next: {command('finetune', *words)}"


def test_a_model_is_measured_on_a_task(run, model_folder, copy, tmp_path):
    asked = ("--task", "sib200", "--from", copy, "--languages", "en", "--limit", 3, "--json")
    result = run("evaluate", model_folder, *asked, "-o", tmp_path / "results", code=0)
    told = json.loads(result.stdout)
    assert (told["format"], told["task"], told["records"]) == (2, "sib200", 3)
    assert told["languages"] == ["eng_Latn"]
    assert "temperature" in {row["metric"] for row in told["rows"]}
    whole = next(row for row in told["rows"] if row["metric"] == "accuracy")
    assert (whole["language"], whole["model"], whole["n"]) == ("all", "model", 3)
    assert (tmp_path / "results" / "sib200-limit-3.json").is_file()


@pytest.mark.parametrize("where", ["own", "folder"])
def test_a_development_set_can_be_left_out_or_named(where, run, trained, task_folder, tmp_path):
    on = ("--on", task_folder) if where == "folder" else ()
    valid, one = task_folder / "valid.jsonl", tmp_path / "one.jsonl"
    # right always or never, not in a seventh
    write_rows(one, [row for row in rows_of(valid) if row["label"] == "sports"])
    told = []
    for dev in ("none", "auto", valid, one):
        result = run(
            "evaluate", trained, *on, "--dev", dev, "--no-baseline", "--json", "-o", tmp_path, code=0
        )
        told.append(printed(result).get("temperature", "adapted"))
        if dev == "auto" and where == "own":  # fitted on the run's own validation records
            kept = json.loads((trained / "adapter" / "adapter_config.json").read_text())["mlx_hybrid"]
            assert kept["calibration"] == printed(result).facts["calibration"]["adapted"]
    none, auto, named, other = told
    assert none is None
    assert auto == named != other
    result = run("evaluate", trained, *on, "--dev", tmp_path / "nowhere.jsonl")
    refused(result, 2, "nowhere.jsonl: no such file")


def test_text_is_measured_in_bits_per_byte_and_what_it_cannot_use_is_refused(run, model_folder, tmp_path):
    path = write_rows(tmp_path / "texts.jsonl", [{"text": f"Text number {n}."} for n in range(4)])
    result = run("evaluate", model_folder, "--on", path, code=0)
    assert "Bits per byte" in result.output
    assert "Results are not kept" in result.stderr
    for arguments, words in (
        (("--dev", path), "--dev: 4 of its records are of the test set"),
        (("--dev", shutil.copy(path, tmp_path / "dev.jsonl")), "--dev is for choices between answers"),
        (("--variants", "nfd"), "--variants are measured on classification"),
        (("--pivot", "en"), "--pivot en: no test record is in eng_Latn; there are und."),
    ):
        refused(run("evaluate", model_folder, "--on", path, *arguments), 2, words)


def test_a_pivot_may_be_spelt_any_way(run, model_folder, copy):
    asked = (
        "--task",
        "sib200",
        "--from",
        copy,
        "--languages",
        "en,de",
        "--limit",
        3,
        "--dev",
        "none",
        "--json",
    )
    told = [printed(run("evaluate", model_folder, *asked, "--pivot", name)) for name in ("de", "deu_Latn")]
    assert told[0] == told[1]
    assert told[0].facts["pivot"] == "deu_Latn"
    assert told[0].get("accuracy_gap_to_pivot", "model")


def test_a_label_never_seen_in_training_is_one_sentence(run, finished, tmp_path):
    row = {"language": "en", "label": "sideways", "prompt": "no bread", "completion": "sideways"}
    result = run("evaluate", finished("hybrid").path, "--on", write_rows(tmp_path / "other.jsonl", [row]))
    refused(result, 3, 'label "sideways" never stood in training')


def test_a_language_has_its_options_however_it_is_spelt_and_nothing_trained_is_calibrated_on(
    run, finished, records, tmp_path
):
    trained = finished("lora").path
    rows = [
        {"language": code, "label": "up", "prompt": "no bread mill", "completion": "up"}
        for code in ("en", "eng_Latn")
    ]
    told = []
    for row in rows:
        on = write_rows(tmp_path / "other.jsonl", [row])
        done = run(
            "evaluate",
            trained,
            "--on",
            on,
            "--dev",
            "none",
            "--no-baseline",
            "--json",
            "-o",
            tmp_path,
            code=0,
        )
        told.append(printed(done).get("nll", "adapted").value)
    assert told[0] == told[1] > 0  # two options
    refused(run("evaluate", trained, "--on", on, "--dev", records), 2, "records were trained on; name others")
    copied = write_rows(tmp_path / "copied.jsonl", rows_of(records))
    measured = run(
        "evaluate", trained, "--on", copied, "--dev", "none", "--no-baseline", "-o", tmp_path, code=0
    )
    assert re.search(r"\d+ of the \d+ test records were trained on, word for word", measured.stderr)


BAD = {
    "": "Nothing to measure on",
    "--on nowhere.jsonl": "no such file or folder",
    "--task sib200 --on x": "give one",
    "--task sib2000": 'did you mean "sib200"',
    "--task sib200 --split tset": "has no split",
    "--task sib200 --dev test": "the test set itself",
    "--task sib200 --languages en --variants lowr": 'did you mean "lower"',
    "--lm-eval arc_easy --task sib200 --pivot x": "leave out --task, --pivot",
    "--lm-eval ,": "name a task",
    "--lm-eval-tasks x --on x": "a folder for --lm-eval",
    "--on x --languages en --split dev": "nothing that --split, --languages",
    "--task sib200 --languages en --max-tokens 9": "--max-tokens is for translations",
    "--task sib200 --languages en --examples": "--examples needs a folder",
    "--task sib200 --languages en --variants tatweel": "applies to none of eng_Latn",
    "--task sib200 --languages en --pivot de": "no test record is in deu_Latn; there are eng_L",
    "--task sib200 --languages en --no-baseline": "has no adapter beside it",
}


@pytest.mark.parametrize("asked", BAD)
def test_options_that_cannot_be_are_one_sentence(asked, run, model_folder, copy, monkeypatch):
    monkeypatch.setenv("MLX_HYBRID_DATA", str(copy))
    result = run("evaluate", model_folder, *asked.split())
    refused(result, 2, BAD[asked])
    assert " answers" not in result.stderr  # nothing was measured first
