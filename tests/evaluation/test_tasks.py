import json
import sys
from pathlib import Path

import pytest

from mlx_hybrid.errors import ConfigError, DataError
from mlx_hybrid.evaluation.benchmarks.rows import read_rows
from mlx_hybrid.evaluation.benchmarks.tasks import build_records, load_task, task_files
from mlx_hybrid.records.languages import parse_language

XNLI_LABELS = ("entailment", "neutral", "contradiction")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Forty premises of XNLI dev, one of test, twenty rows of SIB-200, lines of NTREX and FLORES."""
    for code in ("en", "sw"):
        for file, premises in (("dev", 40), ("test", 1)):
            texts = [
                {"premise": f"P{i // 3} {code}", "hypothesis": f"H{i} {code}"} for i in range(3 * premises)
            ]
            rows = [{"id": i, **own, "label": XNLI_LABELS[i % 3]} for i, own in enumerate(texts)]
            write(tmp_path / f"xnli/{file}.{code}.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    for code in ("eng_Latn", "swh_Latn", "hau_Latn"):
        rows = [f"{i}\t{('sports', 'health')[i % 2]}\tText {i} {code}" for i in range(20)]
        write(tmp_path / f"sib200/{code}/train.tsv", "index_id\tcategory\ttext\n" + "\n".join(rows) + "\n")
        write(tmp_path / f"ntrex128/{code}.txt", "".join(f"News {i} {code}\n" for i in range(1, 701)))
        write(tmp_path / f"flores200/dev/{code}.txt", "".join(f"Line {i} {code}\n" for i in range(1, 31)))
    return tmp_path


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def test_every_task_file_is_whole():
    assert set(task_files()) == {"xnli", "sib200", "flores", "ntrex", "adapt"}
    for name in task_files():
        task = load_task(name)
        assert task.version >= 1
        for language in task.languages:
            assert str(parse_language(language)) == language
        for language in task.prompts:
            options = task.options(language)
            assert all(isinstance(option, str) and option.strip() == option for option in options.values())
            assert len(set(options.values())) == len(task.labels)


def test_a_classification_record(folder):
    records = build_records("xnli", "train", ["sw"], folder=folder)
    record = next(record for record in records if record["label"] == "contradiction")
    prompt, answer = record["messages"]
    assert answer == {"role": "assistant", "content": "hapana"}
    assert record["fields"]["premise"] in prompt["content"]
    assert "ndiyo, labda, hapana" in prompt["content"]
    assert record["language"] == "swh_Latn"
    assert record["options"] == {"entailment": "ndiyo", "neutral": "labda", "contradiction": "hapana"}


def test_xnli_train_and_dev_share_no_premise_and_languages_share_the_split(folder):
    groups = {
        (split, code): {record["group"] for record in build_records("xnli", split, [code], folder=folder)}
        for split in ("train", "dev")
        for code in ("en", "sw")
    }
    assert not groups["train", "en"] & groups["dev", "en"]
    assert len(groups["train", "en"]) == 32
    assert len(groups["dev", "en"]) == 8
    assert all(groups[split, "en"] == groups[split, "sw"] for split in ("train", "dev"))
    assert len(build_records("xnli", "test", ["en"], folder=folder)) == 3


def test_shots_are_drawn_by_seed_language_and_premise(folder):
    draw = lambda *codes, shots=32, seed=1: [  # noqa: E731
        r
        for r in build_records("xnli", "train", codes, folder=folder, shots=shots, seed=seed)
        if r["language"] == "eng_Latn"
    ]
    assert draw("en") == draw("en", "sw") == draw("sw", "en")
    assert draw("en") != draw("en", seed=2)
    assert len(draw("en")) == 32
    assert len({record["group"] for record in draw("en")}) == 11
    assert draw("en", shots=64)[:32] == draw("en")
    with pytest.raises(DataError, match="1000 shots"):
        draw("en", shots=1000)


def test_translation_goes_both_ways(folder):
    records = build_records("flores", "test", ["en", "sw"], folder=folder)
    assert len(records) == 60
    into, out = records[0], records[30]
    assert (into["source_language"], into["language"]) == ("eng_Latn", "swh_Latn")
    assert into["messages"][0]["content"] == "Translate into Swahili: Line 1 eng_Latn"
    assert into["messages"][1]["content"] == "Line 1 swh_Latn"
    assert out["messages"][0]["content"] == "Translate into English: Line 1 swh_Latn"
    assert into["group"] == out["group"]
    with pytest.raises(ConfigError, match="other than its pivot"):
        build_records("flores", "test", ["en"], folder=folder)


def test_adapt_trains_on_news_after_the_base_and_tests_on_flores(folder):
    train = build_records("adapt", "train", ["ha"], folder=folder)
    assert (train[0]["text"], len(train)) == ("News 501 hau_Latn", 103)
    assert len(build_records("adapt", "dev", ["ha"], folder=folder)) == 97
    assert build_records("adapt", "test", ["ha"], folder=folder)[0]["text"] == "Line 1 hau_Latn"
    with pytest.raises(ConfigError, match="needs --languages"):
        build_records("adapt", "train", folder=folder)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("xnly", "test", ["en"]), 'did you mean "xnli"'),
        (("xnli", "validation", ["en"]), "known: dev, test, train"),
        (("xnli", "test", ["yo"]), "has no yo"),
        (("xnli", "test", ["english?"]), "is no language code"),
        (("xnli", "test", ["fr"]), "cannot be read"),
        (("sib200", "train", ["fr"]), r"with a train split here: eng_Latn, hau_Latn, swh_Latn"),
        (("flores", "train", ["sw"]), "has no split"),
    ],
)
def test_what_is_not_there_is_named(folder, arguments, message):
    with pytest.raises(ConfigError, match=message):
        build_records(*arguments, folder=folder)


def test_an_unknown_label_is_named(folder):
    write(folder / "sib200/eng_Latn/train.tsv", "index_id\tcategory\ttext\n1\tsport\tA text\n")
    with pytest.raises(DataError, match='unknown label "sport"; did you mean "sports"'):
        build_records("sib200", "train", ["en"], folder=folder)


@pytest.mark.parametrize("row", ["21\tsports\tmore", "3\tsports\tText 3"])
def test_misaligned_languages_are_named(folder, row):
    path = folder / "sib200/swh_Latn/train.tsv"
    lines = path.read_text().splitlines()
    write(path, "\n".join([*lines[:4], row, *lines[5:]]) + "\n")
    with pytest.raises(DataError, match="swh_Latn and eng_Latn are misaligned"):
        build_records("sib200", "train", ["en", "sw"], folder=folder)


@pytest.mark.parametrize(
    ("path", "text", "message"),
    [
        (
            "xnli/test.en.jsonl",
            '{"id": 0}\n',
            "test.en.jsonl:1: empty, or not a row of xnli \\(id, label, premise, hypothesis\\)",
        ),
        ("xnli/test.en.jsonl", "not json\n", "test.en.jsonl:1"),
        ("sib200/eng_Latn/train.tsv", "1\tsports\n", "train.tsv:1: empty, or not a row of sib200"),
        ("flores200/dev/eng_Latn.txt", "a\n\nb\n", "eng_Latn.txt:2: empty"),
    ],
)
def test_broken_rows_are_named_by_file_and_line(folder, path, text, message):
    write(folder / path, text)
    task = {"xnli": "xnli", "sib200": "sib200", "flores200": "flores"}[path.split("/")[0]]
    split, languages = "train" if task == "sib200" else "test", ["en", "sw"][: 1 + (task == "flores")]
    with pytest.raises(DataError, match=message):
        build_records(task, split, languages, folder=folder)


def test_a_premise_that_leaves_its_group_is_named(folder):
    path = folder / "xnli/test.en.jsonl"
    write(path, path.read_text().replace("P0 en", "Another", 1))
    with pytest.raises(DataError, match="not that of its group"):
        read_rows("xnli", "test", ["eng_Latn"], folder)


def test_the_hub_is_asked_for_the_originals_only(folder, monkeypatch):
    import huggingface_hub

    asked = []

    def download(repo: str, name: str, repo_type: str, endpoint: str | None) -> str:
        asked.append((repo, name, repo_type))
        return str(folder / f"sib200/eng_Latn/train{Path(name).suffix}")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    assert len(build_records("sib200", "train", ["en"])) == 20
    assert asked == [("Davlan/sib200", "data/eng_Latn/train.tsv", "dataset")]
    with pytest.raises(ConfigError, match=r"has flores200/dev/<code>\.txt with --from"):
        build_records("flores", "test", ["sw"])
    (folder / "sib200/eng_Latn/train.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ConfigError, match="pip install pyarrow"):
        build_records("xnli", "test", ["en"])


def test_a_hub_out_of_reach_is_one_sentence(monkeypatch, tmp_path):
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HOME", str(tmp_path / "cache"))
    with pytest.raises(ConfigError) as error:
        build_records("sib200", "train", ["en"])
    assert str(error.value) == (
        "Davlan/sib200: data/eng_Latn/train.tsv is not to be had from the Hub (offline, and it is not on this "
        "machine); name a folder that has it with --from."
    )


@pytest.mark.data
def test_the_benchmarks_themselves_are_aligned(data):
    assert len(build_records("xnli", "dev", folder=data)) == 15 * 498
    assert len(build_records("xnli", "train", ["en", "zh"], folder=data)) == 2 * 1992
    assert len(build_records("sib200", "train", folder=data)) == 22 * 701
    assert len(build_records("flores", "test", ["en", "sw", "yo"], folder=data)) == 4 * 997
    assert len(build_records("ntrex", "train", ["en", "ha"], folder=data, shots=100)) == 200
    assert len(build_records("adapt", "train", ["yo"], folder=data)) == 1400
