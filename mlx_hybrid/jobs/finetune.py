"""The main job, composed once: govern → train → evaluate. It yields events; the command line shows them."""

from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mlx_hybrid.config import Config, to_tree
from mlx_hybrid.errors import ConfigError, DataError
from mlx_hybrid.models.base import check_local, load_tokenizer_of
from mlx_hybrid.records.files import Sources, find_sources
from mlx_hybrid.records.split import Split
from mlx_hybrid.run import Run, check_place, create_run, discard, run_place, writing
from mlx_hybrid.training.data import check_manifests, check_patience, note_data, prepare
from mlx_hybrid.training.distributed import ONE, RankLost, Ranks, check_divisible
from mlx_hybrid.training.events import Event, Interrupted, Note, Started
from mlx_hybrid.training.material import (
    Material,
    attach_adapter,
    end_of_answers,
    gradient_start,
    how_to_need_less,
    load_material,
)
from mlx_hybrid.training.progress import Progress
from mlx_hybrid.training.recording import begin_run, handle, note_end, way_on

if TYPE_CHECKING:
    from mlx_hybrid.evaluation.results import Results
    from mlx_hybrid.evaluation.sets import EvaluationSet


@dataclass(frozen=True)
class Prepared:
    """The data has been read; `reasons` counts what governance set aside, `run`/data/rejected.jsonl holds it."""

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

    results: "Results"


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
    run = resume or create_run(config, path)
    with writing(run):
        try:
            data = prepare(config, sources, None if resume else run.data)
            if resume is None:
                check_patience(config, data.split)
                note_data(config, run, data, manifests)
            yield Prepared(run, **data.counts, **data.sizes)
            from mlx_hybrid.training.memory.limits import running_out

            material = load_material(config, data.split, ranks=ranks.size, force=force)
            with running_out(
                lambda: how_to_need_less(config, material.train, ranks=ranks.size) + way_on(run)
            ):
                yield from train_and_evaluate(
                    config, run, data.split, sources, material,
                    resume=resume is not None, stop=stop, force=force, ranks=ranks,
                )  # fmt: skip
        except BaseException as error:
            if resume is None and not worth_keeping(run, error):
                discard(made)
            elif resume is None or not isinstance(error, ConfigError | DataError):
                note_end(run, error)
            raise


def worth_keeping(run: Run, error: BaseException) -> bool:
    """Whether a run that broke off got far enough to be looked at or gone on with."""
    measured = isinstance(error, Exception) and (run.path / "metrics.jsonl").exists()
    return measured or run.checkpoints.is_dir()


def train_and_evaluate(
    config: Config,
    run: Run,
    split: Split,
    sources: Sources,
    material: Material,
    *,
    resume: bool,
    stop: Callable[[], bool],
    force: bool,
    ranks: Ranks,
) -> Iterator[JobEvent]:
    from mlx_hybrid.adapters.attach import check_attach
    from mlx_hybrid.training.loop import total_steps
    from mlx_hybrid.training.worker import announce

    begin_run(config, run, material, sources, resume=resume, ranks=ranks.size)
    announce(ranks, config, material, force=force)
    if material.too_long:
        done = "dropped" if config.train.too_long == "drop" else "cut"
        yield Note(
            f"Over train.max_tokens ({config.train.max_tokens}) and {done}: {material.too_long} records."
        )
    yield from end_of_answers(split, material)
    check_attach(material.base.model, config.adapter, method=config.method)
    held_out = yield from ask_base(config, run, split, material)
    attached = attach_adapter(config, material)
    progress = yield from starting_point(config, run, material, resume=resume, ranks=ranks.size)
    yield Started(
        total_steps(config.train, len(material.train)), progress.step, len(attached.modules),
        attached.trainable, len(material.train), ranks.size,
    )  # fmt: skip
    ended = yield from train_run(config, run, material, progress, stop=stop, ranks=ranks)
    if ended:
        yield from finish(config, run, material, held_out)


def ask_base(
    config: Config, run: Run, split: Split, material: Material
) -> "Generator[Note, None, dict[str, EvaluationSet]]":
    """Keep the base's answers to the held-out records in the run; the sets asked, none where nothing is measured."""
    from mlx_hybrid.evaluation.answers import collect
    from mlx_hybrid.evaluation.evaluate import held_out_sets, parts_of

    if not config.evaluate or not material.test:
        return {}
    test, trained, why = held_out_sets(
        split.test,
        split.train,
        group=config.data.group,
        max_tokens=config.train.max_tokens,
        measured={example.where for example in material.test},
    )
    if why:
        yield Note(why)
    yield Note(f"Scoring the base on {len(material.test)} held-out records.")
    parts = parts_of(test, trained=trained, seed=config.seed)
    path, identity = answers_of(run) / "base.answers.jsonl", material.base.identity["fingerprint"]
    collect(material.base.model, material.base.tokenizer, parts, path, name="base", identity=identity)
    return parts


