"""A base that moved: named anew it serves as before; gone, or with other weights, it is said with the way out."""

import shutil
from pathlib import Path

import pytest
from acting import plain, refused, rows_of, sets, write_rows
from commanding import command
from gguf_files import write_gguf
from mlx.core import load, save_safetensors

from mlx_hybrid.config import load_config
from mlx_hybrid.evaluation.results import read_results
from mlx_hybrid.files import read_json, write_json
from mlx_hybrid.jobs import finetune as job

MODEL, MOVED = "models/tiny", "moved"
"""The base's name as the runs have it, a folder in the form of a Hub id, and where it is now."""
UNMEASURED = sets("evaluate=false")
NEW = [{"prompt": text} for text in ("no river stone", "so cloud bread", "no garden winter")]
OTHERS = [
    {"prompt": f"{word} lamp {n}", "completion": label, "label": label}
    for n in range(20)
    for word, label in (("no", "up"), ("so", "down"))
]


@pytest.fixture(scope="module")
def trained(quantised_folder, records, lora, tmp_path_factory) -> Path:
    """A folder with records, a run that is finished, what it said of them, one cut short, and their base, moved."""
    home = tmp_path_factory.mktemp("home")
    shutil.copytree(quantised_folder, home / MODEL)
    shutil.copy(records, home / "records.jsonl")
    write_rows(home / "new.jsonl", NEW)
    write_rows(home / "others.jsonl", OTHERS)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        data = ("--model", MODEL, "--data", "records.jsonl", *lora, *UNMEASURED)
        command("finetune", *data, "-o", "run", code=0)
        config, stops = load_config(Path("run/config.yaml")), iter([False, False, True])
        for _ in job.finetune(config, output=Path("cut"), stop=lambda: next(stops)):
            pass
        shutil.copytree("run", "copy")
        command("predict", "copy", "new.jsonl", "-o", "before.jsonl", code=0)
        command("evaluate", "copy", "-o", "before", code=0)
    (home / MODEL).rename(home / MOVED)
    return home


@pytest.fixture
def home(trained, tmp_path, monkeypatch) -> Path:
    """A copy of it to stand and to write in."""
    home = Path(shutil.copytree(trained, tmp_path / "home"))
    for name in ("run", "cut"):
        write_json(home / name / "place.json", {"format": 1, "folder": str(home)})
    monkeypatch.chdir(home)
    return home


def renamed_in(run: Path, name: str) -> None:
    """Let the run's config name its base so."""
    config = (run / "config.yaml").read_text()
    assert config.count(MODEL) == 1
    (run / "config.yaml").write_text(config.replace(MODEL, name))


def test_probabilities_are_calibrated_as_before(run, home):
    done = run("predict", "run", "new.jsonl", "--base-model", MOVED, code=0)
    rows, before = rows_of(done.stdout), rows_of(home / "before.jsonl")
    assert all(row["calibrated"] for row in before)
    assert rows == before


def test_what_was_held_back_is_measured_as_before(run, home):
    run("evaluate", "run", "--base-model", MOVED, "-o", "after", code=0)
    before, after = (read_results(home / name / "test.json") for name in ("before", "after"))
    assert before.get("temperature", "adapted")
    assert after.rows == before.rows


def test_other_records_are_calibrated_on_the_validation_records(run, home):
    asked = ("evaluate", "run", "--on", "others.jsonl", "--base-model", MOVED, "--no-baseline")
    run(*asked, "-o", "after", code=0)
    assert read_results(home / "after" / "others.json").get("temperature", "adapted")
    rows = (home / "records.jsonl").read_text()
    (home / "records.jsonl").write_text(rows.replace("music", "piano"))
    done = run(*asked, "-o", "changed", code=0)
    told = "Not calibrated, since the run's validation records are not to be had (The run's data changed"
    assert told in done.stderr
    assert "--on" not in done.stderr
    assert not [
        row for row in read_results(home / "changed" / "others.json").rows if row.metric == "temperature"
    ]


