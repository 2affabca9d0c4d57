"""The sessions of README and of the start page run as they stand, only shorter."""

import re
import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner

from mlx_hybrid.cli import main

PROJECT = Path(__file__).resolve().parents[1]
SHARES = ["--set", "data.valid_share=0.02", "--set", "data.test_share=0.02"]
ONE_STEP = ["--steps", "1", "--batch-size", "2", *SHARES, "--set", "report.prompts=[Hello]"]
SHORTER = {"finetune": ONE_STEP, "generate": ["--max-tokens", "8"]}


def session(page: str) -> list[list[str]]:
    """The commands of the console blocks, without their prompt."""
    blocks = re.findall(r"```console\n(.*?)```", (PROJECT / page).read_text(), flags=re.DOTALL)
    return [shlex.split(line[2:]) for block in blocks for line in block.splitlines() if line.startswith("$ ")]


def test_the_sessions_show_the_main_job_and_what_follows():
    assert [words[1] for words in session("README.md")][:2] == ["finetune", "generate"]
    told = [words[1] for words in session("docs/index.md")]
    assert told[:3] == ["recipes", "finetune", "generate"]
    assert len(told) <= 6


@pytest.mark.slow
@pytest.mark.parametrize("page", ["README.md", "docs/index.md"])
def test_every_command_of_the_session_runs(page, quantised_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLX_HYBRID_RUNS", "runs")
    for program, *arguments in session(page):
        assert program == "mlx-hybrid"
        model = ["--model", str(quantised_folder)] if "support-chat.yaml" in arguments else []
        result = CliRunner().invoke(main, [*arguments, *model, *SHORTER.get(arguments[0], [])])
        assert result.exit_code in (0, 3 if model else 0), f"{arguments}: {result.stderr}"
        assert result.output.strip()
    assert {"report.html", "README.md"} <= {path.name for path in tmp_path.glob("runs/*/*")}


@pytest.mark.parametrize(
    "page", [PROJECT / "README.md", *sorted((PROJECT / "docs").glob("*.md"))], ids=lambda p: p.name
)
def test_every_link_leads_somewhere(page):
    links = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
    inside = [link for link in links if "://" not in link]
    assert inside or page.name != "README.md"
    assert not [link for link in inside if not (page.parent / link).exists()]
