"""Take an adapter out of MLX: each export is written aside, checked, and only then put in its place."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from mlx_hybrid.adapters.store import WEIGHTS_FILE
from mlx_hybrid.errors import ConfigError, nearest
from mlx_hybrid.exports import merge
from mlx_hybrid.exports.adapter import (
    ExportBase,
    Source,
    choose_original,
    export_base,
    open_source,
    served_base,
    trained_base,
)
from mlx_hybrid.exports.checks import Report, check_logits, new_folder
from mlx_hybrid.exports.forms import Forms, lora_faults, make_forms, write_mlx_lm
from mlx_hybrid.exports.gguf.adapter import ADAPTER, read_adapter, write_adapter
from mlx_hybrid.exports.gguf.model import MODEL, write_model
from mlx_hybrid.exports.gguf.modelfile import write_modelfile
from mlx_hybrid.exports.lora import put_lora
from mlx_hybrid.exports.peft import check_written, write_forms
from mlx_hybrid.exports.weights import GgufWeights, ModelWeights, end_of_answers, name_end
from mlx_hybrid.files import HUB_ID, sha256_of, write_text
from mlx_hybrid.models.adapted import UNCHECKED
from mlx_hybrid.models.base import fingerprint
from mlx_hybrid.publish.card import is_folder, readme, vllm_rank

RANK, LOSS = 64, 0.05
DENSE = ("peft", "merged", "lora", "gguf-lora", "gguf")
TAKEN = {
    "base": DENSE,
    "base_id": DENSE,
    "rank": ("lora",),
    "tolerance": ("lora",),
    "requantise": ("merged",),
    "merged": ("gguf",),
    "f16": ("gguf",),
}
"""The forms that an option has a meaning for; `fuse` is given none but its own."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """The options of the command. Without `base` it is the original where that is at hand; without `rank` the exact
    one, or RANK where there is none; without `tolerance` LOSS, where a rank truncates."""

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
    taken, and ExportMismatch, exit code 3, when the check fails: nothing is written then, unless `options.force`.
    """
    options = options or Options()
    refuse_unused(to, options)
    with TemporaryDirectory() as place:
        source = open_source(name, model=options.model, strength=options.strength, place=Path(place))
        if source.info.adapter.full and to not in ("merged", "fuse"):
            raise ConfigError(f"{name}: method full has no adapter; use --to merged.")
        with new_folder(directory) as folder:
            report = MAKERS[to](source, folder, options, to)
            if options.strength != 1:
                report.facts["strength"] = options.strength
            add_words(report, source, folder, directory)
            report.finish(folder, directory, force=options.force)
    return report


def fuse(name: str, directory: Path, **options: bool | str | None) -> Report:
    """Merge the adapter into the base it was trained on, as a model for MLX; with `requantise` packed again."""
    return export(name, "fuse", directory, Options(**options))


def refuse_unused(to: str, options: Options) -> None:
    """Raise ConfigError for a form that is not known, and for an option that would change nothing."""
    if to not in MAKERS:
        raise ConfigError(f'export: no form "{to}"; {nearest(to, MAKERS)}')
    for field, forms in TAKEN.items():
        if getattr(options, field) != getattr(Options, field) and to not in (*forms, "fuse"):
            flag = "--" + field.replace("_", "-")
            raise ConfigError(f"{flag} is for --to {' or '.join(forms)}; leave it out with --to {to}.")
    if options.f16 and not options.merged:
        raise ConfigError("--f16 is for the whole model that --merged makes; leave it out.")
    if options.requantise and (options.base or options.base_id):
        raise ConfigError(
            "--requantise packs the base that was trained on; leave out --base and --base-id, or leave out "
            "--requantise and pack the merged original with mlx_lm.convert."
        )


def add_words(report: Report, source: Source, folder: Path, directory: Path) -> None:
    """The files of text beside the weights, and what a user has to know of a base that is loaded from elsewhere: where
    it is, and where answers end."""
    whole = any(folder.glob("model*.safetensors"))
    if template := source.info.conversations.get("chat_template"):
        write_text(folder / "chat_template.jinja", template)
        if whole:
            name_end(folder)
    if source.info.stock:
        report.notes.append(f"{source.name}: {UNCHECKED}.")
    if report.to == "gguf":
        write_modelfile(report, source, folder, directory)
    elif not whole:
        if is_folder(base := report.base["id"]):
            told = f"The base is the local folder {base}, which has no name on the Hub"
            report.notes.append(f"{told}: whoever loads this gives it by path.")
        if end := end_of_answers(source.base.folder):
            report.facts["end_of_answers"], report.facts["end_ids"] = end
            report.notes.append(
                f"Answers end with {end[0]}: README.md says how programs are told to stop there."
            )
    write_text(folder / "README.md", readme(directory.name, report.tree()))


