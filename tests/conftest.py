"""What every test stands on: fixed seeds, no network, no home folder, checked shapes, honest data tests."""

import atexit
import os
import random
import shutil
import sys
import tempfile
from pathlib import Path

from jaxtyping import install_import_hook

from mlx_hybrid.models.blas import prefer_openblas

prefer_openblas()  # before anything imports mlx
SHAPED = ("adapters.butterfly", "adapters.householder", "training.loss", "training.optimizer")
install_import_hook([f"mlx_hybrid.{name}" for name in SHAPED], "shapes.checked")

CACHES = tempfile.mkdtemp(prefix="mlx-hybrid-caches-")
atexit.register(shutil.rmtree, CACHES, ignore_errors=True)
os.environ |= {  # read when the libraries are imported
    "HF_HOME": CACHES, "HF_HUB_CACHE": f"{CACHES}/hub", "XDG_CACHE_HOME": CACHES,
    "SACREBLEU": f"{CACHES}/sacrebleu",
    "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "false", "TRANSFORMERS_VERBOSITY": "error",
}  # fmt: skip

import mlx.core  # noqa: E402, F401 (the commands then leave the choice of a BLAS alone, and say nothing of it)
import numpy as np  # noqa: E402
import pytest  # noqa: E402

from mlx_hybrid.models.activations import use_fast_activations  # noqa: E402

use_fast_activations()  # as in every command, before a model is built
pytest_plugins = ["browser", "data_marker", "pytester", "real_models"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with a slow test come first, so that no worker is left with one when the other is done."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test starts from the same seeds, with a home and a runs folder of its own."""
    random.seed(0)
    np.random.seed(0)
    if "mlx.core" in sys.modules:
        sys.modules["mlx.core"].random.seed(0)
    home = tmp_path.with_name(f"{tmp_path.name}-home")
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("MLX_HYBRID_RUNS", str(home / "runs"))


@pytest.fixture
def default_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes that the test starts find no PyTorch."""
    path = [str(Path(__file__).with_name("default_install")), os.environ.get("PYTHONPATH")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, path)))


@pytest.fixture(scope="session")
def tokenizer():
    """Bytes with a ChatML template, as mlx-lm hands it over."""
    from toys import byte_tokenizer, wrapped

    return wrapped(byte_tokenizer())


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The dense tiny model on disk, with its tokenizer."""
    from toys import write_model

    return write_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def quantised_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model at 4 bits on disk, with its tokenizer."""
    from toys import write_model

    return write_model(tmp_path_factory.mktemp("models") / "tiny-4bit", "affine-4")


@pytest.fixture(scope="session")
def base_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny base with a chat template, for what is done to finished runs."""
    from tiny_model import write_base

    return write_base(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory, base_folder: Path):
    """One run on the tiny base, made once."""
    from tiny_model import write_run

    return write_run(tmp_path_factory.mktemp("runs") / "trial", base_folder)


@pytest.fixture(scope="session")
def pair(run):
    """That run's adapter on its base, and the base alone."""
    from mlx_hybrid.models.adapted import open_pair

    return open_pair(str(run.path))
