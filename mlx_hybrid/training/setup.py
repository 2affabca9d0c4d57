"""What a training loop needs: the base, the adapter on it with its start, the optimiser, and the examples."""

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from mlx_hybrid.adapters.attach import Attached, attach
from mlx_hybrid.adapters.frozen import unpack
from mlx_hybrid.adapters.start import apply_start, scale_to_inputs, sketch_columns, sketch_gradients
from mlx_hybrid.adapters.step_gains import rate_factors, step_gains
from mlx_hybrid.adapters.store import AdapterInfo, put_adapter, read_adapter_config
from mlx_hybrid.config import Config, TrainConfig, to_tree
from mlx_hybrid.errors import ConfigError, DataError
from mlx_hybrid.models.base import BaseModel, base_of, fingerprints, load_base, tokenizer_for
from mlx_hybrid.models.keys import context_limit
from mlx_hybrid.models.templates import PLAIN, unnamed_end
from mlx_hybrid.records.examples import Example, Tokenised, make_examples
from mlx_hybrid.records.record import Split
from mlx_hybrid.training.batches import Hold, make_batch, weigh_prompts
from mlx_hybrid.training.events import Note
from mlx_hybrid.training.loop import total_steps
from mlx_hybrid.training.loss import arrays, make_loss
from mlx_hybrid.training.memory.estimate import check_fits
from mlx_hybrid.training.memory.limits import checkpoint_layers, set_limits
from mlx_hybrid.training.optimizer import BranchOptimizer

SKETCH_RECORDS, SKETCH_PASSES = 64, 4  # two passes find gradients that decay fast, four slow ones too
START_SHARE = 0.2  # most of a run's record passes that its start may take
RATE_RECORDS = 16  # training records that the rates' factors are measured on


@dataclass
class Setup:
    """Everything a training loop needs; `made` are the records to train on, to validate with and to test, `aside`
    (where, why) of each that cannot be trained as it would be asked. The optimiser comes with the adapter."""

    base: BaseModel
    made: list[Tokenised]
    optimizer: BranchOptimizer | None = None

    def __post_init__(self) -> None:
        self.train, self.valid, self.test = (part.examples for part in self.made)
        self.aside = [item for part in self.made for item in part.aside]


def load_setup(
    config: Config, split: Split, *, day: date | None = None, machines: int = 1, force: bool = False
) -> Setup:
    """Examples, then the model. `day` is the date that a chat template may write. Raises DataError for records that
    cannot be tokenised as asked, and MemoryLimitError, before a weight is read, for a run that cannot fit, unless
    forced. Each of `machines` has its part of a batch."""
    tokenizer = tokenizer_for(config.model, day)
    made = tokenised(config, split, tokenizer)
    room = check_fits(config, made[0].examples, machines=machines, force=force)
    base = load_base(config.model.name, tokenizer=tokenizer)
    if room:
        unpack(base.model)
    set_limits()
    return Setup(base, made)


def tokenised(config: Config, split: Split, tokenizer: Any) -> list[Tokenised]:
    """The records to train on, to validate with and to test, as examples."""
    limit = {"max_tokens": config.train.max_tokens, "too_long": config.train.too_long}
    made = [make_examples(part, tokenizer, **limit) for part in (split.train, split.valid, split.test)]
    if not made[0].examples:
        why = made[0].aside[0][1] if made[0].aside else f"over train.max_tokens ({config.train.max_tokens})"
        raise DataError(f"No training record is left: {why}.")
    return made


def data_identity(sets: Iterable[list[Example]], tokenizer: Any) -> str:
    """sha256 over the records of some sets, in order, and what decides their tokens; no date is part of it."""
    digest = hashlib.sha256(tokenizer.identity.encode())
    for examples in sets:
        digest.update("".join(["|", *(example.digest for example in examples)]).encode())
    return digest.hexdigest()


def data_notes(config: Config, split: Split, setup: Setup) -> Iterator[Note]:
    """What there is to say of the examples: too long, set aside, left out by the template, or ended otherwise."""
    if long := sum(len(part.long) for part in setup.made):
        done = "dropped" if config.train.too_long == "drop" else "cut"
        yield Note(f"Over train.max_tokens ({config.train.max_tokens}) and {done}: {long} records.")
    limit = context_limit(setup.base.model, setup.base.tokenizer)
    if beyond := sum(len(example.tokens) > limit for example in setup.train):
        yield Note(
            f"Longer than the base's context of {limit:,} tokens, of which it knows nothing: {beyond} records."
        )
    for where, why in setup.aside[:1]:
        count = len(setup.aside)
        yield Note(f"Set aside, listed in set-aside.jsonl: {count} records; {where}: {why.rstrip('.')}.")
    for part, count in Counter(part for example in setup.train for part in example.unwritten).items():
        yield Note(f"The chat template does not write {part}, which is not trained: {count} records.")
    if context := sum(example.context_answers for example in setup.train):
        told = "older answers are context only: the template writes them otherwise than it asks for them"
        yield Note(f"{context} {told}.")
    if all(record.kind == "text" for record in split.train):
        return
    tokenizer = setup.base.tokenizer
    if tokenizer.given == PLAIN and not config.model.chat_template:
        yield Note(
            "The base has no chat template, so turns are written plainly, each after a line as `### User:`, answers "
            f"ended with {tokenizer.eos_token}; the adapter keeps that for chat. --template names another."
        )
    if end := unnamed_end(tokenizer, setup.base.path):
        yield Note(
            f"Answers end with {end}, which the model's settings do not name as an end. It is trained, and chat, "
            "generate, serve, evaluate and whole-model exports stop there; other programs must be told."
        )
    elif end == "":
        yield Note(
            "The model's chat template ends an answer with no token, so where to stop is not learnt: answers will run "
            "to their limit. A template that closes the turn with a token mends it."
        )


