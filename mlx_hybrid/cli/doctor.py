"""`doctor`: what this machine offers, and what is installed."""

import shutil
from pathlib import Path
from typing import Any

import click

from mlx_hybrid.cli.options import json_option
from mlx_hybrid.cli.output import answer, command
from mlx_hybrid.errors import ConfigError, DataError


@click.command()
@click.argument("model", required=False)
@json_option
def doctor(model: str | None, as_json: bool) -> None:
    """Say what this machine offers and whether everything needed is installed.

    With a GGUF file as MODEL, or ollama:NAME, say instead how its weights are held.

    \b
    Examples:
        mlx-hybrid doctor
        mlx-hybrid doctor model.gguf
    """
    problems: list[str] = []
    if model:
        result: dict[str, Any] = {"model": model, "weights": held_weights(model)}
        lines, then = held_lines(result["weights"]), f"Next: {command('finetune', '--model', model)}"
    else:
        facts, problems = examine()
        result = {"facts": facts, "problems": problems}
        lines = [f"{key:<16} {value}" for key, value in facts.items()]
        lines += [f"Problem: {problem}" for problem in problems]
        then = "Mend the problems, then: mlx-hybrid doctor" if problems else "Next: mlx-hybrid finetune"
    answer(result, as_json, *lines, then)
    if problems:
        raise SystemExit(DataError.exit_code)


def held_weights(name: str) -> list[dict]:
    """How each type of tensor of a GGUF file is held. Raises ConfigError for another model."""
    from mlx_hybrid.models.base import find_model
    from mlx_hybrid.models.gguf.file import open_gguf
    from mlx_hybrid.models.gguf.load import holdings

    path = find_model(name)
    if not path.is_file():
        raise ConfigError(f"{name}: is a folder; doctor says how the weights of a GGUF file are held.")
    return holdings(open_gguf(path))


def held_lines(weights: list[dict]) -> list[str]:
    """The same as lines, and what the file's values take in memory."""

    def size(*rows: dict) -> str:
        stored, held = (sum(row[key] for row in rows) / 1e6 for key in ("file_bytes", "bytes"))
        return f"{stored:,.1f} MB in the file, {held:,.1f} MB in memory"

    lines = [f"  {row['type']:<5}{row['tensors']:>4} tensors, {size(row)}" for row in weights]
    return [*lines, f"Weights: {size(*weights)}, each value exactly as it is."]


def examine() -> tuple[dict, list[str]]:
    """Facts and problems."""
    import mlx.core as mx

    from mlx_hybrid.files import is_offline
    from mlx_hybrid.governance.checks.engines import fasttext_distribution
    from mlx_hybrid.models.base import BUNDLED_FOLDER, check_folder
    from mlx_hybrid.models.blas import WAY, loaded
    from mlx_hybrid.run import machine, memory_bytes, runs_root

    about, problems = machine(), []
    backends = [name for name in ("ring", "jaccl", "mpi", "nccl") if mx.distributed.is_available(name)]
    named = ("system", "machine", "python", "device", "cores")
    facts = {key: about[key] for key in named} | about["versions"]
    facts |= {"memory_gb": round(memory_bytes() / 1e9, 1), "blas": loaded or "MLX's own"}
    facts |= {"distributed": ", ".join(backends) or "none", "fasttext": fasttext_distribution() or "none"}
    facts |= {"offline": "yes" if is_offline() else "no", "runs": str(runs_root())}
    facts["free_disk_gb"] = round(shutil.disk_usage(Path.cwd()).free / 1e9, 1)
    try:
        check_folder(BUNDLED_FOLDER, "the bundled base")
    except ConfigError as error:
        problems.append(str(error))
    if (facts["system"], facts["device"]) == ("Darwin", "CPU"):
        problems.append("MLX does not see the GPU; install mlx for Apple Silicon, with a native Python.")
    if (facts["system"], facts["device"]) == ("Linux", "CPU") and not loaded:
        facts["hint"] = f"training is several times faster with a fast BLAS: {WAY}"
    return facts, problems
