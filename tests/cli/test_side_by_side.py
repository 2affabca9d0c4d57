"""What base and adapter answer side by side after training: on the screen, in the run, on its page and card."""

import json
from pathlib import Path

import pytest
from acting import sets

import mlx_hybrid
from mlx_hybrid.jobs.finetune import GENERAL, LONGEST
from mlx_hybrid.publish.card import model_card, run_facts
from mlx_hybrid.report.run_page import run_page
from mlx_hybrid.report.tables import SHOWN, one_line
from mlx_hybrid.run import Run


def test_held_out_and_general_prompts_are_answered_by_both(finished, quantised_folder):
    path, stdout = finished("lora")
    rows = Run(path).samples()
    assert [row["kind"] for row in rows] == ["held out", *["general"] * len(GENERAL)]
    assert tuple(row["prompt"] for row in rows[1:]) == GENERAL
    for row in rows[:2]:
        for name, model in (("base", quantised_folder), ("adapted", path)):
            assert row[name] == mlx_hybrid.generate(model, row["prompt"], max_tokens=LONGEST).strip()
    assert "Answers, base beside adapter:" in stdout
    assert one_line(rows[0]["adapted"]) in stdout
    page, card = run_page(Run(path)), model_card(run_facts(Run(path)), "owner/name")
    assert rows[0]["prompt"] in page
    assert GENERAL[0] in page
    assert GENERAL[0] in card
    assert rows[0]["prompt"] not in card  # the card is published, the records are not


def test_one_s_own_prompts_are_asked_in_place_of_general_ones(finetune, lora, tmp_path):
    own = sets("train.steps=1", 'report.prompts=["Say no, please.", "Say so"]')
    finetune(*lora, *own)
    rows = Run(tmp_path / "trained").samples()
    assert [(row["kind"], row["prompt"]) for row in rows[1:]] == [
        ("yours", "Say no, please."),
        ("yours", "Say so"),
    ]


def test_the_log_says_what_happened_when(finished):
    lines = (finished("lora").path / "log.txt").read_text().splitlines()
    said = [line[20:] for line in lines]
    assert lines[0][:2] == "20"
    assert said[0].startswith("begun: ")
    assert said[-1] == "finished"
    for words in ("training from step 0 to 12", "validation loss", "trained 12 steps", "on a fresh base"):
        assert [line for line in said if words in line], words


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("two\nlines\t here", "two lines here"),
        ("\x1b[31mred\x07", "[31mred"),
        ("  ", "(nothing)"),
        ("x" * (SHOWN + 9), "x" * SHOWN + " …"),
    ],
)
def test_an_answer_is_one_safe_line(text, line):
    assert one_line(text) == line


def test_the_page_of_a_stopped_run_says_how_to_go_on(finished, run, tmp_path):
    path = tmp_path / "stopped"
    path.mkdir()
    for name in ("config.yaml", "run.json", "metrics.jsonl"):
        (path / name).write_bytes((finished("lora").path / name).read_bytes())
    info = json.loads((path / "run.json").read_text()) | {"status": "interrupted", "step": 6}
    (path / "run.json").write_text(json.dumps(info))
    (path / "checkpoints" / "step-0000006").mkdir(parents=True)
    (path / "checkpoints" / "step-0000006" / "progress.json").write_text("{}")
    run("report", path, pages=True, code=0)
    page = Path(path / "report.html").read_text()
    assert "interrupted. It stands at step 6; go on with: mlx-hybrid finetune --resume stopped" in page
