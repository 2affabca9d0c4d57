"""Take an adapter out of MLX: each export is written aside, checked, and only then put in its place."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import mlx.core as mx
from mlx_lm.tuner.utils import load_adapters

from mlx_hybrid.adapters.store import CONFIG_FILE, WEIGHTS_FILE
from mlx_hybrid.adapters.targets import layer_index, within_layer
from mlx_hybrid.errors import ConfigError, check_known
from mlx_hybrid.exports import merge
from mlx_hybrid.exports.adapter import ExportBase, Source, base_for, open_source
from mlx_hybrid.exports.checks import Report, check_logits, new_folder
from mlx_hybrid.exports.forms import Forms, float64, lora_faults, make_forms, padded, put_lora
from mlx_hybrid.exports.gguf import ADAPTER, MODEL, write_adapter, write_model, write_modelfile
from mlx_hybrid.exports.peft import check_written, write_forms
from mlx_hybrid.exports.weights import GgufWeights, ModelWeights, end_of_answers, name_end
from mlx_hybrid.files import HUB_ID, sha256_of, write_json, write_text
from mlx_hybrid.models.adapted import NO_GAIN, UNCHECKED, gains_nothing
from mlx_hybrid.models.base import fingerprint
from mlx_hybrid.publish.card import is_folder, readme, vllm_rank

RANK, LOSS = 64, 0.05
DENSE = ("peft", "merged", "lora", "gguf")
TAKEN = {  # the forms that an option has a meaning for
    "base": DENSE,
    "base_id": DENSE,
    "rank": ("lora",),
    "tolerance": ("lora",),
    "requantise": ("merged",),
    "merged": ("gguf",),
    "f16": ("gguf",),
}


@dataclass(frozen=True, kw_only=True)
class Options:
    """The options of the command (docs/export.md)."""

    base: str | None = None
    base_id: str | None = None
    model: str | None = None
    rank: int | None = None
    tolerance: float | None = None
    requantise: bool = False
    merged: bool = False
    f16: bool = False
    strength: float = 1.0
    force: bool = False


def export(name: str, to: str, directory: Path, options: Options | None = None) -> Report:
    """Write the adapter `name` (run, path or `last`) to `directory` as `to` says, and check it.
    Raises ConfigError for what cannot be said in that form, for options it has no use for and for a place that is
    taken, and ExportMismatch, exit code 3, when the check fails: nothing is written then, unless `options.force`."""
    options = options or Options()
    refuse_unused(to, options)
    with TemporaryDirectory() as place, new_folder(directory) as folder:
        source = open_source(name, model=options.model, strength=options.strength, place=Path(place))
        refuse_form(source, to, options)
        own = options.requantise or to in ("fuse", "mlx-lm")
        base = base_for(source, to, folder, options.base, options.base_id, own=own)
        report = MAKERS[to](source, base, folder, options, to)
        if options.strength != 1:
            report.facts["strength"] = options.strength
        add_words(report, source, folder, directory)
        report.finish(folder, directory, force=options.force)
    return report


def refuse_unused(to: str, options: Options) -> None:
    """Raise ConfigError for a form that is not known, and for an option that would change nothing."""
    check_known(to, MAKERS, "export: no form")
    for field, forms in TAKEN.items():
        if getattr(options, field) != getattr(Options, field) and to not in (*forms, "fuse"):
            flag = "--" + field.replace("_", "-")
            raise ConfigError(f"{flag} is for --to {' or '.join(forms)}; leave it out with --to {to}.")
    if options.f16 and not options.merged:
        raise ConfigError("--f16 is for the whole model that --merged makes; leave it out.")
    if options.requantise and (options.base or options.base_id):
        told = "leave out --base and --base-id, or pack the merged original with mlx_lm.convert"
        raise ConfigError(f"--requantise packs the base that was trained on; {told}.")


def refuse_form(source: Source, to: str, options: Options) -> None:
    """Raise ConfigError for what the form cannot say of this adapter or its base."""
    adapter, base, told = source.info.adapter, source.base, ""
    if adapter.full and to not in ("merged", "fuse"):
        told = f"{source.name}: method full has no adapter; use --to merged"
    elif to == "gguf" and not options.merged and not is_lora(source):
        told = f"{source.name}: is not exactly a LoRA ({source.info.method}); --merged makes a whole GGUF"
    elif to == "lora" and adapter.low_rank and adapter.low_rank.magnitude:
        told = "DoRA's magnitudes are no LoRA; use --to merged, which takes them along, or --to peft"
    elif options.requantise and not base.packed:
        told = f"{base.folder}: is not quantised; leave out --requantise"
    elif options.requantise and base.folder.is_file():
        told = f"{base.folder}: is a GGUF file, which MLX does not pack; leave out --requantise, or use --to gguf"
    elif to == "mlx-lm" and base.folder.is_file():
        told = f"{base.folder}: is a GGUF file, which mlx-lm does not read; fuse makes a model that it reads"
    if told:
        raise ConfigError(f"{told}.")


def is_lora(source: Source) -> bool:
    """Whether it is exactly a LoRA: DoRA has magnitudes too, and a butterfly full rank."""
    rotation, low_rank = source.info.adapter.rotation, source.info.adapter.low_rank
    return not (rotation and rotation.kind == "butterfly") and not (low_rank and low_rank.magnitude)


def add_words(report: Report, source: Source, folder: Path, directory: Path) -> None:
    """The texts beside the weights; of a base that is loaded from elsewhere, where it is and where answers end."""
    whole = any(folder.glob("model*.safetensors"))
    if template := source.info.conversations.get("chat_template"):
        write_text(folder / "chat_template.jinja", template)
        if whole:
            name_end(folder)
    if source.info.stock:
        report.notes.append(f"{source.name}: {UNCHECKED}.")
    if gains_nothing(source.folder):
        report.facts["beats_base"] = False
        report.notes.append(f"{source.name}: {NO_GAIN}")
    if report.to == "gguf":
        write_modelfile(report, source, folder, directory)
    elif not whole:
        if is_folder(base := report.base["id"]):
            told = f"The base is the local folder {base}, which has no name on the Hub"
            report.notes.append(f"{told}: whoever loads this gives it by path.")
        if end := end_of_answers(source.base.folder):
            report.facts["end_of_answers"], report.facts["end_ids"] = end
            report.notes.append(f"Answers end with {end[0]}; README.md says how programs are told so.")
    write_text(folder / "README.md", readme(directory.name, report.tree()))


def make_peft(source: Source, base: ExportBase, folder: Path, options: Options, to: str) -> Report:
    """One LoRA where that is exact, else one OFT a block size and a LoRA; as `lora`, one at a rank that vLLM takes."""
    rank = options.rank or 0
    forms = exact = make_forms(source, base.weights)
    if to == "lora" and (forms.oft or 0 < rank < forms.rank):
        forms = make_forms(source, base.weights, rank or RANK)
    elif options.tolerance is not None:
        told = f"is exactly a LoRA of rank {forms.rank}, so --tolerance has nothing to act on"
        raise ConfigError(f"{source.name}: {told}; leave it out, or ask for a lower --rank.")
    report = begin(to, source, base, "truncated lora" if forms.errors else "lora", forms)
    report.facts["rank"] = vllm_rank(max(forms.rank, rank)) if to == "lora" else forms.rank
    if not HUB_ID.fullmatch(base.id) or Path(base.id).exists():  # PEFT finds a local base beside the adapter
        report.facts["base_path"], link = base.id, folder / base.id
        if not link.exists():
            link.symlink_to(base.weights.folder.resolve(), target_is_directory=True)
    adapters = write_forms(forms, base.weights, folder, base.id, report.facts["rank"])
    if forms.oft:
        report.kind, report.facts["load_order"] = "oft and lora", [adapter.name for adapter in adapters]
    report.faults += check_written(forms, base.weights, adapters)
    if forms.errors:
        report.facts["relative_error"] = dict(sorted(forms.errors.items()))
        tolerance = LOSS if options.tolerance is None else options.tolerance
        worst, error = max(forms.errors.items(), key=lambda item: item[1])
        if error > tolerance:
            why = "a butterfly has full rank" if exact.oft else f"it is exact at rank {exact.rank}"
            told = f"at rank {rank or RANK} {worst} loses {100 * error:.0f} % of its update"
            report.faults.append(f"{told}, and {100 * tolerance:.0f} % are allowed ({why})")
    adapt = partial(put_lora, factors=forms.lora) if forms.errors else None
    check_logits(report, source, base.weights, adapters=adapters, adapt=adapt)
    return report


def make_gguf(source: Source, base: ExportBase, folder: Path, options: Options, to: str) -> Report:
    """A LoRA for llama.cpp, or with `merged` a whole GGUF model."""
    if options.merged:
        return make_gguf_model(source, base, folder / MODEL, half=options.f16)
    weights, forms = base.weights, make_forms(source, base.weights)
    report = begin(to, source, base, "lora", forms)
    report.base_folder = str(weights.folder) if weights.folder.is_file() else ""
    written = write_adapter(forms, weights.config, folder / ADAPTER, source.name)
    report.faults += lora_faults(forms, written)
    check_logits(report, source, weights, adapt=partial(put_lora, factors=written))
    return report


def make_gguf_model(source: Source, base: ExportBase, file: Path, *, half: bool) -> Report:
    """The base's GGUF file with the adapter in it: changed tensors packed in their own type, or in F16."""
    weights = base.weights
    if not isinstance(weights, GgufWeights):
        told = "--merged needs the base as a GGUF file; name it with --base-id FILE.gguf."
        raise ConfigError(f"{source.name}: {told}")
    report = begin("gguf", source, base, "merged GGUF model")
    report.facts["merged"] = True
    merged = partial(merge.before_and_after, source, weights)
    if lost := write_model(weights, file, source, merged, half=half):
        kinds = ", ".join(sorted({weights.tensors[name].kind for name in lost}))
        report.notes.append(f"{len(lost)} tensors are in F16, since {kinds} is not written here.")
    merge.judge_packed(report, source, weights, GgufWeights(file), "--f16 keeps all of it in a larger file")
    check_logits(report, source, weights, merged=file)
    return report