def answers_of(run: Run) -> Path:
    """Where the answers to the held-out records are kept."""
    return run.path / "evaluation" / "answers" / "held-out"


def starting_point(
    config: Config, run: Run, material: Material, *, resume: bool, ranks: int
) -> Generator[Note, None, Progress]:
    """Give the adapter the values that training starts from: of a checkpoint, an adapter, or the first gradient."""
    if resume:
        from mlx_hybrid.training.checkpoint import load_checkpoint

        progress = load_checkpoint(run.checkpoints, material.base.model, material.optimizer)
        run.forget_after(progress.step)
        return progress
    if config.start_from:
        from mlx_hybrid.models.adapted import find_adapter
        from mlx_hybrid.training.continuation import load_start

        load_start(config, material.base, find_adapter(config.start_from)[0])
        yield Note(f"Going on from {config.start_from}.")
    elif config.adapter.from_gradient:
        yield from gradient_start(config, run, material, ranks=ranks)
    return Progress()


def train_run(
    config: Config,
    run: Run,
    material: Material,
    progress: Progress,
    *,
    stop: Callable[[], bool],
    ranks: Ranks,
) -> Generator[Event, None, bool]:
    """Train and write down what happens; whether it came to its end, unless a stop was asked for."""
    from mlx_hybrid.training.loop import train
    from mlx_hybrid.training.worker import begin

    try:
        begin(ranks, material, progress)
        for event in train(
            material.base.model, material.optimizer, material.train, material.valid, config.train,
            seed=config.seed, progress=progress, stop=stop, temperature=config.data.temperature, ranks=ranks,
        ):  # fmt: skip
            handle(event, config, run, material, progress)
            yield event
            if isinstance(event, Interrupted):
                return False
    except RankLost as lost:
        raise RankLost(f"{lost}{way_on(run)}") from None
    return True


def finish(
    config: Config, run: Run, material: Material, held_out: "dict[str, EvaluationSet]"
) -> Iterator[JobEvent]:
    """Load the best adapter onto a fresh base, as a user will, and measure it."""
    from mlx_hybrid.adapters.attach import settle
    from mlx_hybrid.evaluation.evaluate import evaluate
    from mlx_hybrid.evaluation.results import write_results
    from mlx_hybrid.models.adapted import load_run
    from mlx_hybrid.models.base import load_base

    tokenizer, fingerprint = material.base.tokenizer, material.base.identity["fingerprint"]
    material.base = material.optimizer = None
    loaded = load_run(run, base_name=config.model, tokenizer=tokenizer)
    yield AdapterReady(run.adapter, loaded.modules, loaded.change)
    if held_out:
        yield Note(f"Scoring the adapter on {len(material.test)} held-out records.")
        (answers_of(run) / "adapted.answers.jsonl").unlink(missing_ok=True)  # of a call that was killed here
        results = evaluate(
            {"base": lambda: load_base(config.model).model, "adapted": settle(loaded.model)},
            tokenizer,
            held_out["test"],
            trained=held_out.get("trained"),
            seed=config.seed,
            directory=answers_of(run),
            identities={"base": fingerprint},
        )
        write_results(run.path / "evaluation" / "held-out.json", results)
        yield Evaluated(results)
    run.update(status="finished")
    write_pages(run)


def write_pages(run: Run) -> None:
    """The page to read and the draft of a model card, from what the run wrote down."""
    from mlx_hybrid.publish.card import write_card
    from mlx_hybrid.report.run_page import write_run_page

    write_run_page(run)
    write_card(run)


def plan(config: Config, *, ranks: Ranks = ONE, force: bool = False) -> dict:
    """What a run would do, without doing it: the resolved config, the sizes of the data, and the tokens of it.

    Reads the model's config, tokenizer and headers, and raises what the run itself would.
    """
    from mlx_hybrid.models.adapted import find_adapter
    from mlx_hybrid.training.continuation import check_base_of_start
    from mlx_hybrid.training.material import check_fits, tokenised

    check_divisible(config.train.batch_size, ranks)
    sources = find_sources(config.data)
    if not config.data.allow_changed:
        check_manifests(sources)
    check_local(config.model)
    data = prepare(config, sources)
    check_patience(config, data.split)
    sets, too_long = tokenised(config, data.split, load_tokenizer_of(config.model))
    if config.start_from:
        check_base_of_start(config, find_adapter(config.start_from)[0])
    check_fits(config, sets[0], ranks=ranks.size, force=force)
    lengths = [len(example.tokens) for example in sets[0]]
    return {
        "config": to_tree(config),
        "records": data.counts,
        "split": data.sizes,
        "tokens": {"train": sum(lengths), "longest": max(lengths), "too_long": too_long},
    }
