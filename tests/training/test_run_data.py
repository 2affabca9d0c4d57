"""The records of a run: what governance is asked to keep out of training."""

import json
from pathlib import Path

import pytest

from mlx_hybrid.config import load_config
from mlx_hybrid.errors import ConfigError
from mlx_hybrid.records.files import find_sources
from mlx_hybrid.records.record import load_records
from mlx_hybrid.training.data import check_held_back, prepare

QUESTION = "Which topic is this about: science, travel, politics, sports or health?"
TEXTS = {
    "en": [
        "The committee put off its vote on the new harbour until the budget is settled in spring.",
        "Runners from nine countries crossed the desert in four days without a single retirement.",
        "A small telescope on the roof was enough to follow the comet through most of January.",
        "The night train to the coast is booked out for weeks once the schools have closed.",
        "Doctors there advise a walk after each meal rather than another box of tablets.",
        "Farmers along the lower river have begun to plant rice that stands salt water.",
    ],
    "de": [
        "Der Ausschuss hat seine Abstimmung über den neuen Hafen bis zum Haushalt im Frühjahr verschoben."
    ],
}


def chat(text: str, language: str = "en", label: str = "politics") -> dict:
    turns = [{"role": "user", "content": f"{QUESTION}\n{text}"}, {"role": "assistant", "content": label}]
    return {"messages": turns, "language": language, "label": label}


@pytest.fixture
def folder(tmp_path) -> Path:
    """Train holds the first text of test and of valid, a translation of the former, and two texts of its own."""
    english, german = TEXTS["en"], TEXTS["de"]
    parts = {
        "train": [
            chat(english[0]),
            chat(german[0], "de"),
            chat(english[1]),
            chat(english[2]),
            chat(english[3]),
        ],
        "valid": [chat(english[1]), chat(english[4])],
        "test": [chat(english[0]), chat(english[5])],
    }
    for name, rows in parts.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def prepared(folder: Path, *overrides: str, keep: Path | None = None):
    free = "governance.max_reject_share=1"  # two of four records of a language go
    config = load_config(None, (free, *overrides), {"data.paths": [str(folder)]})
    return prepare(config, find_sources(config.data), keep)


def set_aside(folder: Path) -> list[dict]:
    """What governance noted on the records that it set aside."""
    text = (folder / "rejected.jsonl").read_text(encoding="utf-8")
    return [json.loads(line)["_gov"] for line in text.splitlines()]


def lines(records) -> list[int]:
    return [record.line for record in records]


def test_records_that_hold_a_held_out_text_do_not_train_and_their_translations_and_templates_do(
    folder, tmp_path
):
    data = prepared(folder, keep=tmp_path / "data")
    assert lines(data.split.train) == [2, 4, 5]
    assert data.counts["reasons"] == {"eval_leak": 2}
    matches = [note["match"] for note in set_aside(tmp_path / "data")]
    assert [Path(match.rpartition(":")[0]).name for match in matches] == ["test.jsonl", "valid.jsonl"]
    assert (len(data.split.valid), len(data.split.test)) == (2, 2)


def test_files_named_apart_are_kept_out_too_and_so_is_what_was_named_before(folder, tmp_path):
    more = tmp_path / "more"
    more.mkdir()
    (more / "own.jsonl").write_text(json.dumps(chat(TEXTS["en"][3])) + "\n")
    names = {part: folder / f"{part}.jsonl" for part in ("train", "valid", "test")}
    config = load_config(
        None,
        ("governance.max_reject_share=1", f"governance.against={more / 'own.jsonl'}"),
        {"data.paths": [str(names["train"])], "data.test": [str(names["test"])]},
    )
    prepare(config, find_sources(config.data), tmp_path / "data")
    gone = {note["where"] for note in set_aside(tmp_path / "data")}
    assert gone == {f"{names['train']}:1", f"{names['train']}:5"}


@pytest.mark.parametrize(
    "override", ["governance.enabled=false", "governance.skip=overlap", "governance.only=exact"]
)
def test_without_the_stage_nothing_is_removed(folder, override):
    assert lines(prepared(folder, override).split.train) == [1, 2, 3, 4, 5]


def test_patience_without_a_record_to_validate_on_is_refused(folder):
    config = load_config(
        None,
        ("train.patience=3", "data.valid_share=0", "data.test_share=0", "governance.enabled=false"),
        {"data.paths": [str(folder / "train.jsonl")]},
    )
    data = prepare(config, find_sources(config.data))
    with pytest.raises(ConfigError, match=r"train.patience is 3, .* set data.valid_share or data.valid"):
        check_held_back(config, data.split)
    check_held_back(load_config(None, ("train.patience=3",)), prepared(folder).split)


def test_files_of_two_kinds_train_together_under_their_own_names(folder, tmp_path):
    (tmp_path / "more").mkdir()
    plain = tmp_path / "more" / "plain.jsonl"
    plain.write_text(json.dumps({"text": TEXTS["en"][2], "language": "en"}) + "\n")
    names = [str(folder / "train.jsonl"), str(plain)]
    config = load_config(None, ("data.valid_share=0", "data.test_share=0"), {"data.paths": names})
    data = prepare(config, find_sources(config.data))
    assert [record.where for record in data.split.train][-2:] == [f"{names[0]}:5", f"{plain}:1"]


def test_governed_records_of_two_kinds_train_together(folder, tmp_path):
    """A `kept.jsonl` holds what was kept of several files, each of a kind of its own."""
    from mlx_hybrid.governance.govern import govern_files

    plain = tmp_path / "plain.jsonl"
    plain.write_text(json.dumps({"text": TEXTS["en"][2], "language": "en"}) + "\n")
    config = load_config(
        None, ("data.valid_share=0", "data.test_share=0"), {"data.paths": [str(tmp_path / "out")]}
    )
    kept = govern_files([folder / "train.jsonl", plain], tmp_path / "out", config.governance)
    assert {item.kind for item in kept.kept()} == {"messages", "text"}
    data = prepare(config, find_sources(config.data))
    assert data.counts == {"kept": len(list(kept.kept())), "rejected": 0, "reasons": {}}
    assert len(load_records(tmp_path / "out" / "kept.jsonl")) == data.counts["kept"]
