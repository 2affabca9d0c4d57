"""MinHash against brute force, and the guards that keep what only looks alike."""

import json
import random
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from governance.conftest import SENTENCES, chat_record, govern_records, said, text_record, text_records
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_hybrid.config import GovernanceConfig
from mlx_hybrid.governance.checks import grams as checked
from mlx_hybrid.governance.checks.grams import Likeness, gram_hashes, normalise
from mlx_hybrid.governance.checks.near import news
from mlx_hybrid.records.record import Record, parse_line

NEAR = GovernanceConfig(only=("exact", "near"), max_reject_share=1.0)


def gone(records, config=NEAR) -> dict[int, tuple[str, str]]:
    return {r.record.line: (r.reason, r.match) for r in govern_records(records, config).rejected}


def words(rng: random.Random, count: int) -> list[str]:
    letters = "abcdefghijklmnoprstuvy"
    return ["".join(rng.choice(letters) for _ in range(rng.randint(3, 9))) for _ in range(count)]


def grams_of(text: str, n: int = 5) -> frozenset[str]:
    return frozenset(text[i : i + n] for i in range(max(1, len(text) - n + 1)))


def jaccard(one: frozenset[str], other: frozenset[str]) -> float:
    return len(one & other) / len(one | other)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.text(max_size=30), min_size=1, max_size=6), st.sampled_from([3, 5]))
def test_gram_hashes_are_those_of_the_string_grams(texts, n):
    hashes, starts = gram_hashes(texts, n)
    assert len(starts) == len(texts) + 1
    seen = {}
    for row, text in enumerate(texts):
        own = hashes[starts[row] : starts[row + 1]].tolist()
        expected = [text[i : i + n] for i in range(len(text) - n + 1)] or [text.ljust(n, "\0")]
        assert len(own) == len(expected)
        for value, gram in zip(own, expected):
            assert seen.setdefault(gram, value) == value


def test_signatures_estimate_the_jaccard():
    rng = random.Random(1)
    errors = []
    for _ in range(60):
        one = words(rng, 25)
        other = [word if rng.random() < 0.9 else words(rng, 1)[0] for word in one]
        texts = [" ".join(one), " ".join(other)]
        small = np.frombuffer(b"".join(checked.sketches(texts, 5)), checked.SKETCH)["small"]
        exact = jaccard(grams_of(texts[0]), grams_of(texts[1]))
        errors.append((small[0] == small[1]).mean() - exact)
    assert abs(np.mean(errors)) < 0.02  # unbiased
    assert np.std(errors) < 0.06  # √(J(1−J)/120) is at most 0.046


def test_bands_meet_exactly_when_six_minima_do():
    rows = checked.sketches(normalise([*SENTENCES.values()]) * 2, 5)
    keys = np.frombuffer(b"".join(rows), checked.SKETCH)["keys"]
    assert (keys[:12] == keys[12:]).all()
    assert len(np.unique(keys[:12])) == keys[:12].size


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.text("ab c\ud800\U0001f600", max_size=40), min_size=2, max_size=6), st.sampled_from([3, 5])
)
def test_the_jaccard_is_that_of_the_string_grams(texts, n):
    one, *others = texts
    expected = [jaccard(grams_of(one, n), grams_of(other, n)) for other in others]
    assert Likeness(n, 0.8).jaccards(one, others) == expected


def by_characters(one: str, other: str, n: int) -> float:
    """Jaccard of the characters that stand in a shared n-gram, from a mask over each text."""
    counts = []
    for text, against in ((one, other), (other, one)):
        mask = np.zeros(len(text), bool)
        for start in range(len(text) - n + 1):
            mask[start : start + n] |= text[start : start + n] in against
        counts.append(int(mask.sum()))
    return min(counts) / (len(one) + len(other) - min(counts))


@settings(max_examples=100, deadline=None)
@given(st.text("ab c", min_size=3, max_size=40), st.text("ab c", min_size=3, max_size=40))
def test_the_characters_shared_are_those_of_a_mask(one, other):
    assert Likeness(3, 0.0).shared_characters(one, other) == pytest.approx(
        by_characters(one, other, 3), abs=1e-12
    )
    if by_characters(one, other, 3) >= 0.8:
        assert Likeness(3, 0.8).may_share(len(one), len(other))


