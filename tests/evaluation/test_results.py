"""One row a figure: written and read back, and files of format 1 as the same rows."""

import json

import pytest

from mlx_hybrid.errors import ConfigError
from mlx_hybrid.evaluation.results import Results, Row, read_results, write_results
from mlx_hybrid.files import write_json


def interval(value: float) -> dict:
    return {"value": value, "low": value - 0.1, "high": value + 0.1, "level": 0.95, "count": 20}


def row(metric: str, value: float, model: str, n: int, language: str = "all", variant: str = "") -> Row:
    return Row(metric, language, variant, value, value - 0.1, value + 0.1, n, 20, model)


def calibration(value: float) -> dict:
    table = dict.fromkeys(("nll_nats", "brier", "ece_width"), interval(value)) | {"ece_mass": 0.5}
    return table | {"reliability": [{"low": 0.0, "count": 1}], "languages": {"swh_Latn": table}}


HEAD = {"format": 1, "version": 1, "seed": 0, "limit": 0}
SIDES = {"base": interval(0.3), "adapted": interval(0.6), "gain": interval(0.3)}
HELD_OUT = HEAD | {
    "records": 40,
    "questions": 30,
    "loss_nats_per_token": {"base": 2.5, "adapted": 1.25, "difference": interval(-1.25)},
    "accuracy": SIDES,
    "accuracy_by_language": {"swh_Latn": SIDES | {"questions": 25, "gain": interval(0.4)}},
}
MODEL = {
    "count": 90,
    "ties": 0,
    "accuracy": interval(0.5),
    "macro_f1": interval(0.4),
    "scoring": {"normalised": True},
    "languages": {"swh_Latn": {"count": 45, "accuracy": interval(0.6), "macro_f1": interval(0.7)}},
    "parity": {"mean": 0.5, "worst": 0.4, "worst_language": "sw", "intervals": {"worst": interval(0.4)}},
    "calibration": {"before": calibration(0.2), "after": calibration(0.1), "temperature": 2.0},
    "variants": {
        "lower": {
            "records": 90,
            "changed": 30,
            "drop": interval(0.05),
            "languages": {"swh_Latn": {"records": 9, "changed": 0}},
        },
        "traditional": {"of": "zho_Hans", "as": "zho_Hant", "records": 8, "drop": interval(0.1)},
    },
}
CHANGE = {
    "accuracy": interval(0.2),
    "test": "sign flips of groups",
    "p": 0.01,
    "languages": {"swh_Latn": {"accuracy": interval(0.1), "test": "McNemar", "p": 0.5}},
}
CHOICES = HEAD | {
    "task": "sib200",
    "kind": "classification",
    "records": 90,
    "languages": ["swh_Latn"],
    "labels": ["a"],
    "models": {"base": MODEL, "adapted": MODEL},
    "differences": {"adapted - base": CHANGE},
}
BALANCE = {"mean": interval(2.0), "mean_size": interval(3.0), "languages": {"swh_Latn": interval(2.0)}}
DIRECTION = {"count": 10, "empty": 1, "chrf": interval(30.0), "spbleu": interval(9.0), "chrf_signature": "s"}
TRANSLATED = {
    "count": 20,
    "mean_chrf": interval(31.0),
    "mean_spbleu": 9.5,
    "directions": {"eng_Latn>swh_Latn": DIRECTION},
    "parity_from_pivot": {"mean": 30.0, "intervals": {"mean": interval(30.0), "worst": interval(29.0)}},
    "balance": {"intervals": BALANCE},
}
TRANSLATIONS = HEAD | {
    "task": "flores",
    "kind": "translation",
    "records": 20,
    "models": {"model": TRANSLATED},
}
READ = {
    "count": 4,
    "bits_per_byte": interval(1.5),
    "parity": {"mean": 1.5, "worst": 1.6},
    "languages": {"swh_Latn": {"count": 2, "bytes": 90, "bits_per_byte": interval(1.4)}},
}
TEXTS = HEAD | {"task": "adapt", "kind": "text", "records": 4, "models": {"base": READ}, "differences": {}}
HARNESS = {
    "format": 1,
    "harness": "lm-eval 0.4.13",
    "lm_eval": {"base": {"t": {"acc,none": 0.5, "acc_stderr,none": 0.1}}},
}


