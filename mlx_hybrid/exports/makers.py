"""One maker for each form of an export: it fills the folder and reports what it did and how that was checked."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mlx_hybrid.adapters.store import WEIGHTS_FILE
from mlx_hybrid.errors import ConfigError
from mlx_hybrid.exports import checks, lora, merge, peft
from mlx_hybrid.exports.adapter import Source
from mlx_hybrid.exports.bases import ExportBase, check_original, choose_original, dequantised_beside
from mlx_hybrid.exports.checks import Report
from mlx_hybrid.exports.gguf.adapter import ADAPTER, read_adapter, write_adapter
from mlx_hybrid.exports.gguf.model import MODEL, write_model
from mlx_hybrid.exports.mlx_lm import write_mlx_lm
from mlx_hybrid.exports.weights import GgufWeights, ModelWeights
from mlx_hybrid.files import HUB_ID, sha256_of
from mlx_hybrid.models.base import find_model, fingerprint
from mlx_hybrid.publish.usage import vllm_rank

if TYPE_CHECKING:
    from mlx_hybrid.exports.export import Options

SURVIVES = 0.9
"""Share of the update in the stored weights below which a merged model is not the one that was trained."""
RANK, LOSS = 64, 0.05


def make_peft(source: Source, folder: Path, options: "Options", *, to: str = "peft") -> Report:
    """One LoRA where that is exact, with DoRA's magnitudes, else one OFT a block size and a LoRA."""
    if to == "gguf-lora":
        refuse_magnitudes(source)
    base = export_base(source, folder, options)
    forms = peft.make_forms(source, base.weights)
    if forms.oft and to == "gguf-lora":
        raise ConfigError(
            f"{source.name}: a rotation by butterfly has full rank, so no LoRA equals it; use --to merged and convert "
            "that model to GGUF."
        )
    report = begin(to, source, base, "lora", forms)
    adapters = peft.write_forms(forms, base.weights, folder, followed(base, report, folder))
    if forms.oft:
        report.kind, report.facts["load_order"] = "oft and lora", [adapter.name for adapter in adapters]
    report.faults += peft.check_written(forms, base.weights, adapters)
    checks.check_logits(report, source, base.weights, adapters=adapters)
    return report


def refuse_magnitudes(source: Source) -> None:
    low_rank = source.info.adapter.low_rank
    if low_rank and low_rank.magnitude:
        raise ConfigError(
            "DoRA's magnitudes are no LoRA; use --to merged, which takes them along, or --to peft."
        )


def make_lora(source: Source, folder: Path, options: "Options") -> Report:
    """One LoRA at a rank that vLLM takes: exact and padded with zeros, or the nearest of a lower rank."""
    refuse_magnitudes(source)
    base = export_base(source, folder, options)
    forms = peft.make_forms(source, base.weights)
    full = "a rotation by butterfly has full rank" if forms.oft else f"it is exact at rank {forms.rank}"
    cut = bool(forms.oft) or 0 < (options.rank or 0) < forms.rank
    if options.tolerance is not None and not cut:
        raise ConfigError(
            f"{source.name}: is exactly a LoRA of rank {forms.rank}, so --tolerance has nothing to act on; leave it "
            "out, or ask for a lower --rank."
        )
    if cut:
        forms = peft.make_forms(source, base.weights, options.rank or RANK)
    report = begin("lora", source, base, "truncated lora" if cut else "lora", forms)
    rank = report.facts["rank"] = vllm_rank(max(forms.rank, options.rank or 0))
    peft.write_lora(forms, base.weights, folder, followed(base, report, folder), rank)
    report.faults += peft.check_written(forms, base.weights, [folder])
    if cut:
        report.facts["relative_error"] = dict(sorted(forms.errors.items()))
        tolerance = LOSS if options.tolerance is None else options.tolerance
        worst, error = max(forms.errors.items(), key=lambda item: item[1])
        if error > tolerance:
            report.faults.append(
                f"at rank {options.rank or RANK} {worst} loses {100 * error:.0f} % of its update, and "
                f"{100 * tolerance:.0f} % are allowed ({full})"
            )
    less = {"adapt": partial(lora.put_lora, factors=forms.lora), "loss": "truncation"} if cut else {}
    checks.check_logits(report, source, base.weights, adapters=[folder], **less)
    return report


