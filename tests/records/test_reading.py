"""Lines in, records or faults out, each with its place; never a traceback."""

import json
import os
import stat

import pyarrow
import pytest
from governance.conftest import write_jsonl
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from mlx_hybrid.errors import ConfigError, DataError
from mlx_hybrid.records.record import Fault, Record, load_records, parse_line, read_records

USER = {"role": "user", "content": "How far is the station?"}
REPLY = {"role": "assistant", "content": "Ten minutes on foot."}
CALL = {"role": "assistant", "content": None, "tool_calls": [{"name": "map"}]}


def parse(value) -> Record | Fault:
    return parse_line(json.dumps(value).encode(), "f.jsonl", 3)


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        ({"text": "Hello there."}, "text"),
        ({"prompt": "One?", "completion": "Two."}, "prompt"),
        ({"messages": [USER, REPLY]}, "messages"),
        ({"messages": [{"role": "system", "content": "Be brief."}, USER, REPLY, USER, REPLY]}, "messages"),
        ({"messages": [USER, CALL, {"role": "tool", "content": "650 m"}, REPLY], "tools": []}, "messages"),
        ({"messages": [USER, REPLY], "prompt": "metadata"}, "messages"),
    ],
)
def test_records_of_every_kind(value, kind):
    record = parse(value)
    assert isinstance(record, Record)
    assert record.kind == kind
    assert record.where == record.id == "f.jsonl:3"
    assert json.loads(json.dumps(record.fields)) == value


def test_content_leaves_out_the_system_turn():
    record = parse(
        {"messages": [{"role": "system", "content": "Be brief."}, USER, REPLY], "language": "en", "id": 7}
    )
    assert record.content() == "How far is the station?\nTen minutes on foot."
    assert (record.prompt(), record.completion()) == (USER["content"], REPLY["content"])
    assert (record.language, record.id, record.label) == ("en", "7", None)
    assert parse({"prompt": "a", "completion": "b"}).turns()[1] == {"role": "assistant", "content": "b"}


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"{", "bad_json"),
        (b"nonsense", "bad_json"),
        (b"[" * 100_000, "bad_json"),
        (b'{"text": ' + b"9" * 5000 + b"}", "bad_json"),
        (b"[1]", "not_object"),
        (b"3", "not_object"),
        ('{"text": "é"}'.encode("latin-1"), "bad_encoding"),
        (b'{"title": "x"}', "no_known_keys"),
        (b'{"prompt": "x"}', "no_known_keys"),
        (b'{"text": 3}', "bad_content"),
        (b'{"text": "  "}', "empty"),
        (b'{"prompt": "x", "completion": " "}', "empty_completion"),
        (b'{"text": "x", "language": 3}', "bad_field"),
        (b'{"text": "x", "id": []}', "bad_field"),
        (b'{"messages": []}', "bad_content"),
        (b'{"messages": ["x"]}', "bad_roles"),
        (b'{"messages": [{"role": "robot", "content": "x"}]}', "bad_roles"),
        (b'{"messages": [{"role": "assistant", "content": "x"}]}', "bad_roles"),
        (b'{"messages": [{"role": "user", "content": "x"}, {"role": "user", "content": "x"}]}', "bad_roles"),
        (b'{"messages": [{"role": "user", "content": "x"}]}', "no_answer"),
        (b'{"messages": [{"role": "user", "content": [{"type": "text"}]}]}', "bad_content"),
        (
            b'{"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": ""}]}',
            "empty_completion",
        ),
    ],
)
def test_faults(line, reason):
    fault = parse_line(line, "f.jsonl", 8)
    assert isinstance(fault, Fault)
    assert fault.reason == reason
    assert fault.raw == line
    assert fault.where == "f.jsonl:8"
    assert fault.detail


def test_a_file_holds_one_kind(tmp_path):
    path = write_jsonl(
        tmp_path / "a.jsonl", [{"text": "one"}, {"prompt": "a", "completion": "b"}, {"text": "two"}]
    )
    items = list(read_records(path))
    assert [type(item) for item in items] == [Record, Fault, Record]
    assert items[1].reason == "mixed_kinds"


def test_lines_are_counted_with_blank_ones(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'\xef\xbb\xbf{"text": "one"}\r\n\n   \n{"text": "two"}')
    found = [(record.line, record.content()) for record in load_records(tmp_path / "a.jsonl")]
    assert found == [(1, "one"), (4, "two")]


def test_the_strict_reader_gathers_faults(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", ["x"] * 7 + [{"text": "fine"}, {"text": 1}])
    with pytest.raises(DataError) as error:
        load_records(path)
    marks = ("7 bad_json", f"{path}:1", "3 more", f"{path}:6")
    assert [mark in str(error.value) for mark in marks] == [True, True, True, False]


def test_paths_that_cannot_be_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    refused = {"none.jsonl": "no such file", ".": "folder", "pipe": "pipe", "a\0b": "cannot be read"}
    for path, told in refused.items():
        with pytest.raises(ConfigError, match=told):
            read_records(tmp_path / path)
    (tmp_path / "locked.jsonl").write_text("{}")
    (tmp_path / "locked.jsonl").chmod(stat.S_IWUSR)
    if os.geteuid():  # root reads everything
        with pytest.raises(ConfigError, match="cannot be read"):
            read_records(tmp_path / "locked.jsonl")


KEYS = st.sampled_from(
    ["text", "prompt", "completion", "messages", "role", "content", "language", "id", "user"]
)
JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=8) | st.integers(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=5),
    max_leaves=12,
)


@settings(max_examples=50, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(JSON.map(lambda value: json.dumps(value).encode()) | st.binary(max_size=40), max_size=8))
def test_fuzzed_lines_are_never_lost(tmp_path_factory, lines):
    path = tmp_path_factory.getbasetemp() / "fuzz.jsonl"
    path.write_bytes(b"\n".join([b'{"text": "first"}', *lines]))
    raw = path.read_bytes()
    items = list(read_records(path))
    assert len(items) == sum(bool(line.strip()) for line in raw.split(b"\n"))
    for item in items:
        assert item.path == str(path)
        assert item.line >= 1
        if isinstance(item, Record):
            assert item.content().strip() or item.kind == "messages"
            assert item.completion() or item.kind == "messages"


def test_parquet_is_read_row_by_row(tmp_path):
    path, rows = (
        tmp_path / "a.parquet",
        [{"text": "one", "language": None}, {"text": "two", "language": "en"}],
    )
    parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    found = [(record.fields, record.where) for record in load_records(path)]
    assert found == [({"text": "one"}, f"{path}:1"), (rows[1], f"{path}:2")]
    path.write_bytes(b"PAR1 is not enough")
    with pytest.raises(ConfigError, match=r"a.parquet: is no Parquet file"):
        load_records(path)
