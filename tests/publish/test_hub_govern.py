"""`govern` on data sets of the Hub, with the real client against a Hub on this machine."""

import gzip
import json
import os

import pytest
from click.testing import CliRunner
from huggingface_hub import constants
from test_hub import hub  # noqa: F401

from mlx_hybrid.cli import main

FIRST, SECOND = "1" * 40, "2" * 40
LINES = {
    "en": "The old bridge over the river was closed for repairs after the heavy rain of last week.",
    "de": "Die alte Brücke über den Fluss wurde nach dem starken Regen der letzten Woche gesperrt.",
    "fr": "Le vieux pont sur la rivière a été fermé pour réparation après les fortes pluies.",
}


def rows(**texts):
    return "".join(
        json.dumps({"text": text, "language": code}) + "\n" for code, text in texts.items()
    ).encode()


@pytest.fixture
def cached(hub, monkeypatch, tmp_path):  # noqa: F811
    """The Hub, with a cache of its own on this side."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return hub


@pytest.fixture
def data(cached, tmp_path):
    """A data set of three kinds of file."""
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(
        pyarrow.Table.from_pylist([{"text": LINES["fr"], "language": "fr"}]), tmp_path / "fr.parquet"
    )
    cached.add_repo("me/data")
    cached.repos["me/data"] |= {
        "commits": [FIRST],
        "files": {
            "data/train.jsonl": rows(en=LINES["en"]) + b"{broken\n",
            "data/more.jsonl.gz": gzip.compress(rows(de=LINES["de"])),
            "fr.parquet": (tmp_path / "fr.parquet").read_bytes(),
            "README.md": b"# Data",
        },
    }
    return cached


def govern(*arguments):
    return CliRunner().invoke(main, ["govern", *map(str, arguments)])


def lines_of(path):
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def test_a_data_set_is_governed_and_its_revision_signed(data, tmp_path):
    done = govern("me/data", "-o", "clean")
    assert done.exit_code == 0, done.output
    kept = {row["_gov"]["where"]: row for row in lines_of(tmp_path / "clean" / "kept.jsonl")}
    assert set(kept) == {"me/data:data/more.jsonl.gz:1", "me/data:data/train.jsonl:1", "me/data:fr.parquet:1"}
    assert kept["me/data:fr.parquet:1"]["text"] == LINES["fr"]
    (rejected,) = lines_of(tmp_path / "clean" / "rejected.jsonl")
    assert rejected["_gov"]["where"] == "me/data:data/train.jsonl:2"
    inputs = json.loads((tmp_path / "clean" / "manifest.json").read_text())["inputs"]
    assert {source["revision"] for source in inputs} == {FIRST}
    assert str(tmp_path) not in (tmp_path / "clean" / "manifest.json").read_text()
    assert govern("verify", "clean").exit_code == 0


def test_a_pattern_chooses_files_and_a_new_revision_is_read(data, tmp_path):
    assert govern("me/data:data/*.jsonl", "-o", "first").exit_code == 0
    assert len(lines_of(tmp_path / "first" / "kept.jsonl")) == 1
    assert not [line for line in data.requests if "parquet" in line]
    data.repos["me/data"]["files"]["data/train.jsonl"] = rows(de=LINES["de"])
    data.repos["me/data"]["commits"].append(SECOND)
    assert govern("me/data:data/*.jsonl", "-o", "second").exit_code == 0
    (row,) = lines_of(tmp_path / "second" / "kept.jsonl")
    assert row["text"] == LINES["de"]
    assert json.loads((tmp_path / "second" / "manifest.json").read_text())["inputs"][0]["revision"] == SECOND


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("me/nothing", "me/nothing: no such file or folder here, and no data set to be had from the Hub"),
        ("me/data:other/*.jsonl", "none of its files is other/*.jsonl; it has data/more.jsonl.gz"),
        ("me/data.jsonl", "PATH: me/data.jsonl is not there."),
        ("me/empty", "me/empty: the data set holds no file of records (JSONL, Parquet, JSON, CSV)."),
    ],
)
def test_what_is_no_data_set_is_named(name, words, data):
    data.add_repo("me/empty")
    data.repos["me/empty"] |= {"commits": [FIRST], "files": {"README.md": b"#"}}
    done = govern(name, "-o", "clean")
    assert done.exit_code == 2
    assert words in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not os.path.exists("clean")


def test_a_hub_that_refuses_or_is_gone_is_told_in_a_line(data, monkeypatch):
    for faults in ({"me/data": [403] * 9}, {"resolve": ["drop"] * 9}):
        data.faults = faults
        done = govern("me/data", "-o", "clean")
        assert done.exit_code == 2
        assert "no data set to be had from the Hub" in done.stderr
    data.faults = {}
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    done = govern("me/data", "-o", "clean")
    assert done.exit_code == 2
    assert "Connection refused" in done.stderr.splitlines()[-1]
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert "(offline, and it is not on this machine)" in govern("me/other", "-o", "clean").stderr
    assert not os.path.exists("clean")
