"""Tests marked `data` need the development data: skipped where it is not, and never skipped where it is."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[1]


def data_folder() -> Path:
    return Path(os.environ.get("MLX_HYBRID_DATA", PROJECT.parent / "shared" / "data"))


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The development data."""
    folder = data_folder()
    if not folder.is_dir():
        pytest.skip(f"no development data at {folder}; set MLX_HYBRID_DATA")
    return folder


def pytest_configure(config: pytest.Config) -> None:
    """Print why tests were skipped, even with -q."""
    if "s" not in config.option.reportchars:
        config.option.reportchars += "s"


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    outcome = yield
    report = outcome.get_result()
    if report.skipped and item.get_closest_marker("data") and data_folder().is_dir():
        report.outcome = "failed"
        report.longrepr = f"a data test was skipped although {data_folder()} is there: {report.longrepr[2]}"
