"""From files to a folder: the same bytes with any workers, whole or not at all, and what was signed stays signed."""

import errno
import gzip
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from governance.conftest import SENTENCES, digests, read_jsonl, write_jsonl

from mlx_hybrid.cli import main
from mlx_hybrid.config import GovernanceConfig
from mlx_hybrid.errors import ConfigError, DataError, MlxHybridError
from mlx_hybrid.files import sha256_of
from mlx_hybrid.governance import govern as curate
from mlx_hybrid.governance.folder.manifest import check_source, verify
from mlx_hybrid.governance.govern import govern_files

FREE = GovernanceConfig(max_reject_share=1.0)
FILES = {"kept.jsonl", "rejected.jsonl", "manifest.json", "report.json", "report.html", "README.md"}


def test_every_line_is_on_one_side_untouched(raw, tmp_path):
    govern_files([raw], tmp_path / "out", FREE)
    assert {path.name for path in (tmp_path / "out").iterdir()} == FILES
    kept, rejected = (read_jsonl(tmp_path / "out" / f"{side}.jsonl") for side in ("kept", "rejected"))
    lines = raw.read_text(encoding="utf-8").splitlines()
    assert len(kept) + len(rejected) == len(lines)
    for row in kept + rejected:
        note = row.pop("_gov")
        line = lines[int(note["where"].rsplit(":", 1)[1]) - 1]
        assert row == {"raw": line} if set(row) == {"raw"} else json.loads(line)
    reasons = [row["_gov"]["reason"] for row in read_jsonl(tmp_path / "out" / "rejected.jsonl")]
    assert reasons == ["bad_json", "lang_mismatch", "exact_dup", "near_dup", "empty", "mojibake"]


def decided(path):
    items = govern_files([path], None, FREE).items
    return [item.decision and item.decision[:2] for item in items]


def test_gzip_and_parquet_give_the_same_decisions(raw, tmp_path):
    rows = [json.loads(line) for line in raw.read_text(encoding="utf-8").splitlines() if line[0] == "{"]
    plain, packed, table = (tmp_path / name for name in ("a.jsonl", "b.jsonl.gz", "c.parquet"))
    packed.write_bytes(gzip.compress(write_jsonl(plain, rows).read_bytes()))
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(pyarrow.Table.from_pylist(rows), table)
    decisions = [decided(path) for path in (plain, packed, table)]
    assert decisions == [decisions[0]] * 3


def test_governing_again_changes_nothing_and_names_its_parent(raw, tmp_path):
    govern_files([raw], tmp_path / "one", FREE)
    govern_files([tmp_path / "one" / "kept.jsonl"], tmp_path / "two", FREE)
    assert (tmp_path / "two" / "rejected.jsonl").read_bytes() == b""
    manifest = verify(tmp_path / "two")
    assert manifest["parents"][0]["sha256"] == sha256_of(tmp_path / "one" / "manifest.json")