def make_gguf(source: Source, folder: Path, options: "Options") -> Report:
    """A LoRA for llama.cpp, ollama and LM Studio, with a Modelfile; for the weights it was trained on unless others are
    named, since the file that serves is not an unpacked copy. With `merged`, a whole GGUF model."""
    if options.merged:
        return make_gguf_model(source, folder, options)
    adapter = source.info.adapter
    if (adapter.low_rank and adapter.low_rank.magnitude) or (
        adapter.rotation and adapter.rotation.kind == "butterfly"
    ):
        raise ConfigError(
            f"{source.name}: is not exactly a LoRA ({source.info.method}); --merged makes a whole GGUF."
        )
    base = served_base(source, options)
    forms = peft.make_forms(source, base.weights)
    report = begin("gguf", source, base, "lora", forms)
    report.base_folder = str(base.weights.folder) if base.weights.folder.is_file() else ""
    write_adapter(forms, base.weights.config, folder / ADAPTER, source.name)
    written = read_adapter(folder / ADAPTER, base.weights.config)
    report.faults += peft.update_faults(forms, written)
    adapt = partial(lora.put_lora, factors=written)
    checks.check_logits(report, source, base.weights, what="the adapter", adapt=adapt)
    return report


def make_gguf_model(source: Source, folder: Path, options: "Options") -> Report:
    """The base's GGUF file with the adapter in it: changed tensors packed in their own type, or in F16."""
    base, file = served_base(source, options), folder / MODEL
    if not isinstance(base.weights, GgufWeights):
        raise ConfigError(
            f"{source.name}: --merged needs the base as a GGUF file; name it with --base-id FILE.gguf."
        )
    report = begin("gguf", source, base, "merged GGUF model")
    report.facts["merged"] = True
    rows = {
        name: lambda name=name: np.array(merge.base_and_merged(source, base.weights, name)[1])
        for name in source.changed(base.weights)
    }
    if lost := write_model(base.weights, file, rows, half=options.f16):
        kinds = ", ".join(sorted({base.weights.tensors[name].kind for name in lost}))
        report.notes.append(f"{len(lost)} tensors are in F16, since {kinds} is not written here.")
    way_out = "--f16 keeps all of it in a larger file"
    judge_packed(report, source, base.weights, GgufWeights(file), way_out)
    checks.check_logits(report, source, base.weights, merged=file, loss="rounding")
    return report


def served_base(source: Source, options: "Options") -> ExportBase:
    """The weights that a GGUF export is for: those it was trained on, or others that are named, a GGUF file as well."""
    if options.base_id and (place := find_model(options.base_id)).is_file():
        return check_original(source, place, options.base_id, gguf=True)
    named = options.base == "original" or options.base_id
    return (choose_original(source, options.base, options.base_id) if named else None) or trained_base(source)


def make_merged(source: Source, folder: Path, options: "Options") -> Report:
    """A Hugging Face model with the adapter in it, or with `requantise` one for MLX."""
    if options.requantise:
        return make_fused(source, folder, options, to="merged")
    original = choose_original(source, options.base, options.base_id)
    base = original or ExportBase(source.base, "dequantised", source.info.base["id"])
    report = begin("merged", source, base, "merged model")
    merge.write_merged(source, base.weights, folder)
    judge_survival(report, source, base.weights, ModelWeights(folder))
    report.faults += merge.check_merged(source, base.weights, folder)
    checks.check_logits(report, source, base.weights, merged=folder, adapters=[], loss="rounding")
    return report


def make_mlx_lm(source: Source, folder: Path, options: "Options") -> Report:
    """An adapter for stock mlx-lm where it is exactly a LoRA, else a fused model."""
    from mlx_lm.tuner.utils import load_adapters

    refuse_gguf(source, "mlx-lm does not read", "fuse makes a model that it reads")
    low_rank = source.info.adapter.low_rank
    forms = None if low_rank and low_rank.magnitude else peft.make_forms(source, source.base)
    if forms is None or forms.oft:
        return make_fused(source, folder, options, to="mlx-lm")
    base = trained_base(source)
    report = begin("mlx-lm", source, base, "lora", forms)
    layers = source.base.config.get("num_hidden_layers", 0)
    report.faults += write_mlx_lm(forms, folder, base_id=base.id, layers=layers)
    checks.check_logits(
        report, source, source.base, what="mlx-lm", adapt=lambda model: load_adapters(model, str(folder))
    )
    return report


