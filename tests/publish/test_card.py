"""The model card: what the run wrote is on it, and what nobody measured is not."""

import hashlib
import json
import shutil

import pytest
from huggingface_hub import ModelCard

from mlx_hybrid.errors import ConfigError
from mlx_hybrid.evaluation.results import Results, Row, write_results
from mlx_hybrid.files import read_json, write_json
from mlx_hybrid.publish.card import Facts, is_made, model_card, run_facts, write_card
from mlx_hybrid.publish.hub import plan
from mlx_hybrid.run import Run


def figure(model, metric, value, language="all", n=20, half=0.1):
    return Row(metric, language, "", value, value - half, value + half, n, n, model)


def beside(metric, base, adapted, language="all", n=20):
    """The base's figure, the adapter's and the difference."""
    figures = (("base", base), ("adapted", adapted), ("difference", adapted - base))
    return [figure(model, metric, value, language, n) for model, value in figures]


HELD_OUT = [
    Row("loss", value=2.5, n=20, model="base"),
    Row("loss", value=1.25, n=20, model="adapted"),
    figure("difference", "loss", -1.25),
    *beside("accuracy", 0.3, 0.6),
    *beside("accuracy", 0.3, 0.7, "swh_Latn", 35),
    *beside("accuracy", 0.3, 0.35, "hau_Latn"),
]
SIB = [
    *beside("accuracy", 0.25, 0.75),
    *beside("macro_f1", 0.25, 0.75),
    *beside("accuracy", 0.25, 0.75, "yor_Latn", 30),
    *beside("ece", 0.3, 0.1),
    *beside("nll", 1.0, 1.0),
    *beside("brier", 0.5, 0.5),
]


@pytest.fixture
def measured_run(run, tmp_path):
    folder = tmp_path / "trial"
    shutil.copytree(run.path, folder)
    own = Run(folder)
    own.update(governance={"kept": 120, "rejected": 7, "reasons": {"near_dup": 4, "lang_mismatch": 3}})
    (folder / "evaluation").mkdir()
    for name, task, rows in (("held-out", "held-out records", HELD_OUT), ("sib200", "sib200", SIB)):
        write_results(folder / "evaluation" / f"{name}.json", Results({"task": task}, tuple(rows)))
    return own


def results(text):
    return {(r.dataset_name, r.dataset_config, r.metric_type): r for r in ModelCard(text).data.eval_results}


def test_every_result_is_an_eval_result_with_its_interval(measured_run):
    found = results(model_card(run_facts(measured_run), "me/trial"))
    swahili = found["held-out records", "swh_Latn", "accuracy"]
    assert swahili.metric_value == 0.7
    assert swahili.metric_args["records"] == 35
    assert swahili.metric_args["low"] == pytest.approx(0.6)
    assert swahili.metric_args["base"] == pytest.approx(0.3)
    assert swahili.dataset_args == {"language": "sw"}
    assert found["held-out records", None, "loss"].metric_value == 1.25
    assert found["sib200", None, "ece"].metric_value == pytest.approx(0.1)
    assert found["sib200", "yor_Latn", "accuracy"].metric_args["difference"]["value"] == 0.5


def test_the_card_tells_method_data_results_and_limits(measured_run):
    text = model_card(run_facts(measured_run), "me/trial")
    assert ModelCard(text).data.language == ["ha", "sw", "yo"]
    for line in (
        "| method | `hybrid` |",
        "| reflections | 8 |",
        "| steps | 40 |",
        "90 to train, 10 to choose the best step, 20 held out",
        "kept 120 records and set 7 aside",
        "| near_dup | 4 |",
        "| held-out records | swh_Latn | accuracy | 0.300 [0.200, 0.400] | 0.700 [0.600, 0.800] "
        "| +0.400 [+0.300, +0.500] | 35 |",
        "### Calibration",
        "| sib200 | all | expected calibration error | 0.300",
        "includes zero for hau_Latn:",
        "mlx-hybrid chat me/trial",
        "mlx-hybrid export me/trial --to peft",
        "vllm serve ./trial-merged",
    ):
        assert line in text, line
    assert "Calibration was not measured" not in text


