"""An export does in stock transformers + PEFT what the adapter does here."""

import json
import shutil

import mlx.core as mx
import numpy as np
import pytest
from exporting import exported, made
from hf_bases import (
    ARCHITECTURES,
    LOW_RANK,
    METHODS,
    SIZES,
    dense_base,
    folder_of,
    greedy_ours,
    one_thread,  # noqa: F401
    trained,
)

from mlx_hybrid.errors import ConfigError
from mlx_hybrid.exports.adapter import open_source
from mlx_hybrid.exports.checks import Comparison, ExportMismatch
from mlx_hybrid.exports.export import Options, export
from mlx_hybrid.exports.forms import lora_form, make_forms
from mlx_hybrid.exports.peft import PREFIX, check_written, read_peft

pytestmark = [pytest.mark.peft, pytest.mark.usefixtures("one_thread")]

SAME_LOGITS = 1e-4  # float32 sums in another order; measured 2e-6 to 3e-5 on these models
PROOF = 100  # the adapter's effect, in units of that difference: a no-op export cannot pass
HALF_PRECISION = 0.01
"""Of the update, for a LoRA file cast to bf16: balanced factors lose 0.3 %, raw ones up to all."""


CASES = [(method, "llama", packed) for method in METHODS for packed in (False, True)]
CASES += [
    (method, architecture, method == "hybrid")
    for method in ("hybrid", "hybrid-boft")
    for architecture in ARCHITECTURES[1:]
]


@pytest.mark.parametrize(("method", "architecture", "packed"), CASES)
def test_peft_gives_our_logits(tmp_path, method, architecture, packed):
    report, _, _ = exported(tmp_path, method, architecture, packed=packed)

    logits = report.checks["logits"]
    assert logits["difference_logit"] <= SAME_LOGITS
    assert logits["effect_logit"] >= PROOF * logits["difference_logit"]
    assert report.kind == ("lora" if method in LOW_RANK else "oft and lora")
    assert report.base["kind"] == ("dequantised" if packed else "original")
    assert ("trained_base" in report.checks) == packed
    told = json.loads((tmp_path / "out" / "export.json").read_text())["checks"]["bf16"]
    assert 0 < told["kl_nats_per_token"] < 0.1
    assert 0 < told["base_kl_nats_per_token"] < 0.1
    readme = (tmp_path / "out" / "README.md").read_text()
    assert ("convert_lora_to_gguf.py" in readme) == (method in LOW_RANK)
    if method in LOW_RANK:
        check_one_rank(tmp_path / "out")
        check_half_precision(tmp_path / "out")
    else:
        check_bases_above(tmp_path / "out")


def check_bases_above(out):
    """The parts of a pair find the base above them."""
    for part in out.glob("*/adapter_config.json"):
        name = json.loads(part.read_text())["base_model_name_or_path"]
        assert (part.parent / name / "config.json").is_file()


@pytest.mark.parametrize("packed", [False, True], ids=["dense", "4-bit"])
def test_dora_is_carried_with_its_magnitudes(tmp_path, packed):
    report, source, weights = exported(tmp_path, "dora", packed=packed)
    logits = report.checks["logits"]
    assert logits["difference_logit"] <= SAME_LOGITS
    assert logits["effect_logit"] >= PROOF * logits["difference_logit"]
    assert json.loads((tmp_path / "out" / "adapter_config.json").read_text())["use_dora"] is True
    tamper(tmp_path / "out", lambda t: {k: v * (1.01 if "magnitude" in k else 1) for k, v in t.items()})
    faults = check_written(make_forms(source, weights), weights, [tmp_path / "out"])
    assert len(faults) == len(source.info.modules)


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("packed", [False, True], ids=["dense", "4-bit"])
def test_peft_finds_the_base_by_itself_from_inside_the_folder(tmp_path, monkeypatch, packed):
    from peft import AutoPeftModelForCausalLM

    exported(tmp_path, "lora", packed=packed)
    text = (tmp_path / "out" / "adapter_config.json").read_text()
    name = json.loads(text)["base_model_name_or_path"]
    assert name == ("base" if packed else "llama")
    assert (tmp_path / "out" / name / "config.json").is_file()
    assert 'AutoPeftModelForCausalLM.from_pretrained(".")' in (tmp_path / "out" / "README.md").read_text()
    monkeypatch.chdir(tmp_path / "out")
    model = AutoPeftModelForCausalLM.from_pretrained(".")
    assert any("lora" in name for name, _ in model.named_parameters())


