"""Records and a way to call the command line."""

import json
from contextlib import nullcontext
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest
from acting import acting
from click.testing import CliRunner, Result
from pages import no_pages

from mlx_hybrid.cli import main

WORDS = [
    "river", "stone", "cloud", "bread", "train", "music", "garden", "winter", "letter", "candle", "window", "market",
    "bridge", "forest", "pocket",
]  # fmt: skip


def command(*arguments: object, pages: bool = False) -> Result:
    with nullcontext() if pages else no_pages():
        return CliRunner().invoke(main, [str(a) for a in arguments])


@pytest.fixture(scope="session")
def run():
    """Call mlx-hybrid in this process; a Result with output (stdout), stderr and exit_code."""
    return command


@pytest.fixture(scope="session")
def records(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A labelled task that a tiny model can learn: whether a word of two letters comes first or last."""
    path = tmp_path_factory.mktemp("records") / "records.jsonl"
    rows = [
        {
            "id": f"r{i}",
            "group": f"g{i}",
            "language": "en",
            "label": "up" if i % 2 else "down",
            "messages": [
                {"role": "user", "content": f"{'no' if i % 2 else 'so'} {a} {b}"},
                {"role": "assistant", "content": "up" if i % 2 else "down"},
            ],
        }
        for i, (a, b) in enumerate((a, b) for a in WORDS for b in WORDS[:6] if a != b)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="session")
def settings() -> list[str]:
    """A run of a few seconds."""
    return [
        "--set", "governance.enabled=false", "--set", "train.steps=12", "--set", "train.batch_size=8",
        "--set", "train.report_every=4", "--set", "train.validate_every=6", "--set", "data.test_share=0.2",
        "--set", "adapter.sketch.records=8", "--set", "train.learning_rate=2e-3",
        "--set", "train.orthogonal_learning_rate=2e-3",
    ]  # fmt: skip


class Finished(NamedTuple):
    path: Path
    stdout: str


@pytest.fixture(scope="session")
def finished(
    tmp_path_factory: pytest.TempPathFactory, quantised_folder: Path, records: Path, settings: list[str]
):
    """The finished run of a method, trained once: to be read, not written in."""
    folder = tmp_path_factory.mktemp("finished")

    @cache
    def train(method: str) -> Finished:
        done = command(
            "finetune", "--model", quantised_folder, "--data", records, "-o", folder / method,
            *acting(settings, method), "--method", method,
        )  # fmt: skip
        assert done.exit_code == 0, done.stderr
        return Finished(folder / method, done.stdout)

    return train
