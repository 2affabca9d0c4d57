"""`estimate`: the memory a run needs before a weight is loaded."""

from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import click

from mlx_hybrid.cli.options import given_settings, json_option, option, run_options
from mlx_hybrid.cli.output import answer, command, typed
from mlx_hybrid.config import BUNDLED, Config
from mlx_hybrid.config.recipes import run_config
from mlx_hybrid.errors import MemoryLimitError

ORDINARY = 512
ASSUMED = f"an ordinary length of {ORDINARY} tokens, for want of records"
BATCHES, LENGTHS = (1, 2, 4, 8, 16, 32), (256, 512, 1024, 2048, 4096)


@click.command()
@run_options
@option("--memory", "Of another machine.", type=click.FloatRange(min=0.001), metavar="GB")
@json_option
def estimate(
    config: str | None, overrides: tuple[str, ...], memory: float | None, as_json: bool, **options: Any
) -> None:
    """Say what memory a run needs, what makes it up, and the smallest change that fits.

    Only config.json and the headers of the weight files are read; of a model on the Hub nothing else is fetched.
    Without records at hand they are taken to be of an ordinary length, and a table says what others need.

    \b
    Examples:
        mlx-hybrid estimate --model mlx-community/Qwen3-0.6B-4bit --set train.batch_size=4
        mlx-hybrid estimate my-run.yaml --memory 16
    """
    from mlx_hybrid.training.memory import estimate as planning
    from mlx_hybrid.training.memory.shape import model_shape

    given = given_settings(options)
    if "model.name" in given and not config:
        given.setdefault("data.paths", [])
    settings = run_config(config, overrides, given)
    shape = model_shape(settings)
    load_of, source = batch_of(settings)
    load = load_of(settings)
    limit = int(memory * 1e9 * planning.USABLE) if memory else planning.memory_limit()
    found = planning.estimate(shape, load, settings)
    result: dict[str, Any] = {"format": 1, "batch": asdict(load), "batch_from": source, "bytes": found.items}
    result |= {"peak_bytes": found.peak, "cache_bytes": found.cache, "limit_bytes": limit}
    result["fits"] = found.needed <= limit
    then = f"Next: {command('finetune', *typed('--memory', takes_value=True))}"
    if not result["fits"]:
        result["change"] = planning.way_out(shape, load_of, settings, limit)
        then = f"It will not fit. The smallest change that does: {planning.as_options(result['change'])}"
    lines = [f"Longest batch, from {source}: {load.rows} rows of {load.tokens} tokens."]
    lines += [f"  {name:<22}{size / 1e9:>9.3f} GB" for name, size in found.items.items() if size]
    if source != "the records":
        batch = partial(replace, settings.train)
        need_of = partial(planning.needed_by_one, shape, planning.widest_load, machines=1)
        rows = [[batch(batch_size=n, max_tokens=t + 1) for t in LENGTHS] for n in BATCHES]
        needs = [[need_of(replace(settings, train=own)) for own in row] for row in rows]
        result["table"] = {"batches": BATCHES, "tokens": LENGTHS, "needed_bytes": needs}
        told = "In GB, by records a batch (down) and tokens a record (across); ! is over what may be used:"
        lines += [told, "       " + "".join(f"{tokens:>9}" for tokens in LENGTHS)]
        cells = [[f"{need / 1e9:>8.2f}{'!' if need > limit else ' '}" for need in row] for row in needs]
        lines += [f"  {batch:>5}{''.join(row)}" for batch, row in zip(BATCHES, cells)]
    lines += [f"Peak: {found.peak / 1e9:.3f} GB, and {found.cache / 1e9:.3f} GB for reuse."]
    lines += ["Of logits and one layer's backward the larger counts; the update comes after both."]
    answer(result, as_json, *lines, f"May be used: {limit / 1e9:.3f} GB.", then)
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
