"""Packed weights are judged by the held-out loss of the run, and by the share of the update where there is none."""

import mlx.core as mx
import mlx.nn as nn
import pytest
from hf_bases import one_thread, packed_base, trained  # noqa: F401
from test_merge import shrink

from mlx_hybrid.exports import merge
from mlx_hybrid.exports.adapter import open_source
from mlx_hybrid.exports.checks import ExportMismatch
from mlx_hybrid.exports.export import Options, export
from mlx_hybrid.exports.merge import held_out_losses
from mlx_hybrid.models.base import load_base
from mlx_hybrid.records.examples import make_examples

ROWS = {"base": 2.0, "adapter": 1.0, "records": 20}


@pytest.fixture
def small(tmp_path):
    """An update so small that rounding takes more than a tenth of it."""
    return shrink(trained("lora", "llama", packed=True), tmp_path / "small", 0.02)


@pytest.mark.parametrize(
    ("losses", "fault"),
    [
        (ROWS | {"packed": 1.05}, None),
        (ROWS | {"packed": 0.9}, None),
        (
            ROWS | {"packed": 1.8},
            r"the base 2.000: packing keeps 20 % of the gain; without --requantise all of it",
        ),
        (ROWS | {"packed": 2.5}, r"packing keeps 0 % of the gain; .*--q-bits 8"),
        (None, r"only \d+ % of the update survives .*; without --requantise"),
        ({"base": 1.0, "adapter": 1.5, "packed": 1.2, "records": 20}, r"only \d+ % of the update survives"),
    ],
)
def test_the_loss_says_whether_packing_lost_the_tune(small, tmp_path, monkeypatch, losses, fault):
    monkeypatch.setattr("mlx_hybrid.exports.merge.held_out_losses", lambda *_: losses)
    model = str(packed_base("llama"))
    if fault:
        with pytest.raises(ExportMismatch, match=fault):
            export(str(small), "fuse", tmp_path / "out", Options(requantise=True, model=model))
        return
    report = export(str(small), "fuse", tmp_path / "out", Options(requantise=True, model=model))
    assert report.checks["survival"]["surviving_share"] < 0.9
    assert report.checks["held_out_loss"] == losses


def test_losses_are_of_what_the_run_held_out(run, base_folder, monkeypatch, tmp_path):
    """The base's own, against cross-entropy of whole rows; the base in place of a packed model has the same."""
    splits, again = [], merge.held_back
    monkeypatch.setattr(merge, "held_back", lambda *asked: splits.append(again(*asked)) or splits[0])
    losses = held_out_losses(open_source(str(run.path)), base_folder, base_folder)
    assert losses["packed"] == losses["base"] != losses["adapter"]
    assert losses["records"] > 5
    half = held_out_losses(open_source(str(run.path), strength=0.5, place=tmp_path), base_folder, base_folder)
    assert half["base"] == losses["base"] != half["adapter"] != losses["adapter"]
    base, nats, count = load_base(str(base_folder)), 0, 0
    for example in make_examples(splits[0].test, base.tokenizer, max_tokens=4096).examples:
        tokens, wanted = mx.array([example.tokens]), mx.array(example.trained[1:])
        each = nn.losses.cross_entropy(base.model(tokens[:, :-1])[0], tokens[0, 1:])
        nats, count = nats + (each * wanted).sum().item(), count + wanted.sum().item()
    assert losses["base"] == pytest.approx(nats / count, rel=1e-4)


def test_records_that_are_gone_leave_the_share_to_judge(small):
    base = packed_base("llama")
    assert held_out_losses(open_source(str(small), model=str(base)), base, base) is None
