import json
import math
import shutil
from dataclasses import replace

import numpy as np
import pytest
from toys import byte_tokenizer, log_likelihoods, wrapped

from mlx_hybrid.config import Config, DataConfig
from mlx_hybrid.errors import ConfigError, DataError
from mlx_hybrid.evaluation.answers import answer, collect, example_rows
from mlx_hybrid.evaluation.benchmarks import questions as question_files
from mlx_hybrid.evaluation.evaluate import evaluate, held_out_sets
from mlx_hybrid.evaluation.figures import accuracy_rows
from mlx_hybrid.evaluation.sets import EvaluationSet, evaluation_set, from_fields, limited, respelt, varied
from mlx_hybrid.records.record import Record, split_records
from mlx_hybrid.study.data import evaluation_sets

ANSWERS = {"deu_Latn": {"good": "gut", "bad": "schlecht"}, "swh_Latn": {"good": "nzuri", "bad": "mbaya"}}


CHOICE = {"prompt": "q", "completion": "a", "label": "a", "options": {"a": "a", "b": "b"}}


def labelled(count: int = 24, **more) -> list[dict]:
    """Two languages, parallel by group."""
    texts = {"deu_Latn": "Über {} schöne Bücher", "swh_Latn": "Vitabu {} vizuri"}
    rows = []
    for language, answers in ANSWERS.items():
        for n in range(count):
            label = ("good", "bad")[(n * 7 + 3) % 5 % 2]
            turns = [
                {"role": "user", "content": f"Wie? {texts[language].format(n)}: "},
                {"role": "assistant", "content": answers[label]},
            ]
            place = {"id": f"{n}-{language}", "group": n, "language": language}
            rows.append({**place, "label": label, "messages": turns, **more})
    return rows


def made(rows: list[dict], **more) -> EvaluationSet:
    return evaluation_set(from_fields(rows, "t"), **more)


@pytest.fixture
def test_set():
    return made(labelled())


@pytest.fixture
def dev_set():
    return made(labelled(10))


def loop_accuracy(model, tokenizer, records: list[dict]) -> float:
    """Each answer run alone and summed in NumPy, with the end of the turn."""
    right = 0
    for record in records:
        prompt = tokenizer.encode("<s>" + record["messages"][0]["content"], add_special_tokens=False)
        scores = {}
        for label, own in ANSWERS[record["language"]].items():
            tokens = prompt + tokenizer.encode(own + "<|im_end|>", add_special_tokens=False)
            scores[label] = log_likelihoods(model, tokens)[len(prompt) - 1 :].sum()
        right += max(scores, key=scores.get) == record["label"]
    return right / len(records)


def test_accuracy_is_that_of_a_plain_loop(model, tokenizer, test_set):
    result = evaluate({"base": model}, tokenizer, test_set)
    assert result.get("accuracy", "base").value == loop_accuracy(model, tokenizer, labelled())
    tree = result.tree()
    assert (tree["format"], tree["kind"], tree["records"]) == (2, "classification", 48)
    assert result.get("nll", "base")
    assert not result.get("nll_scaled", "base")


def test_languages_are_kept_apart():
    rows = [CHOICE | {"language": language} for language in ("sw", "sw", "ha", "ha")]
    told = accuracy_rows(made(rows), np.eye(2)[[0, 0, 1, 0]], seed=0)
    own = [(row.language, row.n, row.value) for row in told if row.metric == "accuracy"]
    assert own == [("all", 4, 0.75), ("hau_Latn", 2, 0.5), ("swh_Latn", 2, 1.0)]


def test_ties_go_to_the_first_option_and_are_counted():
    rows = [CHOICE | {"label": label} for label in "aba"]
    told = accuracy_rows(made(rows), np.array([[1.0, 1.0], [0.0, 2.0], [3.0, 3.0]]), seed=0)
    assert [row.value for row in told if row.metric in ("accuracy", "ties")] == [1, 1, 2]


