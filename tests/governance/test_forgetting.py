"""A person's records out of a governed folder and out of what runs keep of it."""

import json
import shutil

import pytest
from governance.conftest import digests, read_jsonl

from mlx_hybrid.config import GovernanceConfig
from mlx_hybrid.errors import DataError
from mlx_hybrid.files import sha256_of
from mlx_hybrid.governance.folder.forgetting import forget
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
    assert done.removed == {"kept.jsonl": 1, "rejected.jsonl": 1}
    assert done.runs == [str(runs / "first")]
    assert done.removed_from_runs == {str(runs / "first"): 2}
    assert read_jsonl(runs / "first" / "rejected.jsonl") == rows[2:]
    assert done.other_runs == [str(runs / "second")]
    assert (runs / "second" / "rejected.jsonl").read_text() == set_aside
    manifest = verify(out)
    assert manifest["parents"][-1]["sha256"] == old
    assert "fra_Latn" not in {row.get("id") for row in read_jsonl(out / "kept.jsonl")}
    assert json.loads((out / "croissant.json").read_text())["distribution"][0]["sha256"] == sha256_of(
        out / "kept.jsonl"
    )
    assert forget(out, ["deu_Latn"], runs).runs == [str(runs / "first")]
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
        assert done.removed == {"kept.jsonl": 1, "rejected.jsonl": 0}
        assert done.removed_from_runs == {str(runs / "first"): 1}
        assert done.other_runs == [str(runs / "second")]
        assert read_jsonl(set_aside) == left
    assert len(before) - len(left) == 2
    assert read_jsonl(Run(runs / "second").rejected) == before
    if older:
        return
    done = forget(out, ["swh_Latn"], runs)  # which the runs kept
    assert done.removed_from_runs == {str(runs / "first"): 1}
    assert done.other_runs == [str(runs / "second")]
    assert read_jsonl(runs / "first" / "data" / "kept.jsonl") == []
    assert len(verify(runs / "first" / "data")["forgotten"]) == 3
