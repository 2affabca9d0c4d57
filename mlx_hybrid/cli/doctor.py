"""`doctor`: what this machine offers, and what is installed."""

import json
from pathlib import Path

import click


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
def doctor(as_json: bool) -> None:
    """Say what this machine offers and whether everything needed is installed.

    \b
    Example:
        mlx-hybrid doctor
    """
    facts, problems = examine()
    if as_json:
        click.echo(json.dumps({"facts": facts, "problems": problems}, ensure_ascii=False))
    else:
        for key, value in facts.items():
            click.echo(f"{key:<16} {value}")
        for problem in problems:
            click.echo(f"Problem: {problem}")
        click.echo(
            "Next: mlx-hybrid finetune" if not problems else "Mend the problems, then: mlx-hybrid doctor"
        )
    if problems:
        raise SystemExit(3)


def examine() -> tuple[dict, list[str]]:
    """Facts and problems."""
    import shutil

    from mlx_hybrid.errors import ConfigError
    from mlx_hybrid.governance.checks.fasttext import fasttext_distribution
    from mlx_hybrid.models.base import BUNDLED_FOLDER, check_folder, is_offline
    from mlx_hybrid.models.blas import prefer_openblas
    from mlx_hybrid.run import machine, memory_bytes, runs_root

    prefer_openblas()
    about = machine()
    facts = {key: about[key] for key in ("system", "machine", "python", "device", "cores")} | about[
        "versions"
    ]
    facts["memory_gb"] = round(memory_bytes() / 1e9, 1)
    facts["openblas"] = "yes" if openblas_loaded() else "no"
    facts["distributed"] = ", ".join(distributed_backends()) or "none"
    facts["fasttext"] = fasttext_distribution() or "none"
    facts["offline"] = "yes" if is_offline() else "no"
    facts["runs"] = str(runs_root())
    facts["free_disk_gb"] = round(shutil.disk_usage(Path.cwd()).free / 1e9, 1)
    problems = []
    try:
        check_folder(BUNDLED_FOLDER, "the bundled base")
    except ConfigError as error:
        problems.append(str(error))
    if facts["system"] == "Darwin" and facts["device"] == "CPU":
        problems.append("MLX does not see the GPU; install mlx for Apple Silicon, with a native Python.")
    if facts["system"] == "Linux" and facts["device"] == "CPU" and facts["openblas"] == "no":
        facts["hint"] = "training is several times faster with OpenBLAS: apt install libopenblas0-pthread"
    return facts, problems


def distributed_backends() -> list[str]:
    """How several machines may train together here (docs/distributed.md)."""
    import mlx.core as mx

    return [name for name in ("ring", "jaccl", "mpi", "nccl") if mx.distributed.is_available(name)]


def openblas_loaded() -> bool:
    maps = Path("/proc/self/maps")
    return maps.exists() and "openblas" in maps.read_text()
