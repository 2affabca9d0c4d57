"""A person's records out of a governed folder and out of what runs keep of it."""

import json
import shutil

import pytest
from governance.conftest import SENTENCES, digests, read_jsonl, write_jsonl

from mlx_hybrid.config import GovernanceConfig
from mlx_hybrid.errors import DataError
from mlx_hybrid.files import sha256_of
from mlx_hybrid.governance.folder.changing import forget
from mlx_hybrid.governance.folder.manifest import verify
from mlx_hybrid.governance.govern import govern_files
from mlx_hybrid.run import Run

FREE = GovernanceConfig(max_reject_share=1.0)


def test_forgetting(raw, tmp_path):
    out, runs = tmp_path / "out", tmp_path / "runs"
    govern_files([raw], out, FREE)
    old = sha256_of(out / "manifest.json")
    rows = [{"id": "fra_Latn"}, {"raw": '{"id": "fra_Latn", "text": 7}'}, {"text": "no id"}]
    set_aside = "".join(json.dumps(row) + "\n" for row in rows)
    for name, info in (("first", {"data": {"manifest": old}}), ("second", {}), ("third", {})):
        (runs / name).mkdir(parents=True)
        (runs / name / "run.json").write_text(json.dumps(info))
        (runs / name / "rejected.jsonl").write_text(set_aside if name != "third" else json.dumps(rows[2]))
    done = forget(out, ["fra_Latn", f"{raw}:14"], runs)
    # Line 14 is the English sentence under another language: its kept original goes, its copy and its near copy too.
    assert done["removed"] == {"kept.jsonl": 2, "rejected.jsonl": 3}
    assert done["runs"] == [str(runs / "first")]
    assert done["removed_from_runs"] == {str(runs / "first"): 2}
    assert read_jsonl(runs / "first" / "rejected.jsonl") == rows[2:]
    assert done["other_runs"] == [str(runs / "second")]
    assert (runs / "second" / "rejected.jsonl").read_text() == set_aside
    manifest = verify(out)
    assert manifest["parents"][-1]["sha256"] == old
    assert "fra_Latn" not in {row.get("id") for row in read_jsonl(out / "kept.jsonl")}
    assert forget(out, ["deu_Latn"], runs)["runs"] == [str(runs / "first")]
    before = digests(out)
    for nobody in ("nobody", "None"):
        with pytest.raises(DataError, match="nothing was changed"):
            forget(out, [nobody], runs)
    assert digests(out) == before


@pytest.mark.parametrize("older", [False, True])
def test_a_place_in_the_source_reaches_what_runs_keep(raw, tmp_path, older):
    """A run names places in `kept.jsonl`, and those of one trained before an earlier forgetting have moved since.

    An older run keeps only what it set aside, beside its adapter."""
    out, runs = tmp_path / "out", tmp_path / "runs"
    govern_files([raw], out, FREE)
    for name, info in (("first", {"data_manifests": [sha256_of(out / "manifest.json")]}), ("second", {})):
        (runs / name).mkdir(parents=True)
        (runs / name / "run.json").write_text(json.dumps(info))
        govern_files([out / "kept.jsonl"], runs / name / "data", GovernanceConfig(languages=("sw",)))
        if older:
            (runs / name / "data" / "rejected.jsonl").rename(runs / name / "rejected.jsonl")
            shutil.rmtree(runs / name / "data")
    set_aside = Run(runs / "first").rejected
    before = read_jsonl(set_aside)
    left = list(before)
    for line in (2, 19):  # one with an id and one without
        place = f"{raw}:{line}"
        text = json.loads(raw.read_text(encoding="utf-8").splitlines()[line - 1])["text"]
        left = [row for row in left if row["text"] != text]
        done = forget(out, [place], runs)
        assert done["removed"] == {"kept.jsonl": 1, "rejected.jsonl": 0}
        assert done["removed_from_runs"] == {str(runs / "first"): 1}
        assert done["other_runs"] == [str(runs / "second")]
        assert read_jsonl(set_aside) == left
    assert len(before) - len(left) == 2
    assert read_jsonl(Run(runs / "second").rejected) == before
    if older:
        return
    done = forget(out, ["swh_Latn"], runs)  # which the runs kept
    assert done["removed_from_runs"] == {str(runs / "first"): 1}
    assert done["other_runs"] == [str(runs / "second")]
    assert read_jsonl(runs / "first" / "data" / "kept.jsonl") == []
    assert len(verify(runs / "first" / "data")["forgotten"]) == 3