def refuse_gguf(source: Source, why: str, way_out: str) -> None:
    if source.base.folder.is_file():
        raise ConfigError(f"{source.base.folder}: is a GGUF file, which {why}; {way_out}.")


def make_fused(source: Source, folder: Path, options: "Options", *, to: str = "fuse") -> Report:
    """The adapter inside the base it was trained on: bf16, or packed as it is. MLX alone reads packs and stacks."""
    requantise = options.requantise
    if requantise and not source.base.packed:
        raise ConfigError(f"{source.base.folder}: is not quantised; leave out --requantise.")
    if requantise:
        refuse_gguf(source, "MLX does not pack", "leave out --requantise, or use --to gguf")
    for_mlx = requantise or source.base.stack() is not None
    report = begin(to, source, trained_base(source), "fused model for MLX" if for_mlx else "fused model")
    merge.write_merged(source, source.base, folder, requantise=requantise, for_mlx=for_mlx)
    if requantise:
        whole = (
            "without --requantise all of it does, and mlx_lm.convert -q --q-bits 8 packs that in finer steps"
        )
        judge_packed(report, source, source.base, ModelWeights(folder), whole)
    else:
        judge_survival(report, source, source.base, ModelWeights(folder))
        report.faults += merge.check_merged(source, source.base, folder)
    checks.check_logits(report, source, source.base, merged=folder, loss="rounding")
    return report


def judge_survival(report: Report, source: Source, weights: ModelWeights, written: ModelWeights) -> None:
    """Measure what the stored weights keep of the update; it may not be too little, where no loss says otherwise."""
    survival = report.checks["survival"] = merge.measure_survival(source, weights, written)
    if survival["surviving_share"] < SURVIVES:
        report.faults.append(
            f"only {100 * survival['surviving_share']:.0f} % of the update survives in the stored weights (worst "
            f"{survival['worst_module']}: {100 * survival['worst_surviving_share']:.0f} %)"
        )


def judge_packed(
    report: Report, source: Source, weights: ModelWeights, written: ModelWeights, way_out: str
) -> None:
    """Judge packed weights by what the tune was for, the held-out loss, where the run's records are still there, else
    by the share of the update that survives."""
    judge_survival(report, source, weights, written)
    losses = checks.held_out_losses(source, weights.folder, written.folder)
    if losses and losses["adapter"] < losses["base"]:
        report.checks["held_out_loss"] = losses
        report.faults = []
        kept = (losses["base"] - losses["packed"]) / (losses["base"] - losses["adapter"])
        if kept < SURVIVES:
            told = "held-out loss {packed:.3f} where the adapter has {adapter:.3f} and the base {base:.3f}".format(
                **losses
            )
            report.faults.append(f"{told}: packing keeps {100 * max(kept, 0):.0f} % of the gain")
    report.faults = [f"{fault}; {way_out}" for fault in report.faults]


def export_base(source: Source, folder: Path, options: "Options") -> ExportBase:
    return choose_original(source, options.base, options.base_id) or dequantised_beside(source, folder)


def trained_base(source: Source) -> ExportBase:
    return ExportBase(source.base, "trained", source.info.base["id"])


def followed(base: ExportBase, report: Report, folder: Path) -> str:
    """What PEFT's config calls the base: its Hub id, or a path beside the adapter, where a local folder is linked."""
    if HUB_ID.fullmatch(base.id) and not Path(base.id).exists():
        return base.id
    report.facts["base_path"], link = base.id, folder / base.id
    if not link.exists():
        link.symlink_to(base.weights.folder.resolve(), target_is_directory=True)
    return base.id


def begin(to: str, source: Source, base: ExportBase, kind: str, forms: peft.Forms | None = None) -> Report:
    """A report with what is exported, for which base, in how many modules."""
    digest = sha256_of(source.folder / WEIGHTS_FILE)
    adapter = {"name": source.name, "method": source.info.method, "sha256": digest}
    if source.info.conversations:
        adapter["conversations"] = source.info.conversations
    weights = {"id": base.id, "kind": base.kind, "fingerprint": fingerprint(base.weights.folder)}
    size = {"modules": len(forms.modules), "rank": forms.rank, "exact": not forms.errors} if forms else {}
    return Report(to, kind, adapter, weights, size)
