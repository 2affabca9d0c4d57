"""Adapters exported at a part of their strength."""

import pytest
from hf_bases import folder_of, one_thread, trained  # noqa: F401

from mlx_hybrid.exports.export import Options, export

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize(("method", "to"), [("hybrid", "peft"), ("hybrid-boft", "peft"), ("dora", "merged")])
def test_an_export_at_a_part_of_its_strength_passes_its_check_and_moves_less(method, to, tmp_path):
    adapter, base = trained(method, "llama"), folder_of("llama")
    whole, half = (
        export(str(adapter), to, tmp_path / str(t), Options(model=base, strength=t)) for t in (1.0, 0.5)
    )
    assert 0 < half.checks["logits"]["effect_logit"] < whole.checks["logits"]["effect_logit"]
    assert (half.facts["strength"], whole.facts.get("strength")) == (0.5, None)
