"""`doctor`: what this machine offers, and what is installed."""

from pathlib import Path

import click
from click import option

from mlx_hybrid.cli.commands import answer, command


@click.command()
@click.argument("model", required=False)
@option("--json", "as_json", is_flag=True, help="Print as JSON.")
def doctor(model: str | None, as_json: bool) -> None:
    """Say what this machine offers and whether everything needed is installed.

    With a GGUF file as MODEL, or ollama:NAME, say instead how its weights are held.

    \b
    Examples:
        mlx-hybrid doctor
        mlx-hybrid doctor model.gguf
    """
    if model:
        weights = held_weights(model)
        then = f"Next: {command('finetune', '--model', model)}"
        return answer({"model": model, "weights": weights}, as_json, *held_lines(weights), then)
    facts, problems = examine()
    lines = [f"{key:<16} {value}" for key, value in facts.items()]
    lines += [f"Problem: {problem}" for problem in problems]
    then = "Mend the problems, then: mlx-hybrid doctor" if problems else "Next: mlx-hybrid finetune"
    answer({"facts": facts, "problems": problems}, as_json, *lines, then)
    if problems:
        raise SystemExit(3)
    return None


def held_weights(name: str) -> list[dict]:
    """How each type of tensor of a GGUF file is held. Raises ConfigError for another model."""
    from mlx_hybrid.errors import ConfigError
    from mlx_hybrid.models.base import find_model
    from mlx_hybrid.models.gguf.file import open_gguf
    from mlx_hybrid.models.gguf.load import holdings

    path = find_model(name)
    if not path.is_file():
        raise ConfigError(f"{name}: is a folder; doctor says how the weights of a GGUF file are held.")
    return holdings(open_gguf(path))


def held_lines(weights: list[dict]) -> list[str]:
    """The same as lines, and what the file's values take in memory."""
    stored, held = (sum(row[key] for row in weights) / 1e6 for key in ("file_bytes", "bytes"))
    lines = [
        f"  {row['type']:<5}{row['tensors']:>4} tensors, {row['file_bytes'] / 1e6:,.1f} MB in the file, "
        f"{row['bytes'] / 1e6:,.1f} MB in memory"
        for row in weights
    ]
    return [
        *lines,
        f"Weights: {stored:,.1f} MB in the file, {held:,.1f} MB in memory, each value exactly as it is.",
    ]


def examine() -> tuple[dict, list[str]]:
    """Facts and problems."""
    import shutil

    import mlx.core as mx

    from mlx_hybrid.errors import ConfigError
    from mlx_hybrid.governance.checks.engines import fasttext_distribution
    from mlx_hybrid.models.base import BUNDLED_FOLDER, check_folder, is_offline
    from mlx_hybrid.models.blas import WAY, loaded
    from mlx_hybrid.run import machine, memory_bytes, runs_root

    about = machine()
    backends = [name for name in ("ring", "jaccl", "mpi", "nccl") if mx.distributed.is_available(name)]
    facts = {
        **{key: about[key] for key in ("system", "machine", "python", "device", "cores")},
        **about["versions"],
        "memory_gb": round(memory_bytes() / 1e9, 1),
        "blas": loaded or "MLX's own",
        "distributed": ", ".join(backends) or "none",
        "fasttext": fasttext_distribution() or "none",
        "offline": "yes" if is_offline() else "no",
        "runs": str(runs_root()),
        "free_disk_gb": round(shutil.disk_usage(Path.cwd()).free / 1e9, 1),
    }
    problems = []
    try:
        check_folder(BUNDLED_FOLDER, "the bundled base")
    except ConfigError as error:
        problems.append(str(error))
    if facts["system"] == "Darwin" and facts["device"] == "CPU":
        problems.append("MLX does not see the GPU; install mlx for Apple Silicon, with a native Python.")
    if facts["system"] == "Linux" and facts["device"] == "CPU" and not loaded:
        facts["hint"] = f"training is several times faster with a fast BLAS: {WAY}"
    return facts, problems
