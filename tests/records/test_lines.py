"""The same records from every kind of file."""

import bz2
import csv
import gzip
import io
import json
import lzma
import sys

import pyarrow
import pytest
import zstandard
from pyarrow import parquet

from mlx_hybrid.config import DataConfig
from mlx_hybrid.errors import ConfigError
from mlx_hybrid.records.files import find_sources
from mlx_hybrid.records.lines import Fault, as_source
from mlx_hybrid.records.record import load_records, read_file, read_records

ROWS = [
    {"prompt": 'Far, "really"?', "completion": "Ten\nminutes.\r\nOr nine."},
    {"prompt": "Hä?; ñ|\u2028\x85", "completion": "Ünd\ttab \U0001f600"},
    {"prompt": "3", "completion": "4"},
]
JSONL = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS).encode()


def cells(delimiter=",", **how) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, ["prompt", "completion"], delimiter=delimiter, **how)
    writer.writeheader()
    writer.writerows(ROWS)
    return text.getvalue().encode()


def arrow(new, rows=ROWS) -> bytes:
    table, sink = pyarrow.Table.from_pylist(rows), pyarrow.BufferOutputStream()
    with new(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


def packed_parquet() -> bytes:
    sink = pyarrow.BufferOutputStream()
    parquet.write_table(pyarrow.Table.from_pylist(ROWS), sink)
    return sink.getvalue().to_pybytes()


FORMATS = {
    "a.jsonl": JSONL,
    "a.ndjson": b"\xef\xbb\xbf" + JSONL.replace(b"\n", b"\r\n"),
    "a.json": json.dumps(ROWS, indent=1).encode(),
    "one-line.json": json.dumps(ROWS, ensure_ascii=False).encode(),
    "bom.json": b"\xef\xbb\xbf" + json.dumps(ROWS, indent="\t").encode(),
    "element-a-line.json": b"[" + b",\n".join(json.dumps(row).encode() for row in ROWS) + b"]\n",
    "lines.json": JSONL,
    "a.csv": cells(),
    "a.CSV": b"\xef\xbb\xbf" + cells(),
    "semicolons.csv": cells(";"),
    "quoted.csv": cells(quoting=csv.QUOTE_ALL),
    "a.tsv": cells("\t"),
    "a.parquet": packed_parquet(),
    "no-name": packed_parquet(),
    "a.arrow": arrow(pyarrow.ipc.new_stream),
    "file.arrow": arrow(pyarrow.ipc.new_file),
    **{
        f"{name}{ending}": pack(raw)
        for name, raw in (("a.jsonl", JSONL), ("a.csv", cells()), ("odd", json.dumps(ROWS).encode()))
        for ending, pack in (
            (".gz", gzip.compress),
            (".bz2", bz2.compress),
            (".xz", lzma.compress),
            (".zst", zstandard.ZstdCompressor().compress),
        )
    },
    "wrong-name.gz": zstandard.ZstdCompressor().compress(JSONL),
    "frames.zst": b"".join(
        zstandard.ZstdCompressor().compress(line) for line in JSONL.splitlines(keepends=True)
    ),
    "members.gz": b"".join(gzip.compress(line) for line in JSONL.splitlines(keepends=True)),
}


@pytest.mark.parametrize("name", FORMATS)
def test_every_file_gives_the_same_records(name, tmp_path):
    (tmp_path / name).write_bytes(FORMATS[name])
    records = load_records(tmp_path / name)
    assert [record.fields for record in records] == ROWS
    assert len({record.id for record in records}) == len(ROWS)
    assert {record.shape for record in records} == {"prompt"}


@pytest.mark.parametrize(
    ("name", "raw", "reasons"),
    [
        ("cut.json", json.dumps(ROWS).encode()[:-1], ["bad_json"]),
        ("torn.json", json.dumps(ROWS, indent=1).encode()[:-20], ["bad_json"]),
        ("torn.jsonl.gz", gzip.compress(JSONL * 999)[:-40], ["broken_file"]),
        ("more.json", b'[{"text": "a"},\n{"text": "b"}]\n{}', ["bad_json"]),
        ("lists.jsonl", b'[{"text": "a"}]\n[{"text": "b"}]', ["not_object", "not_object"]),
        ("torn.jsonl.xz", lzma.compress(JSONL * 999)[:-40], ["broken_file"]),
        ("torn.jsonl.bz2", bz2.compress(JSONL)[:-9], ["broken_file"]),
        ("wide.jsonl", JSONL.decode().encode("utf-16"), ["bad_encoding"]),
        ("wide.csv", cells().decode().encode("utf-16"), ["bad_encoding"]),
        ("latin.csv", "prompt,completion\na,é\nb,c\n".encode("latin-1"), ["bad_encoding", None]),
        ("long.csv", b"prompt,completion\na,b,c\nd,e\n", ["bad_row", None]),
        ("empty.csv", b"prompt,completion,language\na,,\nd,e,\n\n", ["empty_completion", None]),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_a_fault_with_its_place(name, raw, reasons, tmp_path):
    (tmp_path / name).write_bytes(raw)
    items = list(read_file(as_source(tmp_path / name)))
    found = [item.reason if isinstance(item, Fault) else None for item in items]
    assert found[-len(reasons) :] == reasons
    assert not name.startswith("wide") or "iconv" in items[0].detail
    assert not any("language" in item.fields for item in items if not isinstance(item, Fault))


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("a.jsonl.zip", "is a zip archive or a spreadsheet"),
        ("a.jsonl.zst", r"needs zstandard: pip install 'mlx-hybrid\[zstd\]'"),
        ("a.parquet", r"needs pyarrow: pip install 'mlx-hybrid\[parquet\]'"),
    ],
)
def test_zip_archives_and_missing_extras_are_told(name, told, tmp_path, monkeypatch):
    (tmp_path / name).write_bytes(FORMATS.get(name, b"PK\x03\x04rest"))
    for module in ("zstandard", "pyarrow"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ConfigError, match=told):
        read_records(tmp_path / name)


def test_nulls_that_arrow_adds_are_left_out_and_a_records_own_stay(tmp_path):
    def tool(name, **properties):
        return {"name": name, "parameters": {"properties": properties, "default": None}}

    def row(name, **arguments):
        calls = [{"function": {"name": name, "arguments": arguments}}]
        turns = [
            {"role": "user", "content": "Go."},
            {"role": "assistant", "content": None, "tool_calls": calls},
        ]
        return {"messages": turns, "tools": [tool(name, **{key: {"type": "string"} for key in arguments})]}

    rows = [row("map", to="station"), row("clock", zone="UTC", style="long")]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    found = [record.fields for record in load_records(tmp_path / "a.parquet")]
    for one, own in zip(found, rows, strict=True):
        assert one["tools"] == own["tools"]
        assert one["messages"][1]["tool_calls"] == own["messages"][1]["tool_calls"]
        assert one["messages"][0] == own["messages"][0]
    (tmp_path / "a.jsonl").write_text(json.dumps(row("map", to=None)))
    (kept,) = load_records(tmp_path / "a.jsonl")
    assert kept.fields["messages"][1]["tool_calls"][0]["function"]["arguments"] == {"to": None}


def saved(folder, rows):
    """A set as `datasets` saves it: two Arrow streams, listed in state.json, and a stale cache beside them."""
    folder.mkdir(parents=True)
    files = [f"data-0000{part}-of-00002.arrow" for part in (1, 0)]
    for name, part in zip((*files, "cache-1.arrow"), (rows[:1], rows[1:], rows)):
        (folder / name).write_bytes(arrow(pyarrow.ipc.new_stream, part))
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": name} for name in files]}))
    (folder / "dataset_info.json").write_text("{}")


def test_a_folder_that_datasets_saved_is_read_by_its_splits(tmp_path):
    saved(tmp_path / "all" / "train", ROWS)
    saved(tmp_path / "all" / "test", ROWS[:2])
    (tmp_path / "all" / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    whole = find_sources(DataConfig(paths=(str(tmp_path / "all"),)))
    assert [record.fields for record in load_records(whole.train)] == ROWS
    assert [record.fields for record in load_records(whole.test)] == ROWS[:2]
    one = find_sources(DataConfig(paths=(str(tmp_path / "all" / "test"),)))
    assert [record.fields for record in load_records(one.train)] == ROWS[:2]
    assert not one.test


def names(part):
    return [source.path.name for source in part]


def test_arrays_and_tables_of_a_folder_are_read_where_there_is_no_jsonl(tmp_path):
    (tmp_path / "train.json").write_bytes(FORMATS["a.json"])
    (tmp_path / "test.csv").write_bytes(FORMATS["a.csv"])
    (tmp_path / "dataset_infos.json").write_text("{}")
    found = find_sources(DataConfig(paths=(str(tmp_path),)))
    assert (names(found.train), names(found.test)) == (["train.json"], ["test.csv"])
    (tmp_path / "more.jsonl").write_bytes(JSONL)
    assert names(find_sources(DataConfig(paths=(str(tmp_path),))).train) == ["more.jsonl"]
