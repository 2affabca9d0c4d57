"""One LoRA of a rank that vLLM takes: padded, exact, or truncated with what that loses."""

import json

import numpy as np
import pytest
from exporting import exported, made
from hf_bases import one_thread  # noqa: F401

from mlx_hybrid.errors import ConfigError
from mlx_hybrid.exports.checks import ExportMismatch
from mlx_hybrid.exports.peft import read_peft

pytestmark = [pytest.mark.peft, pytest.mark.usefixtures("one_thread")]


def test_truncated_lora_says_what_it_loses(tmp_path):
    with pytest.raises(ExportMismatch, match="of its update, and 5 % are allowed"):
        made(tmp_path, "boft", to="lora", rank=4)
    report, _, _ = made(tmp_path, "boft", to="lora", rank=64, tolerance=0.05)
    assert report.facts["rank"] in (8, 16, 32, 64, 128)
    assert max(report.facts["relative_error"].values()) <= 1e-4  # rank 64 is all of these layers
    assert report.checks["truncation"]["kl_nats_per_token"] < 1e-6


@pytest.mark.parametrize(("method", "asked", "written"), [("lora", None, 8), ("hybrid", 20, 32)])
def test_exact_lora_is_padded_to_a_rank_of_vllm(tmp_path, method, asked, written):
    report, _, _ = made(tmp_path, method, to="lora", rank=asked)
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert (config["r"], report.facts["rank"], report.facts["exact"]) == (written, written, True)
    assert report.checks["logits"]["passed"]


def product(folder, module) -> np.ndarray:
    a, b = read_peft(folder).factors(module)
    return a @ b


def test_an_exact_lora_is_cut_to_a_lower_rank(tmp_path):
    with pytest.raises(ExportMismatch, match=r"at rank 3 .* 5 % are allowed \(it is exact at rank 8\)"):
        made(tmp_path, "hybrid", to="lora", rank=3)
    (tmp_path / "cut").mkdir()
    report, _, _ = made(tmp_path / "cut", "hybrid", to="lora", rank=3, tolerance=1.0)
    exported(tmp_path, "hybrid", to="lora")
    assert (report.kind, report.facts["exact"], report.facts["rank"]) == ("truncated lora", False, 8)
    assert report.checks["truncation"]["kl_nats_per_token"] > 1e-6
    for module, said in report.facts["relative_error"].items():
        whole, near = product(tmp_path / "out", module), product(tmp_path / "cut" / "out", module)
        values = np.linalg.svd(whole, compute_uv=False)
        nearest = np.sqrt((values[3:] ** 2).sum() / (values**2).sum())  # Eckart-Young
        error = np.linalg.norm(whole - near) / np.linalg.norm(whole)
        assert said == pytest.approx(nearest, abs=1e-5)  # float32 files
        assert error == pytest.approx(nearest, abs=1e-5)
        assert np.linalg.matrix_rank(near, tol=1e-5 * values[0]) <= 3


def test_a_tolerance_needs_something_that_is_lost(tmp_path):
    for rank in (None, 8, 64):
        with pytest.raises(ConfigError, match="exactly a LoRA of rank 8, so --tolerance has nothing to"):
            made(tmp_path, "hybrid", to="lora", rank=rank, tolerance=0.1)
