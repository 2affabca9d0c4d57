"""README's own session runs as it stands, only shorter."""

import re
import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner

from mlx_hybrid.cli import main

PROJECT = Path(__file__).resolve().parents[1]
SHORTER = {
    "finetune": ["--set", "train.steps=1", "--set", "train.batch_size=2", "--set", "data.valid_share=0.001",
                 "--set", "data.test_share=0.01", "--set", "adapter.sketch.records=1"],
    "generate": ["--max-tokens", "8"],
}  # fmt: skip


def session() -> list[list[str]]:
    """The commands of the console block, without their prompt."""
    block = re.search(r"```console\n(.*?)```", (PROJECT / "README.md").read_text(), flags=re.DOTALL)
    return [shlex.split(line[2:]) for line in block.group(1).splitlines() if line.startswith("$ ")]


def test_the_session_shows_the_main_job_and_what_follows():
    assert [words[1] for words in session()][:2] == ["finetune", "generate"]


@pytest.mark.slow
def test_every_command_of_the_session_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLX_HYBRID_RUNS", "runs")
    for program, *arguments in session():
        assert program == "mlx-hybrid"
        result = CliRunner().invoke(main, [*arguments, *SHORTER.get(arguments[0], [])])
        assert result.exit_code == 0, f"{arguments}: {result.stderr}"
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