def test_without_its_records_the_probabilities_are_the_models_own_for_that_cause(run, home):
    (home / "records.jsonl").unlink()
    done = run("predict", "run", "new.jsonl", "--base-model", MOVED, "--options", "up,down", code=0)
    assert (
        "since the run's validation records are not to be had (data.paths: records.jsonl is not there)"
        in done.stderr
    )
    assert "--dev names others" in done.stderr
    assert not any(row["calibrated"] for row in rows_of(done.stdout))


@pytest.mark.parametrize(
    ("words", "way"),
    [
        (("export", "run", "--to", "peft", "-o", "out"), "say with --model where it is"),
        (("fuse", "run", "-o", "out"), "say with --model where it is"),
        (("finetune", "--from", "run", "--data", "others.jsonl"), "say with --model where it is"),
        (("evaluate", "run"), "say with --base-model where it is"),
        (("predict", "run", "new.jsonl"), "say with --base-model where it is"),
        (("generate", "run", "no river"), "say with --base-model where it is"),
        (("finetune", "--resume", "cut"), "set model.name in its config.yaml to where it is"),
        (("finetune", "--resume", "cut", "--dry-run"), "set model.name in its config.yaml to where it is"),
    ],
    ids=lambda value: "-".join(value[:2]) if isinstance(value, tuple) else "",
)
def test_a_base_that_is_gone_is_said_with_the_way_out(words, way, run, home):
    name = "cut" if "cut" in words else "run"
    refused(run(*words), 2, f"{name}: its base, {MODEL}, is not there from here; {way}.")
    assert not (home / "out").exists()


def test_a_base_that_is_named_is_taken(run, home, lora):
    run("fuse", "run", "--model", MOVED, "-o", "fused", code=0)
    onward = ("--from", "run", "--data", "others.jsonl", "-o", "second", *plain(lora[:-2]), *UNMEASURED)
    run("finetune", *onward, "--model", MOVED, "--steps", "1")
    assert read_json(home / "second" / "run.json")["status"] == "finished"


def test_another_base_is_the_cause_and_not_the_data(run, home, base_folder):
    done = run("evaluate", "run", "--base-model", base_folder)
    refused(
        done, 2, f"run: was trained on {MODEL.split('/')[1]}, whose weights are not those of {base_folder}"
    )


def test_a_run_goes_on_where_its_config_names_the_base_anew(run, home):
    renamed_in(home / "cut", MOVED)
    run("finetune", "--resume", "cut", code=0)
    cut, whole = (home / name / "adapter" / "adapters.safetensors" for name in ("cut", "run"))
    assert cut.read_bytes() == whole.read_bytes()
    run("generate", "cut", "no river", "--max-tokens", "2", code=0)


def test_a_run_does_not_go_on_on_other_weights(run, home):
    """They have the same names and shapes; a run of a version that noted no weights does go on."""
    renamed_in(home / "cut", MOVED)
    weights = home / MOVED / "model.safetensors"
    save_safetensors(str(weights), {name: leaf[::-1] for name, leaf in load(str(weights)).items()})
    before = sorted((home / "cut").rglob("*"))
    done = run("finetune", "--resume", "cut")
    refused(done, 2, "cut: was begun on tiny, whose weights are not those of moved; name the right base")
    assert sorted((home / "cut").rglob("*")) == before
    info = read_json(home / "cut" / "run.json")
    del info["base"]
    write_json(home / "cut" / "run.json", info)
    assert run("finetune", "--resume", "cut").exit_code in (0, 3)


def test_a_run_does_not_go_on_on_another_quantisation(run, home, lora):
    kinds = {"blk.0.ffn_down.weight": "Q6_K"}
    write_gguf(home / "tiny.gguf", kind="Q4_K", kinds=kinds)
    data = {"model.name": "tiny.gguf", "method": "lora", "data.paths": ["records.jsonl"]}
    config, stops = load_config(None, (*lora[1:-2:2], *UNMEASURED[1::2]), data), iter([False, True])
    for _ in job.finetune(config, output=Path("packed"), stop=lambda: next(stops)):
        pass
    write_gguf(home / "tiny.gguf", kind="Q4_K", kinds={**kinds, "blk.1.ffn_down.weight": "Q8_0"})
    refused(run("finetune", "--resume", "packed"), 2, "packed: was begun on tiny.gguf, whose weights are not")
