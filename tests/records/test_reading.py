"""Lines in, records or faults out, each with its place; never a traceback."""

import gzip
import json
import os
import stat

import pytest
from governance.conftest import write_jsonl
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

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


def test_lines_are_counted_with_blank_ones_and_gzip_reads_alike(tmp_path):
    raw = b'\xef\xbb\xbf{"text": "one"}\r\n\n   \n{"text": "two"}'
    (tmp_path / "a.jsonl").write_bytes(raw)
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(raw))
    plain, packed = (load_records(tmp_path / name) for name in ("a.jsonl", "a.jsonl.gz"))
    assert [record.line for record in plain] == [1, 4]
    assert [record.fields for record in plain] == [record.fields for record in packed]


def test_a_torn_gzip_keeps_what_could_be_read(tmp_path):
    packed = gzip.compress(b"".join(b'{"text": "%d"}\n' % i for i in range(5000)))
    path = tmp_path / "torn.jsonl.gz"
    path.write_bytes(packed[: len(packed) // 2])
    items = list(read_records(path))
    assert items[-1].reason == "broken_file"
    assert isinstance(items[0], Record)


def test_utf16_is_one_fault_with_a_way_out(tmp_path):
    path = tmp_path / "wide.jsonl"
    path.write_bytes('{"text": "x"}\n{"text": "y"}\n'.encode("utf-16"))
    (fault,) = read_records(path)
    assert fault.reason == "bad_encoding"
    assert "iconv" in fault.detail


def test_the_strict_reader_gathers_faults(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", ["x"] * 7 + [{"text": "fine"}, {"text": 1}])
    with pytest.raises(DataError) as error:
        load_records(path)
    assert "7 bad_json" in str(error.value)
    assert f"{path}:1" in str(error.value)
    assert f"{path}:6" not in str(error.value)
    assert "3 more" in str(error.value)


def test_paths_that_cannot_be_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ConfigError, match="no such file"):
        read_records(tmp_path / "none.jsonl")
    with pytest.raises(ConfigError, match="folder"):
        read_records([tmp_path])
    with pytest.raises(ConfigError, match="pipe"):
        read_records(tmp_path / "pipe")
    with pytest.raises(ConfigError):
        read_records("a\0b")


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_an_unreadable_file(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": "x"}])
    path.chmod(stat.S_IWUSR)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_records(path)


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=8) | st.integers(),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(
                ["text", "prompt", "completion", "messages", "role", "content", "language", "id", "user"]
            ),
            inner,
            max_size=5,
        )
    ),
    max_leaves=12,
)


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
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
    import pyarrow
    from pyarrow import parquet

    rows = [{"text": "one", "language": None}, {"text": "two", "language": "en"}]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    records = load_records(tmp_path / "a.parquet")
    assert [record.fields for record in records] == [{"text": "one"}, rows[1]]
    assert records[1].where == f"{tmp_path / 'a.parquet'}:2"
    (tmp_path / "b.parquet").write_bytes(b"PAR1 is not enough")
    with pytest.raises(ConfigError, match=r"b.parquet: is no Parquet file"):
        load_records(tmp_path / "b.parquet")