def test_rows_are_written_one_a_line_and_read_back(tmp_path):
    rows = (row("accuracy", 0.5, "base", 9), Row("temperature", value=2.0, n=9, model="base"))
    results = Results({"task": "sib200", "languages": ["swh_Latn"], "notes": []}, rows)
    write_results(tmp_path / "new" / "a.json", results)
    assert read_results(tmp_path / "new" / "a.json") == results
    text = (tmp_path / "new" / "a.json").read_text()
    assert sum('"metric"' in line for line in text.splitlines()) == 2
    assert json.loads(text) == results.tree()


def test_held_out_scores_of_format_1_become_rows(tmp_path):
    write_json(tmp_path / "held-out.json", HELD_OUT)
    results = read_results(tmp_path / "held-out.json")
    assert results.facts["task"] == "held-out records"
    assert results.models == ["base", "adapted"]
    assert results.get("loss", "adapted") == Row("loss", value=1.25, n=40, model="adapted")
    assert results.get("loss", "difference") == row("loss", -1.25, "difference", 40)
    assert results.get("accuracy", "base") == row("accuracy", 0.3, "base", 30)
    assert results.get("accuracy", "difference", "swh_Latn") == row(
        "accuracy", 0.4, "difference", 25, "swh_Latn"
    )


def test_choices_of_format_1_become_rows(tmp_path):
    write_json(tmp_path / "sib200.json", CHOICES)
    results = read_results(tmp_path / "sib200.json")
    assert (results.facts["seed"], results.facts["labels"]) == (0, ["a"])
    assert results.facts["scoring"]["adapted"] == {"normalised": True}
    assert results.facts["reliability"]["base"] == [{"low": 0.0, "count": 1}]
    assert results.columns == ["base", "adapted", "difference"]
    assert results.languages("accuracy") == ["swh_Latn"]
    for own in (
        row("accuracy", 0.5, "base", 90),
        row("macro_f1", 0.7, "adapted", 45, "swh_Latn"),
        row("nll", 0.2, "base", 90),
        row("nll_scaled", 0.1, "base", 90),
        row("ece", 0.2, "base", 45, "swh_Latn"),
        row("accuracy_worst", 0.4, "base", 90),
        row("drop", 0.05, "base", 30, variant="lower"),
        row("drop", 0.1, "base", 8, variant="traditional"),
        row("accuracy", 0.2, "difference", 20),
        Row("ece_mass", value=0.5, n=90, model="base"),
        Row("accuracy_mean", value=0.5, n=90, model="base"),
        Row("temperature", value=2.0, model="base"),
        Row("sign_flip_p", value=0.01, model="difference"),
        Row("mcnemar_p", "swh_Latn", value=0.5, model="difference"),
        Row("changed", "swh_Latn", "lower", 0, n=9, model="base"),
    ):
        assert results.get(own.metric, own.model, own.language, own.variant) == own


def test_translations_of_format_1_become_rows(tmp_path):
    write_json(tmp_path / "flores.json", TRANSLATIONS)
    results = read_results(tmp_path / "flores.json")
    assert results.get("chrf", "model").value == 31.0
    assert results.get("spbleu", "model") == Row("spbleu", value=9.5, n=20)
    assert results.get("chrf", "model", "eng_Latn>swh_Latn") == row(
        "chrf", 30.0, "model", 10, "eng_Latn>swh_Latn"
    )
    assert results.get("empty", "model", "eng_Latn>swh_Latn").value == 1
    assert results.get("chrf_out", "model").value == 30.0
    assert results.get("chrf_out_worst", "model").value == 29.0
    assert results.get("balance", "model", "swh_Latn").value == 2.0
    assert results.get("balance_size", "model").value == 3.0


def test_texts_and_harness_tasks_of_format_1_become_rows(tmp_path):
    write_json(tmp_path / "adapt.json", TEXTS)
    results = read_results(tmp_path / "adapt.json")
    assert results.get("bits_per_byte", "base", "swh_Latn") == row(
        "bits_per_byte", 1.4, "base", 2, "swh_Latn"
    )
    assert results.get("bits_per_byte_worst", "base").value == 1.6
    write_json(tmp_path / "lm-eval-t.json", HARNESS)
    own = read_results(tmp_path / "lm-eval-t.json").get("t acc", "base")
    assert (own.value, own.low, own.high) == pytest.approx((0.5, 0.304, 0.696))


@pytest.mark.parametrize("tree", [{}, [], {"format": 2}, {"models": {}}, {"models": {}, "kind": "other"}])
def test_other_files_are_refused(tree, tmp_path):
    write_json(tmp_path / "other.json", tree)
    with pytest.raises(ConfigError, match=r"other.json: not a file of results"):
        read_results(tmp_path / "other.json")
