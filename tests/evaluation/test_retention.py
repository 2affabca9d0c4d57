"""What is left of the rest: bits per byte of text outside the task."""

import json
import math

import pytest
from toys import log_likelihoods

from mlx_hybrid.errors import ConfigError
from mlx_hybrid.evaluation.benchmarks.questions import RETAINED, retention_set, untrained
from mlx_hybrid.evaluation.evaluate import evaluate
from mlx_hybrid.evaluation.sets import evaluation_set, from_fields
from mlx_hybrid.report.result_tables import result_tables

CHOICE = {"prompt": "q", "completion": "a", "label": "a", "options": {"a": "a", "b": "b"}, "language": "de"}


def test_our_own_texts_are_small_and_of_many_kinds():
    own = retention_set("auto")
    assert RETAINED.stat().st_size <= 30_000
    assert len(set(own.languages) - {"code", "math"}) >= 12
    assert {"code", "math"} <= set(own.languages)
    assert {own.languages.count(language) for language in set(own.languages)} == {8}
    assert len({record.fields["text"] for record in own.records}) == len(own.records)


def test_bits_are_those_of_a_plain_loop_and_untrained_languages_stand_apart(model, other_model, tokenizer):
    texts = {"de": ["guten Morgen", "ja"], "sw": ["habari"], "math": ["1 + 1 = 2"]}
    rows = [{"text": text, "language": code} for code, own in texts.items() for text in own]
    kept, known = evaluation_set(from_fields(rows, "kept")), from_fields([CHOICE], "train")
    test = evaluation_set(from_fields([CHOICE, CHOICE | {"group": 2}], "test"))
    apart = untrained(kept, known)
    assert apart == {"swh_Latn", "math"}
    models = {"base": model, "adapted": other_model}
    results = evaluate(models, tokenizer, test, retention=kept, untrained=apart)

    def bits(net, wanted: list[str]) -> float:
        tokens = [[257, *tokenizer.encode(text, add_special_tokens=False)] for text in wanted]
        nats = -sum(log_likelihoods(net, own).sum() for own in tokens)
        return nats / math.log(2) / sum(len(text.encode()) for text in wanted)

    every = [text for own in texts.values() for text in own]
    for variant, wanted in (("retention", every), ("retention-untrained", ["habari", "1 + 1 = 2"])):
        before, after, change = (
            results.get("bits_per_byte", name, variant=variant) for name in ("base", "adapted", "difference")
        )
        assert before.value == pytest.approx(bits(model, wanted), abs=1e-4)
        assert change.value == pytest.approx(after.value - before.value, abs=1e-6)
    assert results.get("bits_per_byte", "base", "deu_Latn", "retention").n == 2
    assert results.languages("bits_per_byte") == []
    assert not results.has("bits_per_byte")  # of the task itself
    quality, *_, other = result_tables(results)
    named = [row[0].strip() for row in quality.rows]
    assert named[-2:] == ["other text, bits per byte", "of languages not trained"]
    assert [row[0] for row in other.rows] == ["deu_Latn", "math", "swh_Latn"]


def test_one_s_own_text_may_be_records_or_lines(tmp_path):
    (tmp_path / "own.txt").write_text("one line\n\nanother\n")
    texts = [record.fields["text"] for record in retention_set(str(tmp_path / "own.txt")).records]
    assert texts == ["one line", "another"]
    (tmp_path / "own.jsonl").write_text(json.dumps({"text": "x", "language": "sw"}) + "\n")
    assert retention_set(str(tmp_path / "own.jsonl")).languages == ["swh_Latn"]
    assert untrained(retention_set("auto"), from_fields([{"text": "x"}], "t")) == set()
    (tmp_path / "chat.jsonl").write_text(json.dumps(CHOICE) + "\n")
    for name, words in (("chat.jsonl", "needs plain text"), ("nowhere.jsonl", "no such file")):
        with pytest.raises(ConfigError, match=words):
            retention_set(str(tmp_path / name))