@pytest.mark.filterwarnings("ignore::FutureWarning")  # PEFT asks transformers by an older name
@pytest.mark.parametrize(("method", "architecture"), [("hybrid", "llama"), ("hybrid-boft", "gemma3_text")])
def test_peft_speaks_the_same_tokens(tmp_path, method, architecture):
    """Independent of the export's own check, from the README's own lines."""
    import torch
    from peft import PeftConfig, PeftMixedModel, PeftModel
    from transformers import AutoModelForCausalLM

    report, _, _ = exported(tmp_path, method, architecture)
    out, base = tmp_path / "out", folder_of(architecture)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    if "load_order" in report.facts:
        names = report.facts["load_order"]
        assert str(names) in (out / "README.md").read_text()
        model = PeftMixedModel(model, PeftConfig.from_pretrained(out / names[0]), names[0])
        for name in names:
            model.load_adapter(out / name, adapter_name=name)
        model.set_adapter(names)
    else:
        model = PeftModel.from_pretrained(model, out)
    model.eval()

    prompt = [5, 9, 40, 17]
    ids = torch.tensor([prompt])
    with torch.no_grad():
        for _ in range(12):
            ids = torch.cat([ids, model(ids).logits[:, -1].argmax(-1, keepdim=True)], dim=1)

    adapter = trained(method, architecture)
    assert ids[0].tolist() == greedy_ours(base, adapter, prompt, 12)
    assert ids[0].tolist() != greedy_ours(base, None, prompt, 12)


def check_one_rank(out):
    """One rank, unit scale, no patterns, short names: what every server reads alike."""
    config = json.loads((out / "adapter_config.json").read_text())
    folder = read_peft(out)
    assert config["lora_alpha"] == config["r"]
    assert not config.get("rank_pattern")
    assert not config.get("alpha_pattern")
    assert config["use_rslora"] is False
    assert {len(t["lora_A.weight"]) for t in folder.tensors.values()} == {config["r"]}
    assert config["target_modules"] == sorted({m.rpartition(".")[2] for m in folder.tensors})


def check_half_precision(out):
    """bf16, in which servers hold a LoRA, keeps the update."""
    folder = read_peft(out)
    for module in folder.tensors:
        a, b = folder.factors(module)
        whole, half = a @ b, rounded(a) @ rounded(b)
        assert np.linalg.norm(half - whole) <= HALF_PRECISION * np.linalg.norm(whole)


def rounded(value: np.ndarray) -> np.ndarray:
    half = mx.array(value.astype(np.float32)).astype(mx.bfloat16)
    return np.array(half.astype(mx.float32), dtype=np.float64)


def test_lora_form_is_the_merged_weight(tmp_path):
    """W Rᵀ + s(AB)ᵀ − W, by the layer itself, is the product of the factors."""
    for method in LOW_RANK:
        source = open_source(str(trained(method, "phi3")), model=folder_of("phi3"))
        for module in source.info.modules:
            layer = source.layer(module, source.base)
            update = np.array(layer.merged_weight() - layer.linear.weight).T
            (a, b), _ = lora_form(layer, np.zeros((1, len(update))))
            assert np.abs(a @ b - update).max() <= 1e-5 * np.abs(update).max() + 1e-6


def test_modules_have_ranks_that_differ_and_one_is_written(tmp_path):
    source = open_source(str(trained("hybrid-unitary", "llama")), model=folder_of("llama"))
    forms = make_forms(source, source.base)
    ranks = {module: a.shape[1] for module, (a, _) in forms.lora.items()}
    assert len(set(ranks.values())) >= 3
    assert forms.rank == max(ranks.values()) == 8
    assert ranks["model.layers.1.mlp.down_proj"] == 4


def test_an_original_named_by_id_is_exported_for(tmp_path):
    report, _, _ = made(tmp_path, "hybrid", packed=True, base_id=folder_of("llama"))
    assert report.base["kind"] == "original"
    assert not (tmp_path / "out" / "base").exists()
    assert report.checks["trained_base"]["kl_nats_per_token"] > 0


def test_another_original_is_refused(tmp_path):
    other = tmp_path / "other"
    shutil.copytree(dense_base("llama"), other)
    tensors = mx.load(str(other / "model.safetensors"))
    tensors = {k: mx.random.normal(v.shape) if v.ndim == 2 else v for k, v in tensors.items()}
    mx.save_safetensors(str(other / "model.safetensors"), tensors, metadata={"format": "pt"})
    with pytest.raises(ConfigError, match="another model"):
        made(tmp_path, "hybrid", packed=True, base_id=str(other))
    with pytest.raises(ConfigError, match="quantised itself"):
        made(tmp_path, "hybrid", packed=True, base_id=folder_of("llama", packed=True))
    assert not (tmp_path / "out").exists()


def test_the_wrong_trained_base_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="was trained on"):
        export(str(trained("hybrid", "llama")), "peft", tmp_path / "out", Options(model=folder_of("qwen3")))


def tamper(folder, change):
    """Rewrite the tensors of a PEFT folder."""
    path = folder / "adapter_model.safetensors"
    tensors = change(dict(mx.load(str(path))))
    mx.eval(list(tensors.values()))
    mx.save_safetensors(str(path), tensors, metadata={"format": "pt"})