def test_an_adapter_of_a_base_on_the_hub_is_served_beside_it(measured_run):
    facts = run_facts(measured_run)
    facts.base = {**facts.base, "id": "someone/tiny-4bit"}
    text = model_card(facts, "me/trial")
    served = "vllm serve someone/tiny-4bit --enable-lora --max-lora-rank 16 --lora-modules trial=./trial-lora"
    assert served in text
    assert ModelCard(text).data.base_model == "someone/tiny-4bit"


def test_what_was_not_measured_is_said(run):
    text = model_card(run_facts(run), "me/trial")
    assert "Nothing was measured" in text
    assert "## Results" not in text
    assert "model-index" not in text


def test_the_manifest_beside_the_data_is_on_the_card(measured_run, tmp_path, monkeypatch):
    data = tmp_path / "governed"
    data.mkdir()
    counts = [{"stage": "near", "language": "swh_Latn", "reason": "near_dup", "records": 5}]
    write_json(data / "manifest.json", {"tool": "mlx-hybrid govern", "counts": counts})
    write_json(data / "report.json", {"languages": [{"language": "zul_Latn", "before": 12, "kept": 9}]})
    config = (measured_run.path / "config.yaml").read_text().replace("- samples", f"- {data}")
    (measured_run.path / "config.yaml").write_text(config)
    text = model_card(run_facts(measured_run), "me/trial")
    assert "Data manifest: sha256 `" in text
    assert "| near | near_dup | 5 |" in text
    assert "| zul_Latn | 9 |" in text
    assert "zu" in ModelCard(text).data.language
    assert str(tmp_path) not in text


def test_a_card_made_here_is_made_anew_and_one_that_was_changed_stays(measured_run):
    assert write_card(measured_run)
    draft = measured_run.path / "README.md"
    assert is_made(draft.read_text())
    (measured_run.path / "evaluation" / "sib200.json").unlink()
    assert "sib200" not in plan(measured_run.path, "me/trial").card
    draft.write_text(draft.read_text().replace("## Limits", "## My own limits"))
    assert not write_card(measured_run)
    publication = plan(measured_run.path, "me/trial")
    assert publication.card_is_own
    assert "## My own limits" in publication.card


def export_report(run, **changes):
    digest = hashlib.sha256((run.adapter / "adapters.safetensors").read_bytes()).hexdigest()
    return {
        "format": 1,
        "to": "peft",
        "kind": "lora",
        "adapter": {"name": run.name, "method": "hybrid", "sha256": digest},
        "base": {"id": "someone/tiny"},
        "rank": 24,
        **changes,
    }


def write_export(folder, report):
    import mlx.core as mx

    folder.mkdir()
    write_json(folder / "export.json", report)
    write_json(folder / "adapter_config.json", {"peft_type": "LORA"})
    (folder / "README.md").write_text("# loader lines\n")
    mx.save_safetensors(str(folder / "adapter_model.safetensors"), {"a": mx.zeros((1,))})
    return folder


