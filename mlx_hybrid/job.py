"""The main job, composed once: govern → train → evaluate. It yields events; the command line shows them."""

import contextlib
import dataclasses
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlx_hybrid.base_model import check_local, load_tokenizer_of
from mlx_hybrid.config import Config, to_tree
from mlx_hybrid.errors import ConfigError, DataError
from mlx_hybrid.governance.records import Record, describe_faults, load_records, read_records
from mlx_hybrid.training.events import Event, Interrupted, Note, Started
from mlx_hybrid.training.material import (
    Material,
    attach_adapter,
    gradient_start,
    hash_examples,
    load_material,
)
from mlx_hybrid.training.ranks import ONE, RankLost, Ranks, check_divisible
from mlx_hybrid.training.recording import handle
from mlx_hybrid.training.run import Run, check_place, create_run, discard, machine, run_place, writing
from mlx_hybrid.training.sources import Sources, Split, find_sources, split_records

if TYPE_CHECKING:
    from mlx_hybrid.governance.pipeline import Rejection


@dataclass(frozen=True)
class Prepared:
    """The data has been read; `reasons` counts what governance set aside, `run`/rejected.jsonl holds it."""

    run: Run
    kept: int
    rejected: int
    reasons: dict[str, int]
    train: int
    valid: int
    test: int


@dataclass(frozen=True)
class AdapterReady:
    """The best adapter was put on a fresh base, and changes its logits by up to `change`."""

    path: Path
    modules: int
    change: float


@dataclass(frozen=True)
class Evaluated:
    """Base against adapter on the held-out records (docs/evaluation.md)."""

    results: dict


JobEvent = Event | Prepared | AdapterReady | Evaluated


def finetune(
    config: Config,
    *,
    output: Path | None = None,
    resume: Run | None = None,
    stop: Callable[[], bool] = lambda: False,
    force: bool = False,
    ranks: Ranks = ONE,
) -> Iterator[JobEvent]:
    """Run the whole job in a new run directory, or go on in an interrupted one.

    `force` loads what will probably not fit in memory. Of several `ranks` this is the first; the others follow it
    (training/worker.py). Raises ConfigError, DataError, MemoryLimitError, RankLost or MlxHybridError; whatever was
    saved before stays.
    """
    check_divisible(config.train.batch_size, ranks)
    sources = find_sources(config.data)
    manifests = [] if config.data.allow_changed else check_manifests(sources)
    check_local(config.model)
    path = output or run_place(config)
    made = [] if resume else check_place(config, path)
    split, prepared, rejections = prepare(config, sources)
    run = resume or create_run(config, path)
    with writing(run):
        try:
            if resume is None:
                note_data(config, run, prepared, rejections, manifests)
            yield dataclasses.replace(prepared, run=run)
            yield from train_and_evaluate(
                config, run, split, sources, resume=resume is not None, stop=stop, force=force, ranks=ranks
            )
        except BaseException as error:
            if resume is None and not worth_keeping(run, error):
                discard(made)
            elif resume is None or not isinstance(error, ConfigError | DataError):
                note_end(run, error)
            raise


def note_data(
    config: Config, run: Run, prepared: Prepared, rejections: "list[Rejection]", manifests: list[str]
) -> None:
    """Write into the run what governance decided, and the records it set aside, which stay on this machine."""
    if config.governance.enabled:
        from mlx_hybrid.governance.noted import write_rejections

        counts = {"kept": prepared.kept, "rejected": prepared.rejected, "reasons": prepared.reasons}
        run.update(governance=counts)
        write_rejections(run.rejected, rejections)
    run.update(data_manifests=manifests)


def check_manifests(sources: Sources) -> list[str]:
    """sha256 of the manifest of every governed file. Raises DataError for one that changed since it was signed."""
    from mlx_hybrid.governance.manifest import check_source

    found = [check_source(path) for path in (*sources.train, *sources.valid, *sources.test)]
    return sorted({digest for digest in found if digest})


def worth_keeping(run: Run, error: BaseException) -> bool:
    """Whether a run that broke off got far enough to be looked at or gone on with."""
    measured = isinstance(error, Exception) and (run.path / "metrics.jsonl").exists()
    return measured or run.checkpoints.is_dir()


