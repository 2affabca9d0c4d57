"""Take an adapter out of MLX: each export is written aside, checked, and only then put in its place."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from mlx_hybrid.errors import ConfigError, nearest
from mlx_hybrid.exports import checks, makers
from mlx_hybrid.exports.adapter import Source, open_source
from mlx_hybrid.exports.checks import Report
from mlx_hybrid.exports.gguf.modelfile import write_modelfile
from mlx_hybrid.exports.weights import end_of_answers, name_end
from mlx_hybrid.files import write_text
from mlx_hybrid.models.adapted import UNCHECKED
from mlx_hybrid.publish.usage import is_folder, readme

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
        return write_checked(source, to, directory, options)


def write_checked(source: Source, to: str, directory: Path, options: Options) -> Report:
    with checks.new_folder(directory) as folder:
        report = MAKERS[to](source, folder, options)
        if options.strength != 1:
            report.facts["strength"] = options.strength
        if template := source.info.conversations.get("chat_template"):
            write_text(folder / "chat_template.jinja", template)
            if any(folder.glob("model*.safetensors")):
                name_end(folder)
        if source.info.stock:
            report.notes.append(f"{source.name}: {UNCHECKED}.")
        if to == "gguf":
            write_modelfile(report, source, folder, directory)
        elif not any(folder.glob("model*.safetensors")):
            note_base(report, source)
        write_text(folder / "README.md", readme(directory.name, report.tree()))
        report.finish(folder, directory, force=options.force)
    return report


def fuse(name: str, directory: Path, **options: bool | str | None) -> Report:
    """Merge the adapter into the base it was trained on, as a model for MLX; with `requantise` packed again."""
    return export(name, "fuse", directory, Options(**options))


def note_base(report: Report, source: Source) -> None:
    """Say what an adapter's user has to know of a base loaded from elsewhere: where it is, and where answers end."""
    if is_folder(base := report.base["id"]):
        report.notes.append(
            f"The base is the local folder {base}, which has no name on the Hub: whoever loads this gives it by path."
        )
    if end := end_of_answers(source.base.folder):
        report.facts["end_of_answers"], report.facts["end_ids"] = end
        report.notes.append(f"Answers end with {end[0]}: README.md says how programs are told to stop there.")


MAKERS = {
    "peft": makers.make_peft,
    "merged": makers.make_merged,
    "lora": makers.make_lora,
    "mlx-lm": makers.make_mlx_lm,
    "gguf-lora": partial(makers.make_peft, to="gguf-lora"),
    "gguf": makers.make_gguf,
    "fuse": makers.make_fused,
}
