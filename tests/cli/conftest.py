"""Records and a way to call the command line."""

from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest
from acting import acting, sets, write_rows
from click.testing import Result
from commanding import command

WORDS = [
    "river", "stone", "cloud", "bread", "train", "music", "garden", "winter", "letter", "candle", "window", "market",
    "bridge", "forest", "pocket",
]  # fmt: skip

MEASURED, UNMEASURED = ("lora", "hybrid"), sets("evaluate=false")


@pytest.fixture(scope="session")
def run():
    """Call mlx-hybrid in this process; a Result with output (stdout), stderr and exit_code, which `code` checks."""
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
    return write_rows(path, rows)


@pytest.fixture(scope="session")
def settings() -> list[str]:
    """A run of a few seconds."""
    return sets(
        "governance.enabled=false", "train.steps=12", "train.batch_size=8", "train.report_every=4",
        "train.validate_every=6", "data.test_share=0.2", "train.learning_rate=4e-3",
    )  # fmt: skip


@pytest.fixture(scope="session")
def lora(settings: list[str]) -> list[str]:
    """The same of a method that every format takes."""
    return [*acting(settings, "lora"), "--method", "lora"]


@pytest.fixture
def finetune(quantised_folder: Path, records: Path, tmp_path: Path):
    """Call `finetune`, on the tiny model, the records and `tmp_path`/trained unless told otherwise."""

    def call(
        *more: object, model=quantised_folder, data=records, output=tmp_path / "trained", **how
    ) -> Result:
        return command("finetune", "--model", model, "--data", data, "-o", output, *more, **how)

    return call


class Finished(NamedTuple):
    path: Path
    stdout: str


@pytest.fixture(scope="session")
def finished(
    tmp_path_factory: pytest.TempPathFactory, quantised_folder: Path, records: Path, settings: list[str]
):
    """The finished run of a method, trained once: to be read, not written in. Two of them are measured."""
    folder = tmp_path_factory.mktemp("finished")

    @cache
    def train(method: str) -> Finished:
        done = command(
            "finetune", "--model", quantised_folder, "--data", records, "-o", folder / method,
            *acting(settings, method), "--method", method, *([] if method in MEASURED else UNMEASURED), code=0,
        )  # fmt: skip
        return Finished(folder / method, done.stdout)

    return train