def note_end(run: Run, error: BaseException) -> None:
    """Write down how a run broke off: by a fault, or by a second Ctrl-C."""
    failed = isinstance(error, Exception)
    told = {"status": "failed", "error": str(error)} if failed else {"status": "interrupted"}
    with contextlib.suppress(OSError):  # the disk may be what failed
        run.update(**told)


def prepare(config: Config, sources: Sources) -> "tuple[Split, Prepared, list[Rejection]]":
    """Govern and split the records; what was set aside comes with its reasons."""
    records, rejections = governed(config, sources.train)
    valid, test = load_records(sources.valid), load_records(sources.test)
    split = split_records(records, valid, test, config.data, config.seed)
    sizes = (len(split.train), len(split.valid), len(split.test))
    counts = reason_counts(rejections)
    return split, Prepared(Run(Path()), len(records), len(rejections), counts, *sizes), rejections


def governed(config: Config, files: tuple[Path, ...]) -> "tuple[list[Record], list[Rejection]]":
    """Records to use, and those set aside; without governance any fault is an error."""
    if not config.governance.enabled:
        return load_records(files), []
    from mlx_hybrid.governance.pipeline import govern_records

    lines = list(read_records(files))
    if not any(isinstance(line, Record) for line in lines):
        names = ", ".join(str(path) for path in files)
        raise DataError(describe_faults(lines) if lines else f"{names}: no record in there.")
    result = govern_records(lines, config.governance)
    if not result.kept:
        told = ", ".join(f"{reason} {count}" for reason, count in reason_counts(result.rejected).items())
        raise DataError(f"Governance kept none of the records ({told}).")
    return result.kept, result.rejected


def reason_counts(rejections: "list[Rejection]") -> dict[str, int]:
    """How many records went for each reason, the commonest first."""
    return dict(Counter(rejection.reason for rejection in rejections).most_common())


def train_and_evaluate(
    config: Config,
    run: Run,
    split: Split,
    sources: Sources,
    *,
    resume: bool,
    stop: Callable[[], bool],
    force: bool,
    ranks: Ranks,
) -> Iterator[JobEvent]:
    from mlx_hybrid.adapters.attach import check_attach
    from mlx_hybrid.evaluation.held_out import NO_QUESTIONS, make_questions, score
    from mlx_hybrid.training.loop import total_steps, train
    from mlx_hybrid.training.progress import Progress
    from mlx_hybrid.training.worker import announce, begin

    material = load_material(config, split, ranks=ranks.size, force=force)
    begin_run(config, run, material, sources, resume=resume, ranks=ranks.size)
    announce(ranks, config, material, force=force)
    if material.too_long:
        done = "dropped" if config.train.too_long == "drop" else "cut"
        yield Note(
            f"Over train.max_tokens ({config.train.max_tokens}) and {done}: {material.too_long} records."
        )
    try:
        questions = make_questions(split.test, split.train, material.base.tokenizer)
    except DataError as error:
        # The labels are no choice between fixed answers; the loss can still be measured.
        questions = NO_QUESTIONS
        yield Note(f"Accuracy is not measured: {error}")
    check_attach(material.base.model, config.adapter, method=config.method)
    evaluates = config.evaluate and bool(material.test)
    before = None
    if evaluates:
        yield Note(f"Scoring the base on {len(material.test)} held-out records.")
        before = score(material.base.model, material.test, questions)
    summary = attach_adapter(config, material)
    progress = Progress()
    if resume:
        from mlx_hybrid.training.checkpoint import load_checkpoint

        progress = load_checkpoint(run.checkpoints, material.base.model, material.optimizer)
        run.forget_after(progress.step)
    elif config.start_from:
        from mlx_hybrid.deployment.source import find_adapter
        from mlx_hybrid.training.continuation import load_start

        load_start(config, material.base, find_adapter(config.start_from)[0])
        yield Note(f"Going on from {config.start_from}.")
    elif config.adapter.from_gradient:
        yield from gradient_start(config, run, material, ranks=ranks.size)
    steps = total_steps(config.train, len(material.train))
    yield Started(
        steps, progress.step, len(summary.modules), summary.trainable, len(material.train), ranks.size
    )
    try:
        begin(ranks, material, progress)
        for event in train(
            material.base.model, material.optimizer, material.train, material.valid, config.train,
            seed=config.seed, progress=progress, stop=stop, temperature=config.data.temperature, ranks=ranks,
        ):  # fmt: skip
            handle(event, config, run, material, progress)
            yield event
            if isinstance(event, Interrupted):
                return
    except RankLost as lost:
        raise RankLost(f"{lost}{way_on(run)}") from None
    yield from finish(config, run, material, questions, before)