def swapped(tensors):
    """The two layers' `up_proj`, each under the other's name."""
    other = {".0.mlp.up_proj": ".1.mlp.up_proj", ".1.mlp.up_proj": ".0.mlp.up_proj"}
    ends = {name: name[len(PREFIX) + len("model.layers") :].partition(".lora")[0] for name in tensors}
    return {name.replace(end, other.get(end, end)): tensors[name] for name, end in ends.items()}


@pytest.mark.parametrize(
    ("change", "said", "count"),
    [
        (lambda t: {k: v for k, v in t.items() if ".1.mlp.up_proj." not in k}, "up_proj is missing", 1),
        (swapped, "up_proj is off by", 2),
        (
            lambda t: {k.replace("up_proj", "upper_proj"): v for k, v in t.items()},
            "the base has no model.layers.0.mlp.upper_proj",
            1,
        ),
    ],
    ids=["a missing layer", "shuffled keys", "names the base lacks"],
)
def test_files_that_say_another_thing_are_detected(tmp_path, change, said, count):
    _, source, weights = exported(tmp_path, "hybrid")
    tamper(tmp_path / "out", change)
    faults = check_written(make_forms(source, weights), weights, [tmp_path / "out"])
    assert len([fault for fault in faults if said in fault]) == count


@pytest.mark.parametrize("value", [True, None], ids=["flag", "default"])
def test_a_flipped_oft_convention_is_detected(tmp_path, value):
    """The Neumann flag, and PEFT's default without a flag, turn the other way."""
    report, source, weights = exported(tmp_path, "hybrid-boft")
    folders = [tmp_path / "out" / name for name in report.facts["load_order"]]
    path = folders[0] / "adapter_config.json"
    config = json.loads(path.read_text())
    assert config["use_cayley_neumann"] is False
    config["use_cayley_neumann"] = value
    path.write_text(json.dumps({k: v for k, v in config.items() if v is not None}))
    faults = check_written(make_forms(source, weights), weights, folders)
    assert len(faults) == len(read_peft(folders[0]).tensors)


def test_a_failed_check_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr("mlx_hybrid.exports.checks.Comparison.TOLERANCE", 0.0)
    monkeypatch.setattr("mlx_hybrid.exports.checks.Comparison.ROOM", 0.0)
    with pytest.raises(ExportMismatch, match="logits differ") as caught:
        made(tmp_path, "hybrid")
    assert caught.value.exit_code == 3
    assert list(tmp_path.glob("*out*")) == []

    report, _, _ = made(tmp_path, "hybrid", force=True)
    assert not report.passed
    assert json.loads((tmp_path / "out" / "export.json").read_text())["passed"] is False


def test_a_base_that_is_read_differently_is_named_as_the_cause(tmp_path, monkeypatch):
    """What torch is given has another base of positions."""
    from mlx_hybrid.exports import checks

    right = checks.torch_logits

    def otherwise(folder, tokens, adapters):
        shutil.copytree(folder, other := tmp_path / "other")
        tree = json.loads((other / "config.json").read_text())
        tree["rope_parameters"]["rope_theta"] = tree["rope_theta"] = 7.0
        (other / "config.json").write_text(json.dumps(tree))
        return right(other, tokens, adapters)

    monkeypatch.setattr(checks, "torch_logits", otherwise)
    with pytest.raises(ExportMismatch, match=r"the two read the base itself, its config.json, differently"):
        made(tmp_path, "hybrid")


def test_a_taken_place_is_refused(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("years of work")
    with pytest.raises(ConfigError, match="exists already"):
        made(tmp_path, "hybrid")
    assert (tmp_path / "out" / "thesis.txt").read_text() == "years of work"


def test_without_pytorch_the_algebra_is_checked(tmp_path, monkeypatch):
    monkeypatch.setattr("mlx_hybrid.exports.checks.find_spec", lambda name: None)
    report, _, _ = made(tmp_path, "hybrid-boft")
    assert report.checks["logits"] is None
    assert any("pip install 'mlx-hybrid[peft]'" in note for note in report.notes)
    assert report.passed


@pytest.mark.parametrize(
    ("figures", "passed"),
    [
        ((2e-5, 0.0, 5.0, 8.0), True),
        ((2e-3, 0.0, 5.0, 8.0), False),
        ((2e-3, 1e-3, 5.0, 8.0), True),  # they differ on the base itself, and the adapter shows through
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


@pytest.mark.parametrize(("method", "to"), [("hybrid", "peft"), ("hybrid-boft", "peft"), ("dora", "merged")])
def test_an_export_at_a_part_of_its_strength_passes_its_check_and_moves_less(method, to, tmp_path):
    adapter, base = trained(method, "llama"), folder_of("llama")
    whole, half = (
        export(str(adapter), to, tmp_path / str(t), Options(model=base, strength=t)) for t in (1.0, 0.5)
    )
    assert 0 < half.checks["logits"]["effect_logit"] < whole.checks["logits"]["effect_logit"]
    assert (half.facts["strength"], whole.facts.get("strength")) == (0.5, None)
