"""`estimate`: the memory a run needs, before a weight is loaded."""

from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from typing import Any

import click
from click import option

from mlx_hybrid.cli.commands import answer, command, given_options
from mlx_hybrid.cli.doctor import held_lines, held_weights
from mlx_hybrid.cli.options import given_settings, run_options
from mlx_hybrid.config import BUNDLED, Config
from mlx_hybrid.config.recipes import run_config
from mlx_hybrid.errors import MemoryLimitError

GIGA = 1e9
ORDINARY = 512
ASSUMED = f"an ordinary length of {ORDINARY} tokens, for want of records"
BATCHES, LENGTHS = (1, 2, 4, 8, 16, 32), (256, 512, 1024, 2048, 4096)


@click.command()
@run_options
@option("--memory", type=click.FloatRange(min=0.001), metavar="GB", help="Of another machine.")
@option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def estimate(
    config: str | None, overrides: tuple[str, ...], memory: float | None, as_json: bool, **options: Any
) -> None:
    """Say what memory a run needs, what makes it up, and the smallest change that fits.

    Only config.json and the headers of the weight files are read; of a model on the Hub nothing else is fetched.
    Without records at hand they are taken to be of an ordinary length, and a table says what others need.

    \b
    Examples:
        mlx-hybrid estimate
        mlx-hybrid estimate --model mlx-community/Qwen3-0.6B-4bit --set train.batch_size=4
        mlx-hybrid estimate my-run.yaml --memory 16
    """
    from mlx_hybrid.training.memory.estimate import Load
    from mlx_hybrid.training.memory.estimate import estimate as estimate_memory
    from mlx_hybrid.training.memory.fit import USABLE, as_options, memory_limit, way_out
    from mlx_hybrid.training.memory.shape import local_folder, model_shape

    given = given_settings(options)
    if "model.name" in given and not config:
        given.setdefault("data.paths", [])
    settings = run_config(config, overrides, given)
    shape = model_shape(settings)
    load_of, source = batch_of(settings)
    load = load_of(settings)
    limit = int(memory * GIGA * USABLE) if memory else memory_limit()
    found = estimate_memory(shape, load, settings)
    result: dict[str, Any] = {
        "format": 1,
        "batch": asdict(load),
        "batch_from": source,
        "bytes": found.items,
        "peak_bytes": found.peak,
        "cache_bytes": found.cache,
        "limit_bytes": limit,
        "fits": found.needed <= limit,
    }
    if (place := local_folder(settings.model.name)) and place.is_file():
        result["held"] = held_weights(settings.model.name)
    if source != "the records":
        loads = [Load(rows, tokens, rows * tokens) for rows in BATCHES for tokens in LENGTHS]
        needs = [estimate_memory(shape, load, settings).needed for load in loads]
        result["table"] = [asdict(load) | {"needed_bytes": need} for load, need in zip(loads, needs)]
    same_run = [*([config] if config else []), *given_options("memory", "as_json")]
    if result["fits"]:
        then = f"Next: {command('finetune', *same_run)}"
    else:
        result["change"] = way_out(shape, load_of, settings, limit)
        then = f"It will not fit. The smallest change that does: {as_options(result['change'])}"
    answer(result, as_json, *(held_lines(result["held"]) if "held" in result else ()), *lines(result), then)
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
        return partial(
            widest_load, longest=ORDINARY
        ), ASSUMED if settings.train.max_tokens > ORDINARY else "train.max_tokens"
    data = prepare(settings, find_sources(settings.data))
    made = tokenised(settings, data.split, tokenizer_for(settings.model))
    return partial(largest_load, made[0].examples), "the records"


def lines(result: dict[str, Any]) -> list[str]:
    """Items, peak and limit in GB."""
    batch = result["batch"]
    shown = [f"Longest batch, from {result['batch_from']}: {batch['rows']} rows of {batch['tokens']} tokens."]
    shown += [f"  {name:<22}{size / GIGA:>9.3f} GB" for name, size in result["bytes"].items() if size]
    if "table" in result:
        shown += ["By records a batch (down) and tokens a record (across); ! is over what may be used:"]
        shown += ["       " + "".join(f"{tokens:>9}" for tokens in LENGTHS)]
        needs = iter(row["needed_bytes"] for row in result["table"])
        mark = {True: "!", False: " "}
        for rows in BATCHES:
            own = [next(needs) for _ in LENGTHS]
            cells = (f"{need / GIGA:>8.2f}{mark[need > result['limit_bytes']]}" for need in own)
            shown.append(f"  {rows:>5}{''.join(cells)}")
    return [
        *shown,
        f"Peak: {result['peak_bytes'] / GIGA:.3f} GB, and {result['cache_bytes'] / GIGA:.3f} GB for reuse.",
        "Of logits and one layer's backward the larger counts; the update comes after both.",
        f"May be used: {result['limit_bytes'] / GIGA:.3f} GB.",
    ]
