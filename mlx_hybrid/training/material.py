"""What a training loop needs, made ready: the base, the adapter on it, its optimiser and the examples."""

import hashlib
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, replace
from typing import Any

from mlx_hybrid.config import Config
from mlx_hybrid.errors import ConfigError, DataError, MemoryLimitError
from mlx_hybrid.models.answer_end import unnamed_end
from mlx_hybrid.records.split import Split
from mlx_hybrid.run import Run
from mlx_hybrid.training.events import Note
from mlx_hybrid.training.memory.shape import UnknownShapeError

SMALLER = 0.8  # of what a run was estimated to need, where that was too much after all


@dataclass
class Material:
    """Everything a training loop needs, ready."""

    base: Any
    optimizer: Any
    train: list
    valid: list
    test: list
    too_long: int = 0


def load_material(config: Config, split: Split, *, ranks: int = 1, force: bool = False) -> Material:
    """Examples, then the model. Raises DataError for records that cannot be tokenised as asked, and MemoryLimitError,
    before a weight is read, for a run that cannot fit, unless forced. Each of `ranks` has its part of a batch."""
    from mlx_hybrid.models.base import load_base, load_tokenizer_of
    from mlx_hybrid.training.memory.limits import set_limits

    tokenizer = load_tokenizer_of(config.model)
    sets, too_long = tokenised(config, split, tokenizer)
    check_fits(config, sets[0], ranks=ranks, force=force)
    base = load_base(config.model, tokenizer=tokenizer)
    set_limits()
    return Material(base, None, *sets, too_long=too_long)


def tokenised(config: Config, split: Split, tokenizer: Any) -> tuple[list[list[Any]], int]:
    """Examples of the three sets, and how many records were dropped or cut for length."""
    from mlx_hybrid.records.template import make_examples

    limit = {"max_tokens": config.train.max_tokens, "too_long": config.train.too_long}
    made = [make_examples(part, tokenizer, **limit) for part in (split.train, split.valid, split.test)]
    if not made[0].examples:
        why = made[0].aside[0][1] if made[0].aside else f"over train.max_tokens ({config.train.max_tokens})"
        raise DataError(f"No training record is left: {why}.")
    return [part.examples for part in made], sum(len(part.long) for part in made)


def end_of_answers(split: Split, material: Material) -> Iterator[Note]:
    """Says so where the chat template ends an answer otherwise than the model's settings say, or with no token."""
    if all(record.kind == "text" for record in split.train):
        return
    end = unnamed_end(material.base.tokenizer, material.base.path)
    if end:
        yield Note(
            f"Answers end with {end}, which the model's settings do not name as an end. It is trained, and chat, "
            "generate, serve, evaluate and whole-model exports stop there; other programs must be told."
        )
    elif end == "":
        yield Note(
            "The model's chat template ends an answer with no token, so where to stop is not learnt: answers will run "
            "to their limit. A template that closes the turn with a token mends it."
        )


def check_fits(config: Config, examples: list[Any], *, ranks: int = 1, force: bool = False) -> None:
    """Raise ConfigError for an adapter that does not fit the model's layers, and MemoryLimitError, unless forced, when
    the estimate is over what the machine has to give, with the change that fits."""
    from mlx_hybrid.training.memory.estimate import memory_limit

    try:
        needed, way = requirement(config, examples, ranks=ranks)
    except UnknownShapeError:
        return  # an unfamiliar config.json: nothing can be said, which is no reason to refuse
    limit = memory_limit()
    if force or needed <= limit:
        return
    raise MemoryLimitError(
        f"Training needs about {needed / 1e9:.1f} GB and {limit / 1e9:.1f} GB may be used here; "
        f"what fits: {way(limit)}. --force tries it all the same."
    )


