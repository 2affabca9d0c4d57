"""Runs without their page and card: the figures take a second, and few tests look at them."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest


@contextmanager
def no_pages() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mlx_hybrid.jobs.finetune.write_pages", lambda run: None)
        yield
