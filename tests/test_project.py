"""What the repository promises of itself: sizes, rooms, words it does not say."""

import re
import subprocess
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[1]
LONGEST = 300  # lines of a module: past it a file is more than one idea
LARGEST_MB = 9  # the weights of the bundled base are 8.03


def tracked(pattern: str) -> list[Path]:
    done = subprocess.run(["git", "ls-files", "-z", pattern], cwd=PROJECT, capture_output=True, text=True)
    if done.returncode:
        pytest.skip("not a git checkout")
    return [PROJECT / name for name in done.stdout.split("\0") if name and (PROJECT / name).is_file()]


def test_files_stay_small():
    assert not [
        p for p in tracked("mlx_hybrid/*.py") if len(p.read_text(encoding="utf-8").splitlines()) > LONGEST
    ]
    assert not [p for p in tracked("*") if p.stat().st_size > LARGEST_MB * 1e6]


def test_no_benchmark_data_is_tracked():
    names = ("xnli", "flores200", "sib200", "ntrex128", "tico19")
    assert not [p for p in tracked("*") if set(p.relative_to(PROJECT).parts[:-1]) & set(names)]


def test_no_path_of_a_machine_is_told():
    for path in tracked("*"):
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        assert "/root" + "/" not in text, path
        assert "/work" + "/" not in text, path


def test_the_map_names_every_room_and_files_that_are_there():
    package = PROJECT / "mlx_hybrid"
    rows = [line.split("|") for line in (PROJECT / "docs" / "rooms.md").read_text().splitlines()]
    named = {name for row in rows if len(row) > 3 for name in re.findall(r"`(\w+)", row[1])}
    assert named == {path.stem for path in package.iterdir() if not path.name.startswith("__")}
    begun = [name for row in rows if len(row) > 3 for name in re.findall(r"`(.+?)`", row[3])]
    assert not [name for name in begun if not (package / name).is_file()]