def requirement(config: Config, examples: list[Any], *, ranks: int = 1) -> tuple[int, Callable[[float], str]]:
    """The bytes that a run's largest batch needs, and what gives the smallest change that fits some limit, as options.

    Raises UnknownShapeError for an unfamiliar config.json.
    """
    from functools import partial

    from mlx_hybrid.training.memory.estimate import as_options, estimate, largest_load, way_out
    from mlx_hybrid.training.memory.shape import model_shape

    size = config.train.batch_size // ranks
    config = replace(config, train=replace(config.train, batch_size=size))
    shape = model_shape(config)
    load_of = partial(largest_load, shape, examples)

    def way(limit: float) -> str:
        told = as_options(way_out(shape, load_of, config, int(limit)))
        if ranks > 1 and "batch_size" in told:
            told += f" (for one rank: give {ranks} times that train.batch_size)"
        return told

    return estimate(shape, load_of(config), config).needed, way


def how_to_need_less(config: Config, examples: list[Any], *, ranks: int = 1) -> str:
    """What to do where memory ran out for a run that was estimated to fit: something a fifth smaller."""
    try:
        needed, way = requirement(config, examples, ranks=ranks)
        smaller = f"start anew with what needs less: {way(SMALLER * needed)}"
    except (ConfigError, RuntimeError, MemoryError):  # nothing may be left to find out with
        smaller = "start anew with a smaller train.batch_size"
    return f"close other programs, or {smaller}."


def attach_adapter(config: Config, material: Material) -> Any:
    """Put a fresh adapter on the base and make its optimiser."""
    from mlx_hybrid.adapters.attach import attach
    from mlx_hybrid.training.memory.limits import checkpoint_layers
    from mlx_hybrid.training.optimizer import BranchOptimizer

    model, settings = material.base.model, config.train
    summary = attach(model, config.adapter, method=config.method, seed=config.seed)
    if settings.grad_checkpoint:
        checkpoint_layers(model)
    material.optimizer = BranchOptimizer(
        model,
        learning_rate=settings.learning_rate,
        orthogonal_learning_rate=settings.orthogonal_learning_rate,
        weight_decay=settings.weight_decay,
        clip=settings.clip,
        mixing=config.adapter.mixing,
    )
    return summary


def gradient_start(config: Config, run: Run, material: Material, *, ranks: int = 1) -> Iterator[Note]:
    """Start the branches that ask for it, and write into the run how much of the gradient each start holds."""
    captured = yield from start_from_examples(config, material, ranks=ranks)
    if not captured:
        return
    run.update(captured_gradient_energy={name: round(share, 4) for name, share in captured.items()})
    mean = sum(captured.values()) / max(1, len(captured))
    yield Note(
        f"The start holds {100 * mean:.0f} % of the gradient's energy, on average over {len(captured)} modules."
    )


def start_from_examples(
    config: Config, material: Material, *, ranks: int = 1
) -> Generator[Note, None, dict[str, float]]:
    """Start from the gradient of some training records (adapters/start.py); the share of its energy that
    each low-rank start holds is returned, nothing where no branch starts so. Batches are those of one of `ranks`."""
    from mlx_hybrid.adapters.start import (
        SketchPass,
        apply_start,
        scale_to_inputs,
        sketch_columns,
        sketch_gradients,
    )
    from mlx_hybrid.training.batches import make_batch, start_batches
    from mlx_hybrid.training.loss import make_loss
    from mlx_hybrid.training.step import arrays

    adapter, size = config.adapter, config.train.batch_size // ranks
    if not adapter.from_gradient:
        return {}
    groups = start_batches(material.train, count=adapter.start_records, batch_size=size, seed=config.seed)
    batches = [arrays(make_batch(group)) for group in groups]
    for step in sketch_gradients(
        material.base.model,
        make_loss,
        batches,
        columns=sketch_columns(adapter),
        passes=adapter.start_passes,
        seed=config.seed,
    ):
        if isinstance(step, SketchPass):
            yield Note(f"Gradient of {sum(map(len, groups))} records, pass {step.number} of {step.passes}.")
    captured = apply_start(material.base.model, step)
    scale_to_inputs(material.base.model, make_loss, batches)
    return captured


def hash_examples(*sets: list[Any]) -> str:
    """sha256 over the tokens of the training, validation and test examples, in order."""
    digest = hashlib.sha256()
    for part in sets:
        for example in part:
            digest.update(repr((example.tokens, example.trained)).encode())
        digest.update(b"|")
    return digest.hexdigest()
