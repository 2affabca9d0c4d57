"""What people have on disk, and the fields it becomes."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_hybrid.errors import ConfigError
from mlx_hybrid.records.fields import check_fields
from mlx_hybrid.records.files import find_files, read_renames
from mlx_hybrid.records.record import Fault, Record, load_records, parse_line, shapes_of
from mlx_hybrid.records.shapes import as_record

ASK, SAY = {"role": "user", "content": "Far?"}, {"role": "assistant", "content": "Ten minutes."}
SYSTEM = {"role": "system", "content": "Be brief."}
CHAT = {"messages": [ASK, SAY]}
PAIR = {"prompt": "Far?", "completion": "Ten minutes."}
CALL = {"name": "map", "arguments": {"to": "station"}}
CALLS = {"tool_calls": [{"type": "function", "function": CALL}]}
CALLED = {"role": "assistant", "content": None, **CALLS}
RESULT = {"role": "tool", "content": "650 m"}
PARTS = {"type": "text", "text": "Far"}, {"type": "text", "text": "?"}


def sharegpt(*turns):
    return [{"from": role, "value": text} for role, text in turns]


@pytest.mark.parametrize(
    ("shape", "row", "fields"),
    [
        ("messages", CHAT, CHAT),
        ("messages", {"messages": json.dumps([ASK, SAY])}, CHAT),
        ("messages", {"messages": str([ASK, SAY])}, CHAT),
        ("messages", {"messages": [{**ASK, "content": list(PARTS)}, SAY]}, CHAT),
        ("messages", {"messages": sharegpt(("human", "Far?"), ("gpt", "Ten minutes."))}, CHAT),
        ("messages", {"messages": [ASK, SAY], "system": "Be brief."}, {"messages": [SYSTEM, ASK, SAY]}),
        ("messages", {"messages": [{**SYSTEM, "role": "developer"}, ASK, SAY]}, {"messages": [SYSTEM, ASK, SAY]}),
        (
            "messages",
            {"messages": [ASK, {**SAY, "content": None, "function_call": CALL}, {**RESULT, "role": "function"}, SAY]},
            {"messages": [ASK, CALLED, RESULT, SAY]},
        ),
        (
            "messages",
            {"messages": [ASK, {**CALLED, "tool_calls": json.dumps(CALLS["tool_calls"])}]},
            {"messages": [ASK, CALLED]},
        ),
        ("messages", {**CHAT, "tools": json.dumps([CALL])}, {**CHAT, "tools": [CALL]}),
        ("messages", {**CHAT, "functions": [CALL]}, {**CHAT, "tools": CALLS["tool_calls"]}),
        ("messages", {**CHAT, "conversations": None, "id": 3}, {**CHAT, "id": 3}),
        (
            "messages",
            {"messages": [ASK, {**SAY, "weight": 0, "reasoning_content": "Near.", "name": "A"}]},
            {"messages": [ASK, {**SAY, "weight": 0, "reasoning_content": "Near.", "name": "A"}]},
        ),
        ("sharegpt", {"conversations": sharegpt(("human", "Far?"), ("gpt", "Ten minutes."))}, CHAT),
        ("sharegpt", {"conversation": sharegpt(("user", "Far?"), ("assistant", "Ten minutes."))}, CHAT),
        ("sharegpt", {"conversation": [ASK, SAY]}, CHAT),
        (
            "sharegpt",
            {"conversations": sharegpt(("system", "Be brief."), ("Human", "Far?"), ("GPT", "Ten minutes."))},
            {"messages": [SYSTEM, ASK, SAY]},
        ),
        (
            "sharegpt",
            {"conversations": [{**turn, "weight": 0} for turn in sharegpt(("human", "Far?"), ("gpt", "No."))]},
            {"messages": [{**ASK, "weight": 0}, {"role": "assistant", "content": "No.", "weight": 0}]},
        ),
        (
            "sharegpt",
            {
                "conversations": sharegpt(
                    ("human", "Far?"), ("function_call", json.dumps(CALL)), ("observation", "650 m"), ("gpt", "No.")
                ),
                "system": "Be brief.",
            },
            {"messages": [SYSTEM, ASK, CALLED, RESULT, {"role": "assistant", "content": "No."}]},
        ),
        ("prompt", PAIR, PAIR),
        ("prompt", {**PAIR, "text": "x", "input": "kept"}, {**PAIR, "text": "x", "input": "kept"}),
        ("prompt", {"prompt": [ASK], "completion": [SAY]}, CHAT),
        ("prompt", {"prompt": [SYSTEM, ASK], "completion": "Ten minutes."}, {"messages": [SYSTEM, ASK, SAY]}),
        ("prompt", {"prompt": "Far?", "completion": [SAY]}, CHAT),
        ("prompt", {**PAIR, "system": "Be brief."}, {"messages": [SYSTEM, ASK, SAY]}),
        (
            "prompt",
            {"prompt": [ASK, SAY, ASK], "completion": [SAY]},
            {"messages": [ASK, {**SAY, "weight": 0}, ASK, SAY]},
        ),
        ("alpaca", {"instruction": "Far?", "input": "", "output": "Ten minutes."}, PAIR),
        ("alpaca", {"instruction": "Far?", "input": None, "output": "Ten minutes.", "id": 1}, {**PAIR, "id": 1}),
        (
            "alpaca",
            {"instruction": "Say it.", "input": "Far?", "output": "Ten minutes."},
            {**PAIR, "prompt": "Say it.\n\nFar?"},
        ),
        (
            "alpaca",
            {"instruction": "Far?", "output": "Ten minutes.", "system": "Be brief."},
            {"messages": [SYSTEM, ASK, SAY]},
        ),
        (
            "alpaca",
            {"instruction": "Far?", "output": "Ten minutes.", "history": [["Far?", "Ten minutes."]], "system": ""},
            {"messages": [ASK, SAY, ASK, SAY]},
        ),
        ("text", {"text": "Hello.", "prompt": "kept"}, {"text": "Hello.", "prompt": "kept"}),
    ],
)  # fmt: skip
def test_every_shape_becomes_one_of_the_three_kinds(shape, row, fields):
    before = json.dumps(row)
    found, name = as_record(row)
    check_fields(found)
    assert (found, name) == (fields, shape)
    assert json.dumps(row) == before
    again, _ = as_record(found)
    assert again is found  # what is in one of the kinds stays the object that it is


@pytest.mark.parametrize(
    ("row", "reason", "detail"),
    [
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, "preference", "preference pairs, which are not trained yet"),
        ({"chosen": [ASK, SAY], "rejected": [ASK, SAY]}, "preference", "preference pairs"),
        ({"conversations": sharegpt(("human", "x")), "chosen": {}, "rejected": {}}, "preference", "preference pairs"),
        ({"messages": [ASK], "chosen": [SAY], "rejected": [SAY]}, "preference", "preference pairs"),
        ({"conversation": "x"}, "bad_content", "conversation must be a list of turns, not a string"),
        ({"input": {}, "preferred_output": [], "non_preferred_output": []}, "preference", "preference pairs"),
        ({"question": "a", "answer": "b"}, "no_known_keys", "completion: --map question=prompt,answer=completion"),
        ({"prompt": "a", "response": "b"}, "no_known_keys", "--map response=completion"),
        ({"dialogue": [ASK, SAY]}, "no_known_keys", "the nearest shape is messages: --map dialogue=messages"),
        ({"body": "a"}, "no_known_keys", "text: --map body=text"),
        ({"mesages": [ASK, SAY]}, "no_known_keys", "the nearest shape is messages: --map mesages=messages"),
        ({"title": "x"}, "no_known_keys", "has title: none of messages, conversations"),
        ({"prompt": "x"}, "no_known_keys", "prompt without completion"),
        ({}, "no_known_keys", "no keys"),
        ({"messages": [{**ASK, "content": [{"type": "image_url"}]}, SAY]}, "bad_content", "part of type image_url"),
        ({"messages": {"role": ["user"], "content": ["x"]}}, "bad_content", "must be a list of turns, not dict"),
        ({"data": [CHAT]}, "no_known_keys", "has data: none of messages"),
        ({"messages": "none"}, "bad_content", "messages must be a list of turns, not a string"),
        ({"prompt": 3, "completion": "x"}, "bad_content", "prompt must be a list of turns, not int"),
        ({"instruction": ["x"], "output": "x"}, "bad_content", "instruction must be a string, not list"),
        ({"instruction": "x", "output": "x", "history": ["x"]}, "bad_content", "history must be a list of"),
        ({"conversations": sharegpt(("human", "x"), ("function_call", "map()"))}, "bad_content", "a function call"),
        ({"conversations": sharegpt(("customer", "x"), ("gpt", "y"))}, "bad_roles", "turn 1 has role 'customer'"),
        ({"messages": [ASK, {**CALLED, "tool_calls": [3]}]}, "bad_content", "the tool calls of turn 2 must be a list"),
        ({"messages": [ASK, {**CALLED, "tool_calls": {"a": 1}}]}, "bad_content", "tool calls of turn 2 must be a list"),
        ({**CHAT, "tools": ["map"]}, "bad_field", "tools must be a list of objects"),
        ({**CHAT, "tools": "map"}, "bad_field", "tools must be a list of objects"),
    ],
)  # fmt: skip
def test_other_shapes_are_named_with_the_nearest_and_refused_for_a_whole_file(row, reason, detail, tmp_path):
    import re

    raw = json.dumps(row).encode()
    fault = parse_line(raw, "f.jsonl", 1)
    assert isinstance(fault, Fault)
    assert (fault.reason, fault.raw) == (reason, raw)
    assert re.search(detail, fault.detail)
    path = tmp_path / "f.jsonl"
    path.write_bytes(raw + b"\n" + raw)
    if reason not in ("bad_roles", "bad_field"):
        with pytest.raises(ConfigError, match=detail) as error:
            find_files([path])
        assert error.value.exit_code == 2
        assert "\n" not in str(error.value)


def test_a_row_with_nothing_under_a_key_of_its_own_stays_as_it_is():
    row = {"text": "The library opens at nine.", "meta": None}
    assert as_record(row)[0] is row
    assert as_record({**row, "messages": None})[0] == row


def test_keys_are_read_under_the_names_that_are_given(tmp_path):
    path = tmp_path / "pairs.jsonl"
    path.write_text(
        json.dumps({"question": "Far?", "answer": "Ten minutes.", "prompt": "gone", "id": 1}) + "\n"
    )
    renames = ("question=prompt, answer=completion",)
    (record,) = load_records(find_files([path], renames=renames))
    assert record.fields == {**PAIR, "id": 1}
    assert shapes_of([record]) == f"Read {path} as prompts and completions (1 record)."
    for pair, message in [
        ("question", "--map question: write THEIRS=OURS"),
        ("question=promt", 'no key that is read; did you mean "prompt"'),
        ("prompt=question", "turn it round: question=prompt"),
    ]:
        with pytest.raises(ConfigError, match=message):
            read_renames([pair])


def test_conversations_of_two_shapes_stand_in_one_file(tmp_path):
    path = tmp_path / "mixed.jsonl"
    rows = [CHAT, PAIR, {"conversations": sharegpt(("human", "Far?"), ("gpt", "No."))}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    records = load_records(path)
    assert [record.kind for record in records] == ["messages", "prompt", "messages"]
    told = "messages (1 record); {0} as prompts and completions (1 record); {0} as ShareGPT conversations (1 record)."
    assert shapes_of(records) == f"Read {path} as " + told.format(path)


WORD = st.text(min_size=1, max_size=8).filter(str.strip)


@settings(deadline=None)
@given(
    st.lists(st.tuples(WORD, WORD), min_size=1, max_size=4), st.sampled_from(["gpt", "assistant", "model"])
)
def test_a_conversation_says_the_same_in_every_spelling(pairs, name):
    turns = [
        {"role": role, "content": text} for pair in pairs for role, text in zip(("user", "assistant"), pair)
    ]
    told = [{"from": {"user": "human", "assistant": name}[t["role"]], "value": t["content"]} for t in turns]
    *history, (question, answer) = pairs
    spellings = [
        {"messages": turns},
        {"messages": json.dumps(turns)},
        {"conversations": told},
        {"messages": [{**t, "content": [{"type": "text", "text": t["content"]}]} for t in turns]},
        {"prompt": turns[:-1], "completion": answer},
        {"instruction": question, "output": answer, "history": [list(pair) for pair in history]},
    ]
    for row in spellings:
        record = parse_line(json.dumps(row).encode(), "f.jsonl", 1)
        assert isinstance(record, Record)
        assert [{k: t[k] for k in ("role", "content")} for t in record.turns()] == turns