MAIL = "person2@example.org"
SAID = f"A careful pilot always checks the fuel before leaving the ground. Mail {MAIL}."
OTHER = "The museum closes early on Mondays during the winter months, said user-22."
LEFTOVERS = {
    "a copy under another id": (json.dumps({"text": SAID, "id": "user-99", "language": "en"}), True),
    "a copy under no id": (json.dumps({"text": SAID.upper()}), True),
    "another record of theirs": (json.dumps({"prompt": "Hi", "completion": "Yes", "id": "user-2"}), True),
    "no JSON with the id": ('{"id":"user-2","text":"person2 said', True),
    "no JSON with the text": ('{"text": "' + SAID.replace("g", "\\u0067") + '"', True),
    "no UTF-8 with the id": (b'{"id": "user-2", "text": "\xff"}', True),
    "no record with the id": (json.dumps({"id": "user-2", "text": 7}), True),
    "another's with a longer id": (json.dumps({"text": OTHER, "id": "user-22", "language": "en"}), False),
    "another's, broken": ('{"id": "user-22"', False),
}  # fmt: skip


@pytest.mark.parametrize("case", LEFTOVERS)
@pytest.mark.parametrize("redact", [False, True])
def test_nothing_of_a_person_is_left(case, redact, tmp_path):
    line, goes = LEFTOVERS[case]
    other = {"text": SENTENCES["deu_Latn"], "language": "de"}
    path = write_jsonl(tmp_path / "raw.jsonl", [{"text": SAID, "id": "user-2", "language": "en"}, other])
    with path.open("ab") as file:
        file.write((line if isinstance(line, bytes) else line.encode()) + b"\n")
    out = tmp_path / "out"
    govern_files([path], out, GovernanceConfig(max_reject_share=1.0, redact=redact))
    done = forget(out, ["user-2"], tmp_path / "runs")
    assert sum(done["removed"].values()) == 1 + goes
    assert not done["left"]
    names = "kept.jsonl", "rejected.jsonl", "report.html", "README.md"
    left = b"".join((out / name).read_bytes() for name in names)
    assert b"person2" not in left
    assert (b"user-22" in left) == (not goes)
    assert f"{2 - goes} of {2 - goes} records" in (out / "README.md").read_text() or not goes
    told = json.loads((out / "report.json").read_text())
    assert told["records"] == verify(out)["inputs"][0]["records"] == 3 - 1 - goes


def test_lines_that_still_name_them_are_told(tmp_path):
    other = {"text": f"Whoever reads it, {MAIL} wrote that letter to us.", "language": "en"}
    raw = write_jsonl(tmp_path / "raw.jsonl", [{"text": SAID, "id": 1, "language": "en"}, other])
    govern_files([raw], tmp_path / "out", FREE)
    done = forget(tmp_path / "out", ["1"], tmp_path / "runs")
    assert (done["removed"], done["left"]) == ({"kept.jsonl": 1, "rejected.jsonl": 0}, ["kept.jsonl:1"])


NUMBERED = {
    '{"id": 17, "text": "A': 1,
    '{"id": "17", "text": "A': 1,
    '{"id": 170, "text": "17': 0,
    '{"n": 5, "text": "17': 0,
}


@pytest.mark.parametrize(("line", "goes"), NUMBERED.items())
def test_a_number_is_an_id_where_one_stands(line, goes, tmp_path):
    path = write_jsonl(tmp_path / "raw.jsonl", [{"text": SAID, "id": 17, "language": "en"}, line])
    govern_files([path], tmp_path / "out", FREE)
    done = forget(tmp_path / "out", ["17"], tmp_path / "runs")
    assert done["removed"] == {"kept.jsonl": 1, "rejected.jsonl": goes}


def test_copies_are_found_under_the_keys_of_their_file(tmp_path):
    asked = {"q": "What does a pilot do?", "a": SAID}
    rows = [asked | {"id": name, "language": code} for name, code in (("p-1", "en"), ("p-2", "sw"))]
    raw = write_jsonl(tmp_path / "raw.jsonl", rows)
    govern_files([raw], tmp_path / "out", FREE, renames=("q=prompt,a=completion",))
    assert "What does a pilot do?" in (tmp_path / "out" / "report.html").read_text()
    done = forget(tmp_path / "out", ["p-1"], tmp_path / "runs")
    assert done["removed"] == {"kept.jsonl": 1, "rejected.jsonl": 1}
