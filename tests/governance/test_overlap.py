"""Evaluation texts inside training records, by brute force and with planted leaks."""

import random
from itertools import product

import pytest
from governance.conftest import SENTENCES, chat_record, govern_records, text_record, write_jsonl

from mlx_hybrid.config import GovernanceConfig
from mlx_hybrid.governance.checks.grams import EvaluationIndex, normalise


def containment(text: str, record: str) -> float:
    text, record = normalise([text, record])
    own = {text[i : i + 13] for i in range(len(text) - 12)}
    return len(own & {record[i : i + 13] for i in range(len(record) - 12)}) / len(own)


def test_shares_are_those_of_brute_force():
    rng = random.Random(5)
    held = list(SENTENCES.values())
    index = EvaluationIndex([text_record(text, line) for line, text in enumerate(held)], 0.7)
    for text in held:
        for kept in range(10, len(text), 17):
            record = "So it was. " + text[:kept] + " " + "".join(rng.sample(text, 20))
            (found,) = index.find([record])
            share = max(containment(other, record) for other in held)
            assert (found is not None) == (share >= 0.7)
            if found:
                assert f"{share:.2f}" in found.detail


@pytest.mark.parametrize("code", SENTENCES)
def test_planted_leaks(code):
    text = SENTENCES[code]
    index = EvaluationIndex([text_record(text, 4)], 0.7)
    inside = f"{SENTENCES['eng_Latn'][:30]} {text} {SENTENCES['deu_Latn'][:30]}"
    assert all(d.match == "data.jsonl:4" for d in index.find([text, inside, text.upper()]))
    others = [other for other in SENTENCES.values() if other != text]
    assert index.find(others) == [None] * len(others)


def test_short_texts_must_be_the_whole_record():
    index = EvaluationIndex([text_record("Good morning!", 1)], 0.7)
    assert index.find(["good morning", "Good morning to all of you here"])[0].reason == "eval_leak"
    assert index.find(["Good morning to all of you here"]) == [None]


def test_the_template_of_a_task_is_no_leak():
    question = "Does the first sentence imply the second one? Answer with yes, no or maybe. Sentence: {}"
    halves = ("Lon", "Ber", "Mad", "Osl", "Nai", "Del"), ("burg", "stad", "ville", "pur")
    records = [chat_record(question.format(f"{a}{b}"), "yes") for a, b in product(*halves)]
    index = EvaluationIndex(records, 0.7)
    assert index.find([question.format("something else altogether, which no test holds")]) == [None]


def test_nothing_is_removed_from_the_evaluation_file(tmp_path):
    path = write_jsonl(tmp_path / "eval.jsonl", [{"text": SENTENCES["fra_Latn"]}])
    before = path.read_bytes()
    config = GovernanceConfig(against=(str(path),), max_reject_share=1.0)
    result = govern_records(
        [text_record(text, i, language=code) for i, (code, text) in enumerate(SENTENCES.items())], config
    )
    assert [(r.language, r.match) for r in result.rejected] == [("fra_Latn", f"{path}:1")]
    assert path.read_bytes() == before


def test_the_template_of_a_small_evaluation_set_is_no_leak():
    template = "Read the sentence with care, and then answer in one word what it is about, nothing more: {}"
    texts = list(SENTENCES.values())[:10]
    words = ["apple", "river", "stone", "cloud"]
    index = EvaluationIndex([text_record(template.format(w), n) for n, w in enumerate(words)] * 2, 0.7)
    assert index.find([template.format("table"), template.format("chair")]) == [None, None]
    held = EvaluationIndex([text_record(template.format(t), n) for n, t in enumerate(texts)], 0.7)
    leaked, clean = held.find([template.format(texts[3]), template.format("a short word")])
    assert leaked is not None
    assert clean is None