def attach_adapter(config: Config, setup: Setup) -> Attached:
    """Put a fresh adapter on the base and make its optimiser."""
    model, train = setup.base.model, config.train
    attached = attach(model, config.adapter, seed=config.seed)
    if train.grad_checkpoint:
        checkpoint_layers(model)
    setup.optimizer = BranchOptimizer(model, train, config.adapter.mixing)
    return attached


def start_from_records(config: Config, setup: Setup, *, machines: int = 1) -> Iterator[Note]:
    """Start adapter and rates (adapters/start.py, step_gains.py) from records, in batches of one of `machines`."""
    model = setup.base.model
    mx.random.seed(config.seed)  # dropout acts in what is measured
    if config.adapter.from_gradient and not config.start_from:
        records, passes = sketch_size(config.train, total_steps(config.train, len(setup.train)))
        batches = start_arrays(config, setup, records, machines)
        how = {"columns": sketch_columns(config.adapter), "passes": passes, "seed": config.seed}
        for step in sketch_gradients(model, make_loss, batches, **how):
            if isinstance(step, int):
                count = sum(len(batch[0]) for batch in batches)
                yield Note(f"Gradient of {count} records, pass {step} of {passes}.")
        apply_start(model, step)
        scale_to_inputs(model, make_loss, batches)
    if config.train.rates == "share":
        batches = start_arrays(config, setup, RATE_RECORDS, machines)
        setup.optimizer.set_factors(rate_factors(step_gains(model, make_loss, batches)))


def sketch_size(train: TrainConfig, steps: int) -> tuple[int, int]:
    """(records, passes) of the gradient's sketch: as many as serve, or two passes over as many records as a fifth of
    the run's record passes pays for, with the one that scales the start."""
    most = int(START_SHARE * steps * train.accumulate * train.batch_size)
    if most >= SKETCH_RECORDS * (SKETCH_PASSES + 1):
        return SKETCH_RECORDS, SKETCH_PASSES
    return min(SKETCH_RECORDS, max(train.batch_size, most // 3)), 2


def start_arrays(config: Config, setup: Setup, count: int, machines: int) -> list[tuple]:
    """Batches of `count` training records, drawn by the seed and of like length, as a step has them."""
    train, seed, examples = config.train, config.seed, setup.train
    size = train.batch_size // machines
    # at the base there is no slope towards it
    hold = Hold(0.0 if config.held_to_base else train.prompt_weight, train.prompt_share)
    picked = np.random.default_rng(seed).permutation(len(examples))[:count]
    picked = sorted((examples[i] for i in picked), key=lambda e: len(e.tokens))
    groups = (picked[k : k + size] for k in range(0, len(picked), size))
    return [arrays(make_batch(weigh_prompts(group, hold, (seed, 0, n)))) for n, group in enumerate(groups)]


def settings_of_adapter(folder: Path, name: str, model: str | None) -> dict[str, Any]:
    """What a run that goes on from the adapter in `folder` must have, by key."""
    info = read_adapter_config(folder)
    wanted = base_of(name, info.base["id"], model, "--model")
    adapter = {f"adapter.{key}": value for key, value in to_tree(info.adapter).items()}
    template = {f"model.{key}": value for key, value in info.conversations.items()}
    return {"start_from": name, "method": info.method, "model.name": wanted} | template | adapter


def start_from_adapter(config: Config, base: BaseModel, folder: Path) -> AdapterInfo:
    """Put the adapter in `folder` into the attached model of `base`, and return what it says of itself. Raises
    ConfigError for an adapter of another base, method or shape."""
    info = read_adapter_config(folder)
    info.check_base(fingerprints(base.path), base.path, config.start_from)
    if (info.method, info.adapter) != (config.method, config.adapter):
        raise ConfigError(
            f"{config.start_from}: is a {info.method} adapter of other settings; start_from goes on with its own."
        )
    put_adapter(base.model, info, folder)
    return info