def make_peft(source: Source, folder: Path, options: Options, to: str) -> Report:
    """One LoRA where that is exact, with DoRA's magnitudes, else one OFT a block size and a LoRA. As `lora`, one LoRA
    at a rank that vLLM takes: padded with zeros, or the nearest of a lower rank."""
    if to != "peft" and has_magnitudes(source):
        raise ConfigError(
            "DoRA's magnitudes are no LoRA; use --to merged, which takes them along, or --to peft."
        )
    base, rank = export_base(source, folder, options.base, options.base_id), options.rank or 0
    forms = exact = make_forms(source, base.weights)
    if forms.oft and to == "gguf-lora":
        told = "a rotation by butterfly has full rank, so no LoRA equals it; use --to merged and convert that to GGUF"
        raise ConfigError(f"{source.name}: {told}.")
    if to == "lora" and (forms.oft or 0 < rank < forms.rank):
        forms = make_forms(source, base.weights, rank or RANK)
    elif options.tolerance is not None:
        raise ConfigError(
            f"{source.name}: is exactly a LoRA of rank {forms.rank}, so --tolerance has nothing to act on; leave it "
            "out, or ask for a lower --rank."
        )
    report = begin(to, source, base, "truncated lora" if forms.errors else "lora", forms)
    report.facts["rank"] = vllm_rank(max(forms.rank, rank)) if to == "lora" else forms.rank
    named = followed(base, report, folder)
    adapters = write_forms(forms, base.weights, folder, named, report.facts["rank"])
    if forms.oft:
        report.kind, report.facts["load_order"] = "oft and lora", [adapter.name for adapter in adapters]
    report.faults += check_written(forms, base.weights, adapters)
    if forms.errors:
        judge_truncation(report, forms, exact, options)
    adapt = partial(put_lora, factors=forms.lora) if forms.errors else None
    check_logits(report, source, base.weights, adapters=adapters, adapt=adapt)
    return report


def has_magnitudes(source: Source) -> bool:
    low_rank = source.info.adapter.low_rank
    return bool(low_rank and low_rank.magnitude)


def judge_truncation(report: Report, forms: Forms, exact: Forms, options: Options) -> None:
    report.facts["relative_error"] = dict(sorted(forms.errors.items()))
    tolerance = LOSS if options.tolerance is None else options.tolerance
    worst, error = max(forms.errors.items(), key=lambda item: item[1])
    if error > tolerance:
        why = "a rotation by butterfly has full rank" if exact.oft else f"it is exact at rank {exact.rank}"
        report.faults.append(
            f"at rank {options.rank or RANK} {worst} loses {100 * error:.0f} % of its update, and "
            f"{100 * tolerance:.0f} % are allowed ({why})"
        )


def make_gguf(source: Source, folder: Path, options: Options, to: str) -> Report:
    """A LoRA for llama.cpp, ollama and LM Studio; for the weights it was trained on unless others are named, since the
    file that serves is not an unpacked copy. With `merged`, a whole GGUF model."""
    rotation = source.info.adapter.rotation
    base = served_base(source, options.base, options.base_id)
    if options.merged:
        return make_gguf_model(source, folder, options, base)
    if has_magnitudes(source) or (rotation and rotation.kind == "butterfly"):
        told = f"is not exactly a LoRA ({source.info.method}); --merged makes a whole GGUF"
        raise ConfigError(f"{source.name}: {told}.")
    forms = make_forms(source, base.weights)
    report = begin(to, source, base, "lora", forms)
    report.base_folder = str(base.weights.folder) if base.weights.folder.is_file() else ""
    write_adapter(forms, base.weights.config, folder / ADAPTER, source.name)
    written = read_adapter(folder / ADAPTER, base.weights.config)
    report.faults += lora_faults(forms, written)
    check_logits(report, source, base.weights, adapt=partial(put_lora, factors=written))
    return report