def test_two_models_with_dev_and_variants(model, other_model, tokenizer, test_set, dev_set):
    result = evaluate(
        {"base": model, "adapted": lambda: other_model},
        tokenizer,
        test_set,
        dev=dev_set,
        variants=["umlaut-spelling", "no-diacritics"],
        pivot="deu_Latn",
    )
    json.dumps(result.tree(), allow_nan=False)
    base, adapted, gain = (result.get("accuracy", name) for name in ("base", "adapted", "difference"))
    assert gain.value == pytest.approx(adapted.value - base.value)
    assert result.languages("accuracy") == list(ANSWERS)
    assert all(result.get("accuracy", "difference", language) for language in ANSWERS)
    for metric in ("accuracy", "macro_f1", "ece"):
        own = result.get(metric, "base")
        assert (own.n, own.groups) == (48, 24)
    assert result.get("nll_scaled", "base").value <= result.get("nll", "base").value + 0.2
    changed = {v: result.get("changed", "base", variant=v) for v in ("umlaut-spelling", "no-diacritics")}
    assert [(own.n, own.value) for own in changed.values()] == [(24, 24), (48, 24)]
    assert result.get("drop", "base", "swh_Latn", "no-diacritics") is None
    drop = result.get("drop", "base", "deu_Latn", "no-diacritics")
    assert result.get("drop", "base", variant="no-diacritics").value == drop.value
    german, swahili = (result.get("accuracy", "base", language).value for language in ANSWERS)
    assert result.get("accuracy_gap_to_pivot", "base").value == pytest.approx(german - swahili)


def test_a_model_against_itself_gains_nothing(model, tokenizer, test_set):
    result = evaluate({"a": model, "b": model}, tokenizer, test_set)
    gain = result.get("accuracy", "difference")
    assert (gain.low, gain.high) == (0, 0)


def test_it_goes_on_where_it_stopped(model, tokenizer, test_set, tmp_path, monkeypatch):
    from mlx_hybrid.evaluation import answers

    monkeypatch.setattr(answers, "BLOCK", 10)
    whole = evaluate({"base": model}, tokenizer, test_set, directory=tmp_path)
    path = tmp_path / "base.answers.jsonl"
    lines = path.read_text().splitlines()
    assert len(lines) == 49
    path.write_text("\n".join(lines[:20]) + "\n" + lines[20][:15])  # killed while it wrote
    heard = []
    again = evaluate(
        {"base": model}, tokenizer, test_set, directory=tmp_path, progress=lambda *event: heard.append(event)
    )
    assert heard[0] == ("base", 29, 48)
    assert again.get("accuracy", "base") == whole.get("accuracy", "base")
    assert len(path.read_text().splitlines()) == 49

    def fail():
        raise AssertionError("a finished evaluation loads no model")

    assert evaluate({"base": fail}, tokenizer, test_set, directory=tmp_path) == again
    with pytest.raises(ConfigError, match="other weights or to other examples"):
        evaluate({"base": model}, tokenizer, limited(test_set, 3, 0), directory=tmp_path)
    with pytest.raises(ConfigError, match="other weights or to other examples"):
        evaluate({"base": model}, tokenizer, test_set, directory=tmp_path, identities={"base": "new"})


def test_a_limit_takes_the_same_groups_in_every_language(test_set):
    few = limited(test_set, 5, seed=1)
    groups = {
        language: {g for g, own in zip(few.groups, few.languages) if own == language} for language in ANSWERS
    }
    assert groups["deu_Latn"] == groups["swh_Latn"]
    assert len(groups["deu_Latn"]) == 5
    assert limited(test_set, 5, seed=2).groups != few.groups


def test_languages_have_one_spelling():
    rows = [{"text": "x", "language": code} for code in ("sw", "swh_Latn", "zh-Hant-TW", "??")] + [
        {"text": "x"}
    ]
    languages = made(rows).languages
    assert languages == ["swh_Latn", "swh_Latn", "zho_Hant", "??", "und"]


