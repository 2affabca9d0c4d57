"""The documentation as a site, and that what it quotes is so."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[1]
DOCS = PROJECT / "docs"


@pytest.mark.slow
def test_the_site_builds_without_a_warning_and_fetches_nothing(tmp_path):
    pytest.importorskip("mkdocs")
    words = [sys.executable, "-W", "ignore", "-m", "mkdocs", "build", "-q", "-d", str(tmp_path)]
    done = subprocess.run(
        words, cwd=PROJECT, capture_output=True, text=True, env={"NO_MKDOCS_2_WARNING": "1"}
    )
    assert done.returncode == 0, done.stderr
    pages = {path.stem for path in DOCS.glob("*.md")}
    assert pages <= {path.stem for path in tmp_path.rglob("*.html")}
    for page in tmp_path.glob("*.html"):
        loaded = re.findall(r'(?:<script[^>]+src|<link[^>]+href|<img[^>]+src)="([^"]+)"', page.read_text())
        assert not [link for link in loaded if link.startswith(("http:", "https:", "//"))]


def test_every_page_is_in_the_navigation_once():
    told = re.findall(r": (\S+\.md)$", (PROJECT / "mkdocs.yml").read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(told) == sorted(path.name for path in DOCS.glob("*.md"))


def phrases() -> list[str]:
    rows = (DOCS / "troubleshooting.md").read_text(encoding="utf-8").splitlines()
    return [
        said for row in rows if row.startswith("| `") for said in re.findall(r"`(.+?)`", row.split("|")[1])
    ]


def test_every_error_of_the_troubleshooting_page_can_be_met():
    source = "".join(path.read_text(encoding="utf-8") for path in (PROJECT / "mlx_hybrid").rglob("*.py"))
    assert len(phrases()) > 40
    assert not [said for said in phrases() if said not in source]