def make_mlx_lm(source: Source, base: ExportBase, folder: Path, options: Options, to: str) -> Report:
    """An adapter for stock mlx-lm where it is exactly a LoRA, else a fused model. mlx-lm gives all sub-modules of these
    names one rank and one scale; those without an update start at zero there."""
    if not is_lora(source):
        return make_model(source, base, folder, options, to)
    forms, tensors = make_forms(source, base.weights), {}
    report = begin(to, source, base, "lora", forms)
    for module, factors in forms.lora.items():
        a, b = map(mx.array, padded(factors, forms.rank))
        tensors |= {f"{module}.lora_a": a, f"{module}.lora_b": b}
    mx.save_safetensors(str(folder / WEIGHTS_FILE), tensors, metadata={"format": "mlx"})
    first = min((index for m in forms.lora if (index := layer_index(m)) is not None), default=0)
    layers = base.weights.config.get("num_hidden_layers", 0) - first
    keys = sorted({within_layer(module) for module in forms.lora})
    parameters = {"rank": forms.rank, "scale": 1.0, "dropout": 0.0, "keys": keys}
    tree = {"fine_tune_type": "lora", "model": base.id, "num_layers": layers}
    write_json(folder / CONFIG_FILE, tree | {"lora_parameters": parameters})
    read = mx.load(str(folder / WEIGHTS_FILE))
    written = {m: (float64(read[f"{m}.lora_a"]), float64(read[f"{m}.lora_b"])) for m in forms.lora}
    report.faults += lora_faults(forms, written)
    check_logits(report, source, base.weights, adapt=lambda model: load_adapters(model, str(folder)))
    return report


