"""`estimate` and `doctor`: the memory a run needs before a weight is loaded, and what this machine offers."""

import shutil
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import click

from mlx_hybrid.cli.commands import answer, command, typed
from mlx_hybrid.cli.options import given_settings, json_option, option, run_options
from mlx_hybrid.config import BUNDLED, Config
from mlx_hybrid.config.recipes import run_config
from mlx_hybrid.errors import ConfigError, DataError, MemoryLimitError

GIGA = 1e9
ORDINARY = 512
ASSUMED = f"an ordinary length of {ORDINARY} tokens, for want of records"


@click.command()
@run_options
@option("--memory", "Of another machine.", type=click.FloatRange(min=0.001), metavar="GB")
@json_option
def estimate(
    config: str | None, overrides: tuple[str, ...], memory: float | None, as_json: bool, **options: Any
) -> None:
    """Say what memory a run needs, what makes it up, and the smallest change that fits.

    Only config.json and the headers of the weight files are read; of a model on the Hub nothing else is fetched.
    Without records at hand they are taken to be of an ordinary length; --batch-size and --max-tokens ask for others.

    \b
    Examples:
        mlx-hybrid estimate --model mlx-community/Qwen3-0.6B-4bit --set train.batch_size=4
        mlx-hybrid estimate my-run.yaml --memory 16
    """
    from mlx_hybrid.training.memory.estimate import USABLE, as_options, memory_limit, way_out
    from mlx_hybrid.training.memory.estimate import estimate as estimate_memory
    from mlx_hybrid.training.memory.shape import model_shape

    given = given_settings(options)
    if "model.name" in given and not config:
        given.setdefault("data.paths", [])
    settings = run_config(config, overrides, given)
    shape = model_shape(settings)
    load_of, source = batch_of(settings)
    load = load_of(settings)
    limit = int(memory * GIGA * USABLE) if memory else memory_limit()
    found = estimate_memory(shape, load, settings)
    result: dict[str, Any] = {"format": 1, "batch": asdict(load), "batch_from": source, "bytes": found.items}
    result |= {"peak_bytes": found.peak, "cache_bytes": found.cache, "limit_bytes": limit}
    result["fits"] = found.needed <= limit
    then = f"Next: {command('finetune', *typed('--memory', takes_value=True))}"
    if not result["fits"]:
        result["change"] = way_out(shape, load_of, settings, limit)
        then = f"It will not fit. The smallest change that does: {as_options(result['change'])}"
    lines = [f"Longest batch, from {source}: {load.rows} rows of {load.tokens} tokens."]
    lines += [f"  {name:<22}{size / GIGA:>9.3f} GB" for name, size in found.items.items() if size]
    lines += [f"Peak: {found.peak / GIGA:.3f} GB, and {found.cache / GIGA:.3f} GB for reuse."]
    lines += ["Of logits and one layer's backward the larger counts; the update comes after both."]
    answer(result, as_json, *lines, f"May be used: {limit / GIGA:.3f} GB.", then)
    if not result["fits"]:
        raise SystemExit(MemoryLimitError.exit_code)


def batch_of(settings: Config) -> tuple[Callable[[Config], Any], str]:
    """What gives the largest batch under some settings, of the records where they and the tokenizer are here, else of
    the settings' limits; and which of the two."""
    from mlx_hybrid.models.base import is_named, tokenizer_for
    from mlx_hybrid.records.files import find_sources
    from mlx_hybrid.training.data import prepare
    from mlx_hybrid.training.memory.estimate import largest_load, widest_load
    from mlx_hybrid.training.memory.shape import cached_folder
    from mlx_hybrid.training.setup import tokenised

    model = settings.model.name
    if not settings.data.paths or (model != BUNDLED and is_named(model) and not cached_folder(model)):
        source = ASSUMED if settings.train.max_tokens > ORDINARY else "train.max_tokens"
        return partial(widest_load, longest=ORDINARY), source
    data = prepare(settings, find_sources(settings.data))
    made = tokenised(settings, data.split, tokenizer_for(settings.model))
    return partial(largest_load, made[0].examples), "the records"


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

    from mlx_hybrid.governance.checks.engines import fasttext_distribution
    from mlx_hybrid.models.base import BUNDLED_FOLDER, check_folder, is_offline
    from mlx_hybrid.models.blas import WAY, loaded
    from mlx_hybrid.run import machine, memory_bytes, runs_root

    about, problems = machine(), []
    backends = [name for name in ("ring", "jaccl", "mpi", "nccl") if mx.distributed.is_available(name)]
    facts = {key: about[key] for key in ("system", "machine", "python", "device", "cores")} | about[
        "versions"
    ]
    facts |= {"memory_gb": round(memory_bytes() / GIGA, 1), "blas": loaded or "MLX's own"}
    facts |= {"distributed": ", ".join(backends) or "none", "fasttext": fasttext_distribution() or "none"}
    facts |= {"offline": "yes" if is_offline() else "no", "runs": str(runs_root())}
    facts["free_disk_gb"] = round(shutil.disk_usage(Path.cwd()).free / GIGA, 1)
    try:
        check_folder(BUNDLED_FOLDER, "the bundled base")
    except ConfigError as error:
        problems.append(str(error))
    if (facts["system"], facts["device"]) == ("Darwin", "CPU"):
        problems.append("MLX does not see the GPU; install mlx for Apple Silicon, with a native Python.")
    if (facts["system"], facts["device"]) == ("Linux", "CPU") and not loaded:
        facts["hint"] = f"training is several times faster with a fast BLAS: {WAY}"
    return facts, problems
