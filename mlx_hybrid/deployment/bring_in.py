"""`import`: a PEFT adapter written as ours, and both run beside each other before it counts as done."""

from pathlib import Path

from mlx_hybrid.errors import ConfigError
from mlx_hybrid.export.adapter import Source, open_source
from mlx_hybrid.export.checks import check_peft_logits
from mlx_hybrid.export.export import new_folder
from mlx_hybrid.export.peft_files import PeftFolder
from mlx_hybrid.export.peft_import import attach_carried, carry, find_parts, save_carried
from mlx_hybrid.export.probes import TOLERANCE, Probe, check_hra, check_lora, check_oft, probe_layer
from mlx_hybrid.export.verdict import Report
from mlx_hybrid.models.base import is_named, load_base

REPORT_FILE = "import.json"


def import_peft(peft: Path, directory: Path, *, base: str | None = None, force: bool = False) -> Report:
    """Write the PEFT adapter in `peft` as an adapter folder for MLX, on `base` or the base that its config names.

    Raises ConfigError, with the reason, for what cannot be carried exactly, and ExportMismatch, exit code 3, when the
    result does not do what PEFT does (unless `force`).
    """
    if not peft.is_dir():
        raise ConfigError(f"{peft}: no such folder; name the one that holds adapter_config.json.")
    parts = find_parts(peft)
    name = base or named_base(peft, parts)
    carried = carry(parts)
    with new_folder(directory) as folder:
        loaded = load_base(name)
        config = attach_carried(loaded.model, carried, str(peft))
        save_carried(loaded.model, folder, carried, config, loaded.identity, parts)
        del loaded
        source = open_source(str(folder), model=name)
        report = begin(source, parts, directory)
        report.faults += algebra_faults(source, parts)
        check_logits(report, source, parts)
        report.directory, report.base_folder = directory, "" if is_named(name) else name
        report.write(folder, REPORT_FILE)
        if not force:
            report.refuse(directory)
    return report


def named_base(peft: Path, parts: list[PeftFolder]) -> str:
    """The base the config names: a folder beside the adapter, another folder, or a Hub id."""
    name = parts[0].config.get("base_model_name_or_path")
    if not name:
        raise ConfigError(f"{peft}: does not say which base it is for; name it with --base.")
    return str(peft / name) if (peft / name).is_dir() else name


def begin(source: Source, parts: list[PeftFolder], directory: Path) -> Report:
    kind = " and ".join(part.kind for part in parts)
    adapter = {"name": directory.name, "method": source.info.method}
    report = Report("mlx", kind, adapter, source.info.base)
    report.facts = {"modules": len({m for part in parts for m in part.modules})}
    return report


def algebra_faults(source: Source, parts: list[PeftFolder]) -> list[str]:
    """What our layers do to random rows against what the files say, by PEFT's conventions."""
    named = {module for part in parts for module in part.modules}
    probes = {m: probe_layer(source.layer(m, source.base), m) for m in source.modules}
    rows = {module: probe.x for module, probe in probes.items()}
    faults = [
        f"{m} is not adapted in PEFT and yet changes" for m in probes if m not in named and moves(probes[m])
    ]
    for part in parts:
        check = {"LORA": check_lora, "OFT": check_oft, "HRA": check_hra}[part.kind]
        expected = {m: probes[m].low if part.kind == "LORA" else probes[m].turn for m in part.modules}
        faults += check(part, expected, rows)
    return faults


def moves(probe: Probe) -> bool:
    return bool(abs(probe.total).max() > TOLERANCE)


def check_logits(report: Report, source: Source, parts: list[PeftFolder]) -> None:
    """Against stock PEFT where its library can load the base, which a packed MLX folder prevents."""
    if source.base.packed:
        report.checks["logits"] = None
        report.notes.append("Logits were not compared: PyTorch cannot load a base that MLX packed.")
        return
    check_peft_logits(report, source, source.base, [part.folder for part in parts])