def make_model(source: Source, base: ExportBase, folder: Path, options: Options, to: str) -> Report:
    """The adapter inside the weights: as `merged` a Hugging Face model, else the base it was trained on."""
    pack, fused = options.requantise, base.kind == "trained"
    for_mlx = pack or (fused and base.weights.stack is not None)
    kind = "fused model for MLX" if for_mlx else "fused model" if fused else "merged model"
    report = begin(to, source, base, kind)
    merge.write_merged(source, base.weights, folder, requantise=pack, for_mlx=for_mlx)
    if pack:
        way_out = "without --requantise all of it does, or pack in finer steps: mlx_lm.convert -q --q-bits 8"
        merge.judge_packed(report, source, base.weights, ModelWeights(folder), way_out)
    else:
        merge.judge_survival(report, source, base.weights, ModelWeights(folder))
        report.faults += merge.check_merged(source, base.weights, folder)
    check_logits(report, source, base.weights, merged=folder, adapters=None if fused else [])
    return report


def begin(to: str, source: Source, base: ExportBase, kind: str, forms: Forms | None = None) -> Report:
    """A report with what is exported, for which base, in how many modules."""
    digest = sha256_of(source.folder / WEIGHTS_FILE)
    adapter = {"name": source.name, "method": source.info.method, "sha256": digest}
    adapter |= {"conversations": source.info.conversations} if source.info.conversations else {}
    weights = {"id": base.id, "kind": base.kind, "fingerprint": fingerprint(base.weights.folder)}
    size = {"modules": len(forms.modules), "rank": forms.rank, "exact": not forms.errors} if forms else {}
    return Report(to, kind, adapter, weights, size)


MAKERS = {"peft": make_peft, "lora": make_peft, "merged": make_model, "fuse": make_model}
MAKERS |= {"mlx-lm": make_mlx_lm, "gguf": make_gguf}
