"""Test and development sets that would be no test: records trained on, and a temperature fitted on the answers."""

import json
from pathlib import Path

import pytest

from mlx_hybrid.config import Config, DataConfig
from mlx_hybrid.errors import ConfigError, DataError
from mlx_hybrid.evaluation.benchmarks.questions import (
    chosen_pivot,
    chosen_variants,
    from_path,
    from_task,
    training_records,
)
from mlx_hybrid.evaluation.benchmarks.tasks import write_task
from mlx_hybrid.run import Run

TOPICS = ("sports", "health", "travel", "politics", "science/technology", "entertainment", "geography")


def choices(count: int = 6) -> list[dict]:
    """Questions that state their options, as benchmarks do."""
    options = {"a": "yes", "b": "no"}
    return [
        {"prompt": f"{n}?", "completion": options["ab"[n % 2]], "label": "ab"[n % 2], "options": options}
        for n in range(count)
    ]


def labelled(count: int = 6) -> list[dict]:
    return [{key: value for key, value in row.items() if key != "options"} for row in choices(count)]


def translations(count: int = 6) -> list[dict]:
    return [{"prompt": f"{n}", "completion": f"{n}", "language": "de"} for n in range(count)]


def texts(count: int = 6) -> list[dict]:
    return [{"text": f"Line {n}.", "language": "de"} for n in range(count)]


def write(path: Path, rows: list[dict], end: str = "") -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + end)
    return path


def trained_on(*paths: Path) -> list:
    return training_records(Config(model="m", data=DataConfig(paths=tuple(map(str, paths)))))


@pytest.mark.parametrize(
    "rows", [choices(), labelled(), translations(), texts()], ids=lambda rows: list(rows[0])[-1]
)
@pytest.mark.parametrize("end", ["", "no record\n"], ids=["whole", "with a fault"])
def test_records_that_were_trained_on_are_no_test(rows, end, tmp_path):
    train, other = write(tmp_path / "train.jsonl", rows, end), write(tmp_path / "other.jsonl", rows)
    asked = from_path(other, "none", trained_on(train))  # others may say the same
    assert len(asked.test.records) == 6
    train.write_text(train.read_text().removesuffix(end))
    with pytest.raises(DataError, match="6 of the 6 records to evaluate on were trained on"):
        from_path(train, "none", trained_on(train))


def test_what_a_runs_governance_set_aside_was_not_trained_on(tmp_path):
    raw, run = write(tmp_path / "raw.jsonl", texts()), Run(tmp_path / "run")
    (run.path / "data").mkdir(parents=True)
    kept = [row | {"_gov": {"where": f"raw.jsonl:{n}"}} for n, row in enumerate(texts(), 1) if n != 2]
    write(run.path / "data" / "kept.jsonl", kept, "no record\n")
    config = Config(model="m", data=DataConfig(paths=(str(raw),)))
    assert [record.line for record in training_records(config)] == [1, 2, 3, 4, 5, 6]
    assert [record.line for record in training_records(config, run)] == [1, 3, 4, 5, 6]


@pytest.mark.parametrize("rows", [choices(), labelled()], ids=["options", "labels"])
def test_the_development_set_shares_no_record_with_the_test_set(rows, tmp_path):
    test, dev = write(tmp_path / "test.jsonl", rows), write(tmp_path / "dev.jsonl", rows)
    with pytest.raises(ConfigError, match="--dev: 6 of its records are of the test set"):
        from_path(test, str(tmp_path / "." / "test.jsonl"), [])
    assert len(from_path(test, str(dev), []).dev.records) == 6


def test_all_variants_are_those_that_some_language_has(tmp_path):
    rows = [row | {"language": ("de", "tr")[n % 2]} for n, row in enumerate(choices())]
    test = from_path(write(tmp_path / "test.jsonl", rows), "none", []).test
    chosen = chosen_variants(["all"], test)
    assert {"nfd", "lower", "umlaut-spelling", "dotless-i"} <= set(chosen)
    assert not {"tatweel", "no-tonos", "full-width"} & set(chosen)


def test_a_pivot_of_translations_may_be_read_from_alone(tmp_path):
    rows = [row | {"source_language": "eng_Latn"} for row in translations()]
    test = from_path(write(tmp_path / "test.jsonl", rows), "none", []).test
    assert chosen_pivot("en", test) == "eng_Latn"
    with pytest.raises(ConfigError, match="there are deu_Latn, eng_Latn"):
        chosen_pivot("fr", test)


def test_a_benchmarks_training_split_is_no_test_of_what_was_trained_on_it(tmp_path):
    for split, start in (("train", 0), ("dev", 100), ("test", 200)):
        path = tmp_path / "copy" / "sib200" / "eng_Latn" / f"{split}.tsv"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(f"{start + n}\t{TOPICS[n % 7]}\tSentence {n}.\n" for n in range(14)))
    choice = {"languages": ("en",), "folder": tmp_path / "copy"}
    write_task("sib200", tmp_path / "sib", shots=7, **choice)
    known = trained_on(tmp_path / "sib")
    with pytest.raises(DataError, match="7 of the 14 records to evaluate on were trained on"):
        from_task("sib200", "auto", known, split="train", **choice)
    asked = from_task("sib200", "auto", known, **choice)
    assert (len(asked.test.records), len(asked.dev.records)) == (14, 14)
