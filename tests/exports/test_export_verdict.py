"""When two libraries count as saying the same."""

import pytest
from hf_bases import SIZES, dense_base, one_thread, trained  # noqa: F401

from mlx_hybrid.exports.export import Options, export
from mlx_hybrid.exports.logits import Comparison

pytestmark = [pytest.mark.peft, pytest.mark.usefixtures("one_thread")]

SAME_LOGITS = 1e-4  # float32 sums in another order


@pytest.mark.parametrize(
    ("figures", "passed"),
    [
        ((2e-5, 0.0, 5.0, 8.0), True),
        ((2e-3, 0.0, 5.0, 8.0), False),
        (
            (2e-3, 1e-3, 5.0, 8.0),
            True,
        ),  # the libraries differ on the base itself, and the adapter shows through
        ((2e-3, 1e-3, 0.1, 8.0), False),  # it does not
    ],
)
def test_what_counts_as_the_same(figures, passed):
    assert Comparison(*figures).passed is passed


def test_a_base_the_libraries_disagree_on_is_told_apart(tmp_path, monkeypatch):
    """mlx-lm rounds Gemma's embedding scale to bf16 and transformers in float32 does not: √80 shows it."""
    monkeypatch.setitem(SIZES, "hidden_size", 80)
    monkeypatch.setattr("hf_bases.root", lambda: tmp_path)
    base = dense_base.__wrapped__("gemma3_text")
    monkeypatch.setattr("hf_bases.dense_base", lambda _: base)
    adapter = trained.__wrapped__("lora", "gemma3_text")
    logits = export(str(adapter), "peft", tmp_path / "peft", Options(model=str(base))).checks["logits"]
    assert logits["difference_logit"] > SAME_LOGITS
    assert logits["difference_logit"] <= 4 * logits["base_difference_logit"]
    assert export(str(adapter), "merged", tmp_path / "merged", Options(model=str(base))).passed
