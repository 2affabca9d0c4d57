"""`doctor`: what this machine offers, and what is installed."""

from pathlib import Path

import click
from click import option

from mlx_hybrid.cli.commands import answer


@click.command()
@option("--json", "as_json", is_flag=True, help="Print as JSON.")
def doctor(as_json: bool) -> None:
    """Say what this machine offers and whether everything needed is installed.

    \b
    Example:
        mlx-hybrid doctor
    """
    facts, problems = examine()
    lines = [f"{key:<16} {value}" for key, value in facts.items()]
    lines += [f"Problem: {problem}" for problem in problems]
    then = "Mend the problems, then: mlx-hybrid doctor" if problems else "Next: mlx-hybrid finetune"
    answer({"facts": facts, "problems": problems}, as_json, *lines, then)
    if problems:
        raise SystemExit(3)


def examine() -> tuple[dict, list[str]]:
    """Facts and problems."""
    import shutil

    import mlx.core as mx

    from mlx_hybrid.errors import ConfigError
    from mlx_hybrid.governance.checks.fasttext import fasttext_distribution
    from mlx_hybrid.models.base import BUNDLED_FOLDER, check_folder, is_offline
    from mlx_hybrid.models.blas import WAY, answering_library
    from mlx_hybrid.run import machine, memory_bytes, runs_root

    about = machine()
    backends = [name for name in ("ring", "jaccl", "mpi", "nccl") if mx.distributed.is_available(name)]
    facts = {
        **{key: about[key] for key in ("system", "machine", "python", "device", "cores")},
        **about["versions"],
        "memory_gb": round(memory_bytes() / 1e9, 1),
        "blas": answering_library(),
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
    if facts["system"] == "Linux" and facts["device"] == "CPU" and "mlx_cpu" in facts["blas"]:
        facts["hint"] = f"training is several times faster with a fast BLAS: {WAY}"
    return facts, problems