def way_on(run: Run) -> str:
    """The step to go on from, and how, where there is one."""
    from mlx_hybrid.training.checkpoint import checkpoints

    saved = checkpoints(run.checkpoints)
    step = int(saved[-1].name.partition("-")[2]) if saved else 0
    return f" Step {step} is saved; go on with: mlx-hybrid finetune --resume {run.path}" if saved else ""


def begin_run(
    config: Config, run: Run, material: Material, sources: Sources, *, resume: bool, ranks: int
) -> None:
    """Write run.json; a resumed run must have the config and the data it was begun with."""
    files = (*sources.train, *sources.valid, *sources.test)
    data_hash = hash_examples(material)
    if resume:
        if run.config() != config:
            raise ConfigError(
                f"{run.path}: its config.yaml is not the configuration asked for; resume takes none of its own."
            )
        if run.info().get("data_hash") != data_hash:
            raise ConfigError(f"{run.path}: the data changed since the run began; start a new run.")
        run.update(status="running", error=None, ranks=ranks)
        return
    run.update(
        status="running", started=time.strftime("%Y-%m-%dT%H:%M:%S"), method=config.method, seed=config.seed,
        base=material.base.identity, data_hash=data_hash, data=[path.name for path in files],
        records={"train": len(material.train), "valid": len(material.valid), "test": len(material.test)},
        machine=machine(), ranks=ranks,
    )  # fmt: skip


def finish(config: Config, run: Run, material: Material, questions: Any, before: Any) -> Iterator[JobEvent]:
    """Load the best adapter onto a fresh base, as a user will, and measure it."""
    from mlx_hybrid.adapters.attach import settle
    from mlx_hybrid.deployment.load import load_run
    from mlx_hybrid.evaluation.held_out import compare, score
    from mlx_hybrid.files import write_json

    tokenizer = material.base.tokenizer
    material.base = material.optimizer = None
    loaded = load_run(run, base_name=config.model, tokenizer=tokenizer)
    yield AdapterReady(run.adapter, loaded.modules, loaded.change)
    if before is not None:
        yield Note(f"Scoring the adapter on {len(material.test)} held-out records.")
        after = score(settle(loaded.model), material.test, questions)
        results = compare(before, after, material.test, questions, config.seed)
        (run.path / "evaluation").mkdir(exist_ok=True)
        write_json(run.path / "evaluation" / "held-out.json", results)
        yield Evaluated(results)
    run.update(status="finished")
    write_pages(run)


def write_pages(run: Run) -> None:
    """The page to read and the draft of a model card, from what the run wrote down."""
    from mlx_hybrid.deployment.card import write_card
    from mlx_hybrid.report.run_page import write_run_page

    write_run_page(run)
    write_card(run)


def plan(config: Config, *, ranks: Ranks = ONE, force: bool = False) -> dict:
    """What a run would do, without doing it: the resolved config, the sizes of the data, and the tokens of it.

    Reads the model's config, tokenizer and headers, and raises what the run itself would.
    """
    from mlx_hybrid.deployment.source import find_adapter
    from mlx_hybrid.training.continuation import check_base_of_start
    from mlx_hybrid.training.material import check_fits, tokenised

    check_divisible(config.train.batch_size, ranks)
    sources = find_sources(config.data)
    if not config.data.allow_changed:
        check_manifests(sources)
    check_local(config.model)
    split, prepared, _ = prepare(config, sources)
    sets, too_long = tokenised(config, split, load_tokenizer_of(config.model))
    if config.start_from:
        check_base_of_start(config, find_adapter(config.start_from)[0])
    check_fits(config, sets[0], ranks=ranks.size, force=force)
    lengths = [len(example.tokens) for example in sets[0]]
    return {
        "config": to_tree(config),
        "records": {"kept": prepared.kept, "rejected": prepared.rejected, "reasons": prepared.reasons},
        "split": {"train": len(split.train), "valid": len(split.valid), "test": len(split.test)},
        "tokens": {"train": sum(lengths), "longest": max(lengths), "too_long": too_long},
    }