def test_an_export_finds_its_run_and_says_how_to_load_it(measured_run, tmp_path, monkeypatch):
    monkeypatch.setenv("MLX_HYBRID_RUNS", str(tmp_path))
    publication = plan(write_export(tmp_path / "peft", export_report(measured_run)), "me/lora")
    data = ModelCard(publication.card).data
    relation = data.to_dict()["base_model_relation"]
    assert (data.base_model, data.library_name, relation) == ("someone/tiny", "peft", "adapter")
    assert 'PeftModel.from_pretrained(model, "me/lora")' in publication.card
    served = "vllm serve someone/tiny --enable-lora --max-lora-rank 32 --lora-modules lora=me/lora"
    assert served in publication.card
    assert "mlx-hybrid import lora -o lora-mlx" in publication.card
    assert results(publication.card)
    other = export_report(measured_run, adapter={"name": "trial", "method": "hybrid", "sha256": "0"})
    unknown = plan(write_export(tmp_path / "other", other), "me/lora").card
    assert "Nothing was measured" in unknown


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"to": "merged"}, "vllm serve me/x\n"),
        ({"kind": "oft and lora", "load_order": ["oft-8", "lora"]}, "adapters = ['oft-8', 'lora']"),
        ({"base": {"id": "base"}}, 'from_pretrained("me/x", subfolder="base", dtype='),
        (
            {"base": {"id": "base"}},
            "vllm serve ./x/base --enable-lora --max-lora-rank 32 --lora-modules x=./x",
        ),
        ({"to": "mlx-lm"}, "mlx_lm.generate --model someone/tiny --adapter-path x"),
        ({"to": "mlx-lm", "kind": "fused model"}, "vllm serve me/x\n"),
        ({"to": "fuse", "kind": "fused model"}, "vllm serve me/x\n"),
        ({"to": "merged", "kind": "fused model for MLX"}, "mlx_lm.generate --model me/x --prompt"),
        ({"to": "merged", "kind": "fused model for MLX"}, "library_name: mlx\n"),
    ],
)
def test_each_form_has_its_own_way_to_load(measured_run, tmp_path, changes, said):
    folder = write_export(tmp_path / "out", export_report(measured_run, **changes))
    assert said in plan(folder, "me/x", run=measured_run).card


def test_results_say_which_model_they_are_of(measured_run, tmp_path):
    """A merged model that lost half of its update must not carry the adapter's results as its own."""
    checks = {"rounding": {"kl_nats_per_token": 0.0951}, "logits": None}
    report = export_report(
        measured_run, to="merged", kind="fused model for MLX", checks=checks, faults=["half is lost"]
    )
    card = plan(write_export(tmp_path / "out", report), "me/x", run=measured_run).card
    assert "model-index" not in card
    assert "These files differ from that, KL in nats a token: rounding the weights 0.095." in card
    assert "**Their own check failed**: half is lost." in card
    whole = plan(write_export(tmp_path / "whole", export_report(measured_run)), "me/x", run=measured_run).card
    assert "model-index" in whole
    assert "## Results" in whole
    assert "Measured with the adapter" not in whole


def test_a_run_without_an_adapter_has_no_card(measured_run):
    shutil.rmtree(measured_run.adapter)
    with pytest.raises(ConfigError, match="no adapter yet"):
        run_facts(measured_run)


def test_the_page_tells_no_place(measured_run):
    text = model_card(run_facts(measured_run), "me/trial")
    assert str(measured_run.path.parent) not in text
    assert json.dumps(read_json(measured_run.adapter / "adapter_config.json")).count("/tmp") == 0


def test_mixed_bits_are_said():
    def card(quantization):
        return model_card(Facts("trial", base={"id": "me/base", "quantization": quantization}), "me/trial")

    packed = {"bits": 4, "group_size": 32, "mode": "affine"}
    assert "| base weights | 4 bits, groups of 32 |\n" in card(packed)
    mixed = packed | {"model.embed_tokens": {"bits": 8, "group_size": 32}, "lm_head": False}
    assert "| base weights | 4 bits, groups of 32, 2 layers otherwise |\n" in card(mixed)
    own = {name: {"bits": 6, "group_size": 64} for name in ("a.down_proj", "lm_head")}
    assert "| base weights | 2 layers packed, each in its own way |\n" in card(own)
    assert "base weights" not in card({})


def test_how_conversations_were_written_is_said_where_it_is_used(run):
    facts = run_facts(run)
    assert "chat_template_kwargs" not in model_card(facts, "")
    facts.template = {"template": {"enable_thinking": False}, "system": "fold"}
    text = model_card(facts, "")
    assert "`enable_thinking: false`" in text
    assert "before the first user turn" in text
    export = {"to": "peft", "kind": "lora", "base": {}, "adapter": {"conversations": facts.template}}
    assert Facts("x").take_export(export).template == facts.template
