"""PEFT adapters, made by PEFT itself, do the same here; what cannot be carried is refused with the reason."""

import json

import pytest
from hf_bases import dense_base, one_thread, packed_base, trained  # noqa: F401

from mlx_hybrid.errors import ConfigError
from mlx_hybrid.exports import peft as peft_files
from mlx_hybrid.exports.checks import ExportMismatch
from mlx_hybrid.exports.export import Options, export
from mlx_hybrid.exports.peft_import import import_peft

pytestmark = [
    pytest.mark.peft,
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),  # PEFT asks transformers by an older name
    pytest.mark.filterwarnings("ignore::UserWarning:peft"),
]

SAME_LOGITS = 1e-4  # float32 sums in another order
ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def made_by_peft(folder, kind: str, size: float = 0.05, architecture: str = "llama", **settings):
    """A random adapter written by PEFT's own `save_pretrained`."""
    import peft
    import torch
    from transformers import AutoModelForCausalLM

    config = getattr(peft, f"{kind}Config")(task_type="CAUSAL_LM", **{"target_modules": ALL, **settings})
    model = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(dense_base(architecture)), config)
    torch.manual_seed(3)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "magnitude" in name:  # lengths of rows
                value.mul_(1 + size * torch.randn_like(value))
            elif any(part in name for part in ("lora_", "oft_R", "hra_u")):
                value.add_(size * torch.randn_like(value))
    model.save_pretrained(folder)
    return folder


def imported(folder, kind="Lora", base="llama", change=None, **settings):
    """The report of importing what PEFT made, with `change` made to its config."""
    if not (folder / "peft").exists():
        made_by_peft(folder / "peft", kind, **settings)
    if change:
        path = folder / "peft" / "adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | change))
    return import_peft(folder / "peft", folder / "ours", base=str(dense_base(base)))


CARRIED = {
    "lora": ("Lora", {"r": 6, "lora_alpha": 12}),
    "rslora": ("Lora", {"r": 6, "lora_alpha": 12, "use_rslora": True}),
    "patterns": (
        "Lora",
        {"r": 4, "rank_pattern": {"q_proj": 7, "layers.1.mlp.up_proj": 2}, "alpha_pattern": {"down_proj": 3}},
    ),
    "some modules": ("Lora", {"r": 4, "target_modules": ["q_proj", "down_proj"], "layers_to_transform": [1]}),
    "oft": ("OFT", {"oft_block_size": 16, "use_cayley_neumann": False}),
    "oft far": ("OFT", {"oft_block_size": 16, "use_cayley_neumann": False, "size": 0.4}),
    "oft by count": ("OFT", {"r": 4, "oft_block_size": 0, "use_cayley_neumann": False}),
    "oft shared": ("OFT", {"oft_block_size": 16, "use_cayley_neumann": False, "block_share": True}),
    "oft neumann": ("OFT", {"oft_block_size": 8, "use_cayley_neumann": True, "size": 0.002}),
    "oft neumann far": ("OFT", {"oft_block_size": 16, "size": 0.01}),
    "dora": ("Lora", {"r": 6, "lora_alpha": 12, "use_dora": True}),
    "hra": ("HRA", {"r": 6}),
    "hra orthogonal": ("HRA", {"r": 6, "apply_GS": True}),
}


@pytest.mark.parametrize("case", CARRIED)
def test_imported_gives_peft_logits(tmp_path, case):
    kind, settings = CARRIED[case]
    report = imported(tmp_path, kind, **settings)
    logits = report.checks["logits"]
    assert logits["difference_logit"] <= SAME_LOGITS
    assert logits["effect_logit"] >= 100 * logits["difference_logit"]
    if case == "oft neumann far":  # what a series lacks of a rotation is stated
        assert 1e-6 < report.facts["neumann_defect"] < 1e-2
        assert any("off a rotation by" in note for note in report.notes)


REFUSED = {
    "bias": ("Lora", {"lora_bias": True}, "lora_bias"),
    "saved modules": ("Lora", {"modules_to_save": ["lm_head"]}, "modules_to_save"),
    "coft": ("OFT", {"oft_block_size": 16, "coft": True}, "coft"),
    "odd reflections": ("HRA", {"r": 5}, "inside out"),
    "another kind": ("Vera", {"target_modules": ["o_proj"]}, "a VERA adapter"),
    "a start that changed the base": (
        "Lora",
        {"change": {"init_lora_weights": "pissa_niter_4"}},
        "changes the base weights",
    ),
    "unknown": ("Lora", {"change": {"twist": 0.3}}, "twist is 0"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_carried_is_refused(tmp_path, case):
    kind, settings, reason = REFUSED[case]
    with pytest.raises(ConfigError, match=reason):
        imported(tmp_path, kind, **settings)
    assert not (tmp_path / "ours").exists()


def test_what_does_not_fit_or_is_broken_is_named(tmp_path):
    with pytest.raises(ConfigError, match="which the base does not have"):
        imported(tmp_path, base="phi3", r=4)
    path = tmp_path / "peft" / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(ConfigError, match="cut off"):
        imported(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="no PEFT adapter there"):
        import_peft(tmp_path / "empty", tmp_path / "ours", base=str(dense_base("llama")))


def test_a_file_that_says_another_thing_than_it_does_is_found(tmp_path, monkeypatch):
    """The check is real: leaves that were carried wrongly do not pass it."""
    right = peft_files.PeftFolder.reflections
    monkeypatch.setattr(peft_files.PeftFolder, "reflections", lambda self, m: right(self, m)[:, ::-1])
    with pytest.raises(ExportMismatch, match="logits differ from transformers and PEFT"):
        imported(tmp_path, "HRA", r=4)


def test_on_a_packed_base_it_is_compared_unpacked(tmp_path):
    made_by_peft(tmp_path / "peft", "HRA", r=4)
    report = import_peft(tmp_path / "peft", tmp_path / "ours", base=str(packed_base("llama")))
    assert report.passed
    assert report.checks["logits"]["difference_logit"] <= SAME_LOGITS
    assert report.checks["logits"]["effect_logit"] >= 100 * report.checks["logits"]["difference_logit"]


@pytest.mark.parametrize("method", ["lora-ga", "hybrid", "boft", "hybrid-boft"])
def test_out_and_in_and_out_again_gives_the_same_bytes(tmp_path, method):
    """Every export of an import is the same file, and none adds to the error of the first."""
    base = str(dense_base("llama"))
    name = trained(method, "llama")
    files = []
    for turn in range(3):
        out = tmp_path / f"peft-{turn}"
        report = export(str(name), "peft", out, Options(model=base))
        files.append({p.relative_to(out): p.read_bytes() for p in out.rglob("adapter_*")})
        assert report.checks["logits"]["difference_logit"] <= SAME_LOGITS
        if turn < 2:
            name = tmp_path / f"ours-{turn}"
            back = import_peft(out, name, base=base)
            assert back.checks["logits"]["difference_logit"] <= SAME_LOGITS
    assert files[1] == files[2]
    assert files[0].keys() == files[1].keys()