def test_text_is_measured_in_bits_per_byte(model, other_model, tokenizer):
    texts = ["habari ya asubuhi", "guten Morgen", "abab"]
    rows = [{"text": text, "language": "swh_Latn" if n else "deu_Latn"} for n, text in enumerate(texts)]
    result = evaluate({"base": model, "other": other_model}, tokenizer, made(rows), pivot=None)
    total = 0.0
    for text in texts:
        tokens = [257, *tokenizer.encode(text, add_special_tokens=False)]
        total -= log_likelihoods(model, tokens).sum()
    expected = total / math.log(2) / sum(len(text.encode()) for text in texts)
    assert result.get("bits_per_byte", "base").value == pytest.approx(expected, abs=1e-5)
    gain = result.get("bits_per_byte", "difference").value
    assert gain == pytest.approx(result.get("bits_per_byte", "other").value - expected, abs=1e-5)
    languages = [result.get("bits_per_byte", "base", name).value for name in ("deu_Latn", "swh_Latn")]
    assert result.get("bits_per_byte_worst", "base").value == pytest.approx(max(languages))


@pytest.mark.parametrize("text", ["habari", "été", "中文"])
def test_nothing_is_forced_before_a_text(text, model, tokenizer, tmp_path):
    """A first token that follows nothing counts neither as nats nor as bytes; here every token is a byte."""
    bare = wrapped(byte_tokenizer(None))
    examples = made([{"text": text}, {"text": "abab"}])
    row, _ = answer(model, bare, examples, generate=None)
    tokens = bare.encode(text, add_special_tokens=False)
    assert row["nats"] == pytest.approx(-log_likelihoods(model, tokens).sum(), abs=1e-4)
    assert row["bytes"] == len(text.encode()) - 1
    begun, _ = answer(model, tokenizer, examples, generate=None)
    assert begun["bytes"] == len(text.encode())
    collect(model, bare, {"test": examples}, tmp_path / "answers.jsonl")
    kept = example_rows(examples, tmp_path / "answers.jsonl")
    assert kept[0]["bytes"] == row["bytes"]


def test_a_text_of_which_nothing_is_predicted_does_not_count(model):
    bare = wrapped(byte_tokenizer(None))
    texts = [{"text": text, "language": "en"} for text in ("a", "abab", "some more")]
    whole, rest = (
        evaluate({"base": model}, bare, made(own)).get("bits_per_byte", "base") for own in (texts, texts[1:])
    )
    assert whole == rest
    alone = made([*texts, {"text": "x", "language": "de"}])
    with pytest.raises(DataError, match="Nothing is predicted of the records in deu_Latn"):
        evaluate({"base": model}, bare, alone)


def test_translations_are_those_a_callable_gives(model, tokenizer):
    rows = [
        {"prompt": f"Translate: {text}", "completion": text.upper(), "language": b, "source_language": a}
        for a, b in (("eng_Latn", "swh_Latn"), ("swh_Latn", "eng_Latn"))
        for text in ("one small house", "two red birds")
    ]
    prompts = []

    def generate(model, tokens):
        prompts.extend(tokenizer.decode(own) for own in tokens)
        return ["ONE SMALL HOUSE", "TWO RED BIRDS", "one", "TWO"]

    examples = made(rows)
    result = evaluate({"base": model}, tokenizer, examples, generate=generate)
    assert prompts[0] == "<s>Translate: one small house"
    assert result.get("chrf", "base", "eng_Latn>swh_Latn").value == pytest.approx(100)
    assert result.get("balance", "base").value > 50
    assert result.get("empty", "base", "swh_Latn>eng_Latn").value == 0
    with pytest.raises(ConfigError, match="need a generator"):
        evaluate({"base": model}, tokenizer, examples)