def test_near_copies_are_found_as_brute_force_finds_them():
    rng = random.Random(2)
    texts = []
    for _ in range(150):
        base = words(rng, 20)
        texts.append(" ".join(base))
        for changes in (1, 2, 5):
            copy = list(base)
            for _ in range(changes):
                copy[rng.randrange(20)] = words(rng, 1)[0]
            texts.append(" ".join(copy))
    records = [text_record(text, line, language="en") for line, text in enumerate(texts)]
    expected, by_grams, kept = set(), set(), []
    for line, text in enumerate(texts):
        (plain,) = normalise([text])
        own = grams_of(plain)
        others = [pair for pair in kept if not own.isdisjoint(pair[1])]  # of the rest, both measures are zero
        alike = any(jaccard(own, theirs) >= 0.8 for _, theirs in others)
        if alike:
            by_grams.add(line)
        if alike or any(by_characters(plain, other, 5) >= 0.8 for other, _ in others):
            expected.add(line)
        else:
            kept.append((plain, own))
    found = set(gone(records))
    assert found <= expected
    assert len(found) >= 0.99 * len(expected) > 1.5 * len(by_grams) > 0


@pytest.mark.parametrize(("length", "goes"), [(5, False), (12, True), (40, True)])
def test_one_changed_word_of_a_short_record_is_a_copy_of_it(length, goes):
    rng = random.Random(4)
    base = words(rng, length)
    other = [*base[: length // 2], "quixotic", *base[length // 2 + 1 :]]
    one, two = " ".join(base), " ".join(other)
    records = text_records([one, two], language="en")
    assert bool(gone(records)) == goes
    if length == 12:  # the n-grams alone would not tell
        assert jaccard(grams_of(one), grams_of(two)) < 0.8
        assert "by characters" in govern_records(records, NEAR).rejected[0].detail


def test_answers_are_held_to_their_n_grams():
    rng = random.Random(5)
    question, answer = " ".join(words(rng, 30)), words(rng, 9)
    changed = " ".join([*answer[:4], "quixotic", *answer[5:]])
    records = [chat_record(question, " ".join(answer), 0), chat_record(question + " ", changed, 1)]
    assert gone(records) == {}
    assert "the answers differ" in govern_records(records, NEAR).flags[1][0].detail
    asked = question.replace(question.split()[3], "quixotic")
    records = [chat_record(question, changed, 0), chat_record(asked, changed, 1)]
    assert set(gone(records)) == {1}


def test_the_reason_names_the_kept_record():
    text = SENTENCES["eng_Latn"]
    records = text_records([text, text, text.upper() + "!", text + " Thanks"], language="en")
    found = gone(records)
    assert {match for _, match in found.values()} == {"data.jsonl:0"}
    assert [reason for reason, _ in found.values()] == ["exact_dup", "near_dup", "near_dup"]
    assert "jaccard 0." in govern_records(records, NEAR).rejected[2].detail
    assert gone([text_record(text, 0, language="en"), text_record(text, 1, language="de")]) == {}


CONVERT = "Convert {} inches to centimetres and explain each step of it."
FOLLOWS = "Does the premise follow from what was said above? Answer yes or no."
LONG = SENTENCES["eng_Latn"] * 3


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ((CONVERT.format(12), "30.48"), (CONVERT.format(13), "33.02")),
        ((FOLLOWS, "Yes"), (FOLLOWS, "No")),
        (("What is the capital of France?", LONG), ("Who wrote the national anthem?", LONG)),
    ],
)
def test_numbers_answers_and_questions_protect(one, other):
    records = [chat_record(*one, 0, language="en"), chat_record(*other, 1, language="en")]
    assert gone(records) == {}


def test_labels_protect_and_conflicts_are_told():
    labelled = [text_record(SENTENCES["eng_Latn"], line, label=label) for line, label in enumerate("abb")]
    assert gone(labelled) == {2: ("exact_dup", "data.jsonl:1")}
    asked = [chat_record("What is it?", "A lamp.", 0), chat_record("what is it", "A chair.", 1)]
    flags = govern_records(asked, NEAR).flags
    assert [[flag.reason for flag in own] for own in flags] == [["prompt_conflict"]] * 2


