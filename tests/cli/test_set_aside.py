"""What governance set aside stays with the run, line by line, and goes nowhere else."""

import json

import pytest
from acting import refused, sets

from mlx_hybrid.governance import govern
from mlx_hybrid.publish.hub import plan
from mlx_hybrid.run import Run

MARK = "zebra-4711"


@pytest.fixture
def dirty(records, tmp_path):
    """The records, with lines that governance objects to; each of those holds the mark."""
    lines = records.read_text().splitlines()
    marked = json.loads(lines[3]) | {"id": MARK, "share": float("nan")}
    path = tmp_path / "dirty.jsonl"
    odd = [f'{{"text": "{MARK}"}}', f'{{"messages": "{MARK}', json.dumps(marked), f'"{MARK}"']
    path.write_text("\n".join([*lines[:10], *odd, *lines[10:]]) + "\n")
    return path


GOVERNED = sets("governance.enabled=true", "governance.only=[exact]", "train.steps=2", "evaluate=false")


def test_the_run_holds_them_as_govern_would_and_nothing_else_does(run, finetune, dirty, lora, tmp_path):
    output, clean, exported = (tmp_path / name for name in ("trained", "clean", "export"))
    done = finetune(*lora, *GOVERNED, data=dirty, code=0)
    assert f"Set aside, each with its reason: {output / 'data' / 'rejected.jsonl'}" in done.stderr
    run("govern", dirty, "-o", clean, "--only", "exact", code=0)
    lines = Run(output).rejected.read_bytes()
    notes = [json.loads(line)["_gov"] for line in lines.splitlines()]
    assert [note["reason"] for note in notes] == ["mixed_kinds", "bad_json", "exact_dup", "not_object"]
    assert lines.count(MARK.encode()) == 4
    for name in ("kept.jsonl", "rejected.jsonl", "report.html"):
        assert (output / "data" / name).read_bytes() == (clean / name).read_bytes()
    run("govern", "verify", output / "data", code=0)
    published = plan(output, "me/trained")
    for name in ("kept.jsonl", "rejected.jsonl", "manifest.json", "report.html"):
        assert f"data/{name}" in published.left_out
        assert not [path for path in published.files if path.endswith(name)]
    sent = [data if isinstance(data, bytes) else data.read_bytes() for data in published.files.values()]
    assert not [data for data in sent if MARK.encode() in data]
    run("export", output, "--to", "mlx-lm", "-o", exported, code=0)
    (exported / "rejected.jsonl").write_bytes(lines)
    assert "rejected.jsonl" in plan(exported, "me/trained").left_out
    (exported / "rejected.jsonl").unlink()
    Run(output).rejected.unlink()
    Run(output).rejected.with_name("report.html").unlink()  # governance's, which shows examples
    left = [path for folder in (output, exported) for path in folder.rglob("*") if path.is_file()]
    assert left
    assert not [path for path in left if MARK.encode() in path.read_bytes()]


def test_a_file_that_changes_meanwhile_is_no_evidence(finetune, dirty, settings, tmp_path, monkeypatch):
    copy = govern.copy_lines

    def copy_and_change(*arguments, **options):
        copy(*arguments, **options)
        dirty.write_text(dirty.read_text().replace(MARK, "other"))

    monkeypatch.setattr(govern, "copy_lines", copy_and_change)
    refused(finetune(*settings, *GOVERNED, data=dirty), 3, "changed while it was read")
    assert not (tmp_path / "trained").exists()