def test_variants_rewrite_fields_by_the_task_and_other_records_whole():
    from mlx_hybrid.evaluation.benchmarks.rows import Row
    from mlx_hybrid.evaluation.benchmarks.tasks import load_task, record_of

    task = load_task("sib200")
    fields = record_of(task, Row("k", "k", {"text": "Äpfel"}, "health"), "deu_Latn")
    prompt = respelt(Record(fields, "t", 1), "deu_Latn", "upper", 0).fields["messages"][0]["content"]
    assert prompt == fields["messages"][0]["content"].replace("Äpfel", "ÄPFEL")
    rows = [CHOICE | {"prompt": "Äpfel?", "language": language} for language in ("de", "th")]
    (changed,) = varied(made(rows), "umlaut-spelling", 0).records  # there is none of Thai
    assert [turn["content"] for turn in changed.turns()] == ["Aepfel?", "a"]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "No records"),
        ([*labelled(2), {"text": "x"}], "different kinds.*: classification, text; write each"),
        ([labelled(9)[0] | {"label": "good"}, *labelled(9)], "is answered"),
        (labelled(1)[:1], "1 options"),
        (labelled(2, options={"good": "a", "fine": "b"}), 'label "bad" is not among'),
    ],
)
def test_records_that_cannot_be_evaluated_are_named(rows, message):
    with pytest.raises(DataError, match=message):
        made(rows)


def test_a_label_never_seen_in_training_is_named():
    known = from_fields([row for row in labelled() if row["label"] == "good"], "train")
    with pytest.raises(DataError, match='label "bad" never stood in training'):
        evaluation_set(from_fields(labelled(), "test"), known)


def test_unknown_variants_and_variants_of_texts_are_named(test_set):
    with pytest.raises(ConfigError, match='did you mean "keyboard"'):
        question_files.chosen_variants(["keybord"], test_set)
    with pytest.raises(ConfigError, match="classification"):
        question_files.chosen_variants(["lower"], made([{"text": "x"}]))


def by_premise(**more) -> list[dict]:
    """Four premises with three hypotheses each, none of which says `group`."""
    rows = [{**row, "premise": n % 4, **more} for n, row in enumerate(labelled(6))]
    return [{key: value for key, value in row.items() if key != "group"} for row in rows]


def partition(groups: list[str]) -> list[int]:
    """Which records share a group, whatever the groups are called."""
    return [groups.index(group) for group in groups]


def test_records_without_a_group_are_each_their_own():
    rows = labelled(3)
    for row in rows[:4]:
        row["group"] = None
    rows[4]["group"] = "None"
    assert partition(made(rows).groups) == [0, 1, 2, 3, 4, 5]
    assert partition(made(labelled(3), group="premise").groups) == [0, 1, 2, 0, 1, 2]  # a key that none has


@pytest.mark.parametrize("test_file", [True, False], ids=["a file of the run's data", "a file of --on"])
def test_groups_of_intervals_are_those_of_the_split(test_file, tokenizer, tmp_path):
    path = tmp_path / "own.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in by_premise()))
    data = DataConfig(paths=(str(path),), test=(str(path),), group="premise")
    if test_file:
        data = replace(data, paths=(str(tmp_path / "train.jsonl"),))
        shutil.copy(path, tmp_path / "train.jsonl")
        asked = question_files.from_run(Config(model="m", data=data), "none", [])
    else:
        asked = question_files.from_path(path, "none", [], "premise")
    wanted = [n % 4 for n in range(12)]
    assert partition(asked.test.groups) == wanted
    records = asked.test.records
    everything = {record.where for record in records}
    asked_of_run, trained, _ = held_out_sets(
        records, records, group="premise", max_tokens=99, measured=everything
    )
    assert partition(asked_of_run.groups) == partition(trained.groups) == wanted
    held = split_records(records, [], [], replace(data, test_share=0.5), seed=0).test
    assert (
        sorted({r.fields["premise"] for r in held} & {r.fields["premise"] for r in records if r not in held})
        == []
    )
    assert accuracy_rows(asked.test, np.eye(12, 2), seed=0)[0].groups == 4


def test_a_comparison_groups_by_the_key_of_its_data(tmp_path):
    for name in ("train", "valid", "test"):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in by_premise()))
    for part in evaluation_sets(tmp_path, "premise"):
        assert partition(part.groups) == [n % 4 for n in range(12)]