def make_gguf_model(source: Source, folder: Path, options: Options, base: ExportBase) -> Report:
    """The base's GGUF file with the adapter in it: changed tensors packed in their own type, or in F16."""
    weights, file = base.weights, folder / MODEL
    if not isinstance(weights, GgufWeights):
        told = "--merged needs the base as a GGUF file; name it with --base-id FILE.gguf"
        raise ConfigError(f"{source.name}: {told}.")
    report = begin("gguf", source, base, "merged GGUF model")
    report.facts["merged"] = True
    changed = source.changed(weights)
    lost = write_model(
        weights, file, changed, lambda name: merge.base_and_merged(source, weights, name)[1], half=options.f16
    )
    if lost:
        kinds = ", ".join(sorted({weights.tensors[name].kind for name in lost}))
        report.notes.append(f"{len(lost)} tensors are in F16, since {kinds} is not written here.")
    merge.judge_packed(report, source, weights, GgufWeights(file), "--f16 keeps all of it in a larger file")
    check_logits(report, source, weights, merged=file)
    return report


def make_mlx_lm(source: Source, folder: Path, options: Options, to: str) -> Report:
    """An adapter for stock mlx-lm where it is exactly a LoRA, else a fused model."""
    from mlx_lm.tuner.utils import load_adapters

    refuse_gguf(source, "mlx-lm does not read", "fuse makes a model that it reads")
    forms = None if has_magnitudes(source) else make_forms(source, source.base)
    if forms is None or forms.oft:
        return make_model(source, folder, options, to)
    report = begin(to, source, trained_base(source), "lora", forms)
    layers = source.base.config.get("num_hidden_layers", 0)
    written = write_mlx_lm(forms, folder, base_id=report.base["id"], layers=layers)
    report.faults += lora_faults(forms, written)
    check_logits(report, source, source.base, adapt=lambda model: load_adapters(model, str(folder)))
    return report


def refuse_gguf(source: Source, why: str, way_out: str) -> None:
    if source.base.folder.is_file():
        raise ConfigError(f"{source.base.folder}: is a GGUF file, which {why}; {way_out}.")


def make_model(source: Source, folder: Path, options: Options, to: str) -> Report:
    """The adapter inside the weights: as `merged` a Hugging Face model, else in the base it was trained on, in bf16 or
    packed as that is. MLX alone reads packs and stacks."""
    pack = options.requantise
    if pack and not source.base.packed:
        raise ConfigError(f"{source.base.folder}: is not quantised; leave out --requantise.")
    if pack:
        refuse_gguf(source, "MLX does not pack", "leave out --requantise, or use --to gguf")
    fused, base = pack or to != "merged", trained_base(source)
    if not fused:
        original = choose_original(source, options.base, options.base_id)
        base = original or trained_base(source, "dequantised")
    for_mlx = pack or (fused and source.base.stack is not None)
    kind = "fused model for MLX" if for_mlx else "fused model" if fused else "merged model"
    report = begin(to, source, base, kind)
    merge.write_merged(source, base.weights, folder, requantise=pack, for_mlx=for_mlx)
    if pack:
        whole = (
            "without --requantise all of it does, and mlx_lm.convert -q --q-bits 8 packs that in finer steps"
        )
        merge.judge_packed(report, source, base.weights, ModelWeights(folder), whole)
    else:
        merge.judge_survival(report, source, base.weights, ModelWeights(folder))
        report.faults += merge.check_merged(source, base.weights, folder)
    check_logits(report, source, base.weights, merged=folder, adapters=None if fused else [])
    return report


def followed(base: ExportBase, report: Report, folder: Path) -> str:
    """What PEFT's config calls the base: its Hub id, or a path beside the adapter, where a local folder is linked."""
    if not HUB_ID.fullmatch(base.id) or Path(base.id).exists():
        report.facts["base_path"], link = base.id, folder / base.id
        if not link.exists():
            link.symlink_to(base.weights.folder.resolve(), target_is_directory=True)
    return base.id


def begin(to: str, source: Source, base: ExportBase, kind: str, forms: Forms | None = None) -> Report:
    """A report with what is exported, for which base, in how many modules."""
    digest = sha256_of(source.folder / WEIGHTS_FILE)
    adapter = {"name": source.name, "method": source.info.method, "sha256": digest}
    adapter |= {"conversations": source.info.conversations} if source.info.conversations else {}
    weights = {"id": base.id, "kind": base.kind, "fingerprint": fingerprint(base.weights.folder)}
    size = {"modules": len(forms.modules), "rank": forms.rank, "exact": not forms.errors} if forms else {}
    return Report(to, kind, adapter, weights, size)


MAKERS = {
    **dict.fromkeys(("peft", "lora", "gguf-lora"), make_peft),
    **dict.fromkeys(("merged", "fuse"), make_model),
    "mlx-lm": make_mlx_lm,
    "gguf": make_gguf,
}
