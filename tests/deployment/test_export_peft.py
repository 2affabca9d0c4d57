"""An export does in stock transformers + PEFT what the adapter does here."""

import pytest
from hf_bases import ARCHITECTURES, LOW_RANK, METHODS, dense_base, packed_base, trained

from mlx_hybrid.deployment.export import Options, export

pytestmark = pytest.mark.peft

SAME_LOGITS = 1e-4  # float32 sums in another order; measured 1e-6 to 2e-5 on these models
PROOF = 100  # the adapter's effect, in units of that difference: a no-op export cannot pass


@pytest.mark.parametrize("packed", [False, True], ids=["dense", "4-bit"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("method", METHODS)
def test_peft_gives_our_logits(tmp_path, method, architecture, packed):
    adapter = trained(method, architecture, packed=packed)
    model = str((packed_base if packed else dense_base)(architecture))

    report = export(str(adapter), "peft", tmp_path / "out", Options(model=model))

    logits = report.checks["logits"]
    assert logits["difference_logit"] <= SAME_LOGITS
    assert logits["effect_logit"] >= PROOF * logits["difference_logit"]
    assert report.kind == ("lora" if method in LOW_RANK else "oft and lora")
    assert report.base["kind"] == ("dequantised" if packed else "original")