def test_one_changed_byte_is_found(raw, tmp_path):
    out = tmp_path / "out"
    govern_files([raw], out, FREE)
    assert check_source(out / "kept.jsonl") == sha256_of(out / "manifest.json")
    assert check_source(raw) is None
    data = bytearray((out / "kept.jsonl").read_bytes())
    data[10] ^= 1
    (out / "kept.jsonl").write_bytes(data)
    with pytest.raises(DataError, match=r"kept\.jsonl has changed"):
        verify(out)
    with pytest.raises(DataError, match="--allow-changed-data"):
        check_source(out / "kept.jsonl")
    with pytest.raises(ConfigError, match=r"no manifest\.json"):
        verify(tmp_path)
    govern_files([raw], out, FREE, replace=True)
    (out / "more.jsonl").write_text("{}")
    with pytest.raises(DataError, match=r"more\.jsonl is not in the manifest"):
        verify(out)
    (out / "more.jsonl").unlink()
    manifest = json.loads((out / "manifest.json").read_text())
    manifest["config"]["near_threshold"] = 0.7
    (out / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(DataError, match=r"the settings in manifest\.json have changed"):
        verify(out)


@pytest.mark.parametrize("failure", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("stage", ["decide", "copy_lines", "write_outputs"])
def test_nothing_half_written(raw, tmp_path, monkeypatch, failure, stage):
    def fail(*_, **__):
        raise failure

    monkeypatch.setattr(curate, stage, fail)
    expected = MlxHybridError if isinstance(failure, OSError) else KeyboardInterrupt
    with pytest.raises(expected) as error:
        govern_files([raw], tmp_path / "out", FREE)
    assert expected is KeyboardInterrupt or "disk is full" in str(error.value)
    assert [path.name for path in tmp_path.iterdir() if path.name != "home"] == ["raw.jsonl"]


def test_a_line_longer_than_a_chunk_does_no_harm(tmp_path, monkeypatch):
    monkeypatch.setattr(curate, "CHUNK_BYTES", 1 << 16)
    texts = SENTENCES["deu_Latn"] * 5_000, SENTENCES["deu_Latn"]
    path = write_jsonl(tmp_path / "long.jsonl", [{"text": text, "language": "de"} for text in texts])
    assert path.stat().st_size > 5 * curate.CHUNK_BYTES
    govern_files([path], tmp_path / "out", FREE)
    assert len(read_jsonl(tmp_path / "out" / "kept.jsonl")) == 1
    assert read_jsonl(tmp_path / "out" / "rejected.jsonl")[0]["_gov"]["reason"] == "repetition"


def test_folders_are_not_overwritten(raw, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    for replace in (False, True):
        with pytest.raises(ConfigError):
            govern_files([raw], tmp_path / "mine", FREE, replace=replace)
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"
    govern_files([raw], tmp_path / "out", FREE)
    before = digests(tmp_path / "out")
    with pytest.raises(ConfigError, match="--replace"):
        govern_files([raw], tmp_path / "out", FREE)
    govern_files([raw], tmp_path / "out", FREE, replace=True)
    assert digests(tmp_path / "out") == before


def test_a_file_that_changes_while_it_is_read(raw, tmp_path, monkeypatch):
    copy = curate.copy_lines

    def copy_and_change(*arguments, **options):
        copy(*arguments, **options)
        raw.write_text("{}")

    monkeypatch.setattr(curate, "copy_lines", copy_and_change)
    with pytest.raises(DataError, match="changed while it was read"):
        govern_files([raw], tmp_path / "out", FREE)
    assert not (tmp_path / "out").exists()


@pytest.fixture
def cli():
    return lambda *words: CliRunner().invoke(main, ["govern", *map(str, words)])


def test_the_command_line(cli, raw, tmp_path):
    out = tmp_path / "out"
    dry = cli(raw, "--dry-run", "--max-reject-share", "1")
    assert dry.exit_code == 0
    assert not out.exists()
    assert "near_dup" in dry.stdout
    done = cli(raw, "-o", out)
    assert done.exit_code == 0, done.output
    assert done.stdout.splitlines()[-1] == f"mlx-hybrid finetune --data {out}/kept.jsonl"
    assert json.loads(cli(raw, "-o", out, "--replace", "--json").stdout)["kept"] == 13
    assert cli("verify", out).stdout.splitlines()[-1].startswith("mlx-hybrid ")
    assert cli("forget", out, "--id", "eng_Latn").stdout.splitlines()[-1] == f"mlx-hybrid govern verify {out}"
    (out / "kept.jsonl").write_text("")
    assert cli("verify", out).exit_code == 3


def test_a_dry_run_names_the_command_with_its_options(cli, raw, tmp_path):
    held_out = write_jsonl(tmp_path / "held out.jsonl", [{"text": SENTENCES["tha_Thai"]}])
    options = ["--languages", "en,de", "--against", str(held_out), "--redact", "--near-threshold", "0.7",
               "--max-reject-share", "1.0"]  # fmt: skip
    dry = cli(raw, "--dry-run", *options)
    assert dry.exit_code == 0, dry.output
    words = shlex.split(dry.stdout.splitlines()[-1])
    assert words == ["mlx-hybrid", "govern", str(raw), *options, "-o", "clean"]
    done = CliRunner().invoke(main, [*words[1:-1], str(tmp_path / "clean")])
    assert done.exit_code == 0, done.output
    assert done.stdout.splitlines()[:-1] == dry.stdout.splitlines()[:-1]


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (["none.jsonl", "--dry-run"], 2, "PATH: none.jsonl is not there"),
        (["EMPTY", "--dry-run"], 2, "no .jsonl file in the folder"),
        (["RAW"], 2, "--dry-run"),
        (["RAW", "--dry-run", "-o", "x"], 2, "--dry-run"),
        (["RAW", "--dry-run", "--languages", "sw,klingon"], 2, "klingon"),
        (["RAW", "--dry-run", "--only", "nears"], 2, 'did you mean "near"?'),
        (["RAW", "--dry-run", "--languages", "sw", "--skip", "language"], 2, "stage language is left out"),
        (["RAW", "--dry-run", "--only", "exact,near", "--redact"], 2, "stage personal is left out"),
        (["RAW", "RAW", "--dry-run"], 2, "named twice"),
        (["verify", "none"], 2, "no manifest.json"),
    ],
)
def test_bad_input_gets_one_clear_sentence(cli, raw, words, code, told):
    (raw.parent / "empty").mkdir()
    named = {"RAW": raw, "EMPTY": raw.parent / "empty"}
    result = cli(*(named.get(word, word) for word in words))
    assert result.exit_code == code
    assert told in result.output
    assert "Traceback" not in result.output


def test_importing_governance_is_light():
    code = (
        "import sys, mlx_hybrid.governance, mlx_hybrid.cli.govern; "
        "print([m for m in ('mlx.core', 'torch', 'py3langid', 'fasttext', 'ftfy', 'numpy') if m in sys.modules])"
    )
    env = {**os.environ, "PYTHONPATH": str(Path(curate.__file__).parents[2])}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, check=True)
    assert done.stdout.strip() == "[]"