def test_a_shared_instruction_is_not_what_makes_a_duplicate():
    rng = random.Random(3)
    ask = "Read the phrase and say in one word whether its tone is friendly, neutral or hostile, nothing else"
    texts = [f"{ask}: {' '.join(words(rng, 2))}" for _ in range(60)]
    pairs = [jaccard(*map(grams_of, pair)) for pair in pairwise(normalise(texts))]
    assert max(pairs) > 0.8  # they would go without the guard
    assert gone(text_records(texts, language="en")) == {}


def test_unspaced_scripts_and_short_texts():
    chinese = SENTENCES["zho_Hans"] * 2
    assert set(gone(text_records([chinese, chinese.replace("九", "八", 1)], language="zh"))) == {1}
    assert gone(text_records(["yes", "no", "ok", "on", "I"], language="en")) == {}


def call_record(line: int, city: str, *, tools=None, form=dict) -> Record:
    """A question whose answer is a tool call; `form` writes its arguments as an object or as JSON in a string."""
    asked = "Look up the weather of the coming days for the place that I named before, please."
    function = {"name": "weather", "arguments": form(city=city, days=3)}
    call = {"id": f"call_{line}", "type": "function", "function": function}
    answer = {"role": "assistant", "content": None, "tool_calls": [call]}
    fields = {"messages": [{"role": "user", "content": asked}, answer]}
    return Record(fields | ({"tools": tools} if tools else {}), "data.jsonl", line)


def as_text(**arguments) -> str:
    return json.dumps(dict(reversed(arguments.items())), indent=1)


TOOLS = [{"type": "function", "function": {"name": "weather"}}]


@pytest.mark.parametrize("stages", [("exact",), ("near",), ("exact", "near")])
def test_records_that_differ_in_a_tool_call_or_the_tools_both_stay(stages):
    rows = ["Lyon", dict, None], ["Nairobi", dict, None], ["Lyon", dict, TOOLS]
    rows += ["Lyon", dict, None], ["Nairobi", as_text, None], ["Lyon", dict, TOOLS]
    records = [call_record(n, city, form=form, tools=tools) for n, (city, form, tools) in enumerate(rows, 1)]
    config = GovernanceConfig(only=stages, max_reject_share=1.0)
    found = {line: match for line, (_, match) in gone(records, config).items()}
    assert found == {4: "data.jsonl:1", 5: "data.jsonl:2", 6: "data.jsonl:3"}


def test_another_call_is_another_answer_and_other_tools_another_question():
    records = [call_record(1, "Lyon"), call_record(2, "Nairobi"), call_record(3, "Lyon", tools=TOOLS)]
    flags = govern_records(records, NEAR).flags
    assert [{flag.reason for flag in own} >= {"prompt_conflict"} for own in flags] == [True, True, False]
    assert "the tool calls differ" in str(flags[1])
    assert "the tools differ" in str(flags[2])


def test_calls_before_the_answer_count_too():
    after = said(tool="Rain, then sun.", assistant="Rain, and sun.")
    records = [call_record(line, city) for line, city in enumerate(("Lyon", "Nairobi", "Lyon"), 1)]
    for record in records:
        record.fields["messages"] += after
    assert gone(records) == {3: ("exact_dup", "data.jsonl:1")}


@pytest.mark.parametrize("form", [dict, as_text])
def test_calls_nested_without_end_are_a_fault_or_a_text(form):
    deep = "[" * 900 + "]" * 900
    fields = call_record(1, "Lyon", form=form).fields
    call = fields["messages"][1]["tool_calls"][0]
    call["function"]["arguments"] = json.loads(deep) if form is dict else deep
    item = parse_line(json.dumps(fields).encode(), "data.jsonl", 1)
    result = govern_records([item], GovernanceConfig(only=("exact", "near", "personal"), redact=True))
    assert len(result.rejected) == (form is dict)
    assert len(result.kept) == (form is not dict)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.lists(st.sampled_from(["oslo", "oslos", "anne", "karl", "carl", "and"])), min_size=2, max_size=2
    )
)
def test_what_two_texts_have_to_themselves_is_the_same_seen_from_either(texts):
    one, other = map(" ".join, texts)
    mine, theirs = news(one, other, 5)
    assert news(other, one, 5) == (theirs, mine)
    assert Counter(mine) == Counter(texts[0]) - Counter(texts[1])
