"""One tiny base and one run on it, made once."""

import pytest
from tiny_model import write_base, write_run

from mlx_hybrid.deployment.pair import open_pair


@pytest.fixture(scope="session")
def base_folder(tmp_path_factory):
    return write_base(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def run(tmp_path_factory, base_folder):
    return write_run(tmp_path_factory.mktemp("runs") / "trial", base_folder)


@pytest.fixture(scope="session")
def pair(run):
    return open_pair(str(run.path))
