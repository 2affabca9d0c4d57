"""The main job, composed once: govern → train → evaluate. It yields events; the command line shows them."""

from collections.abc import Callable, Generator, Iterator
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

from mlx_hybrid.adapters.attach import settle
from mlx_hybrid.adapters.store import read_adapter_config
from mlx_hybrid.config import Config, to_tree
from mlx_hybrid.errors import ConfigError, DataError
from mlx_hybrid.evaluation.answers import collect
from mlx_hybrid.evaluation.benchmarks.questions import retention_set
from mlx_hybrid.evaluation.evaluate import evaluate, held_out_sets, parts_of
from mlx_hybrid.evaluation.metrics.translation import greedy
from mlx_hybrid.evaluation.results import write_results
from mlx_hybrid.evaluation.sets import EvaluationSet, limited
from mlx_hybrid.files import write_lines
from mlx_hybrid.jobs.events import AdapterReady, Answered, Evaluated, JobEvent, Prepared
from mlx_hybrid.models.adapted import UNCHECKED, Pair, find_adapter, load_run, run_base
from mlx_hybrid.models.base import check_local, fingerprints, load_base, tokenizer_for
from mlx_hybrid.records.examples import question_tokens
from mlx_hybrid.records.files import find_sources
from mlx_hybrid.records.record import Record, Split
from mlx_hybrid.run import LAST, SAMPLES, Run, create_run, discard, find_run, machine, run_place, writing
from mlx_hybrid.training import setup as preparation
from mlx_hybrid.training.checkpoint import Progress, load_checkpoint
from mlx_hybrid.training.data import check_held_back, check_manifests, prepare
from mlx_hybrid.training.distributed import ALONE, MachineLost, World, check_divisible
from mlx_hybrid.training.events import CheckpointDue, Event, Interrupted, Note, Started
from mlx_hybrid.training.loop import Training, align, total_steps
from mlx_hybrid.training.memory.estimate import check_fits
from mlx_hybrid.training.memory.limits import running_out
from mlx_hybrid.training.memory.shape import local_folder
from mlx_hybrid.training.recording import Recorder, begin_run, note_end, way_on
from mlx_hybrid.training.setup import Setup, attach_adapter, load_setup, start_from_records

TEXTS = 2  # of each language, by which a run measures what it forgot; `evaluate` takes all
GENERAL = (
    "What is the capital of France?",
    "Write a Python function that adds two numbers.",
    "I have 12 apples and give away 5. How many are left?",
)
ANSWERS = "evaluation/answers/held-out"  # in the run's folder: the answers to its held-out records
HELD_OUT, LONGEST = 3, 48  # records that are answered, and tokens of an answer


def finetune(
    config: Config,
    *,
    output: Path | None = None,
    resume: Run | None = None,
    stop: Callable[[], bool] = lambda: False,
    force: bool = False,
    world: World = ALONE,
) -> Iterator[JobEvent]:
    """Run the whole job in a new run directory, or go on in an interrupted one.
    `force` loads what will probably not fit in memory. In a `world` of several machines the first one does all of it;
    the others take its steps with it, and write and yield nothing. Raises ConfigError, DataError, MemoryLimitError,
    MachineLost or MlxHybridError; whatever was saved before stays."""
    if config.start_from == LAST:  # which this run will be once it has begun
        config = replace(config, start_from=str(find_run(LAST).path))
    sources, manifests = find_data(config, world, resume)
    if not world.first:
        for _ in follow(config, sources, resume=resume, stop=stop, force=force, world=world):
            pass
        return
    path = output or run_place(config)
    made = [] if resume else [folder for folder in (path, *path.parents) if not folder.exists()]
    run = resume or create_run(config, path)
    with writing(run):
        try:
            data = prepare(config, sources, None if resume else run.data)
            if resume is None:
                check_held_back(config, data.split)
                governance = {"governance": data.counts} if config.governance.enabled else {}
                run.update(**governance, data_manifests=manifests)
            run.log(f"{'going on' if resume else 'begun'}: {data.sizes['train']} records to train on")
            yield Prepared(run, **data.counts, **data.sizes, read_as=data.read_as)
            day = (resume.template_date() if resume else None) or date.today()
            setup = load_setup(config, data.split, day=day, machines=world.size, force=force)
            begin_run(config, run, setup, sources, resume=bool(resume), machines=world.size)
            how = {"resume": bool(resume), "stop": stop, "world": world}
            with running_out(lambda: way_on(run)):
                yield from train_and_evaluate(config, run, data.split, setup, **how)
        except BaseException as error:
            measured = isinstance(error, Exception) and (run.path / "metrics.jsonl").exists()
            if resume is None and not measured and not run.checkpoints.is_dir():
                discard(made)
            elif resume is None or not isinstance(error, ConfigError | DataError):
                note_end(run, error)
            raise


def find_data(config: Config, world: World, resume: Run | None) -> tuple[Split, list[str]]:
    """The files of a job and the hashes of their manifests, with what can be refused before any work."""
    check_divisible(config.train.batch_size, world.size)
    sources = find_sources(config.data)
    manifests = [] if config.data.allow_changed else check_manifests(sources)
    if resume:
        run_base(resume, "set model.name in its config.yaml to")
    check_local(config.model.name)
    return sources, manifests


def train_and_evaluate(
    config: Config, run: Run, split: Split, setup: Setup, *, resume: bool, **how: Any
) -> Iterator[JobEvent]:
    """Measure the base, train as `steps` does, and measure the best adapter beside it."""
    yield from preparation.data_notes(config, split, setup)
    held_out = yield from ask_base(config, run, split, setup)
    attached = attach_adapter(config, setup)
    machines, records = how["world"].size, len(setup.train)
    progress = yield from starting_point(config, run if resume else None, setup, machines)
    recorder = Recorder(config, run, setup, progress)
    if resume:
        run.forget_after(progress.step)
    else:
        recorder.handle(CheckpointDue(0))  # so that no stop loses the start
    last = total_steps(config.train, records)
    run.log(f"training from step {progress.step} to {last}")
    yield Started(last, progress.step, len(attached.modules), attached.trainable, records, machines)
    try:
        for event in steps(config, setup, progress, **how):
            recorder.handle(event)
            yield event
            if isinstance(event, Interrupted):
                return
    except MachineLost as lost:
        raise MachineLost(f"{lost}{way_on(run)}") from None
    yield from recorder.keep_at_strength()
    yield from finish(config, run, setup, held_out)


def follow(config: Config, sources: Split, *, resume: Run | None, force: bool, **how: Any) -> Iterator[Event]:
    """The first machine's steps, each on this one's part of the batch."""
    machines = how["world"].size
    setup = load_setup(config, prepare(config, sources).split, machines=machines, force=force)
    with running_out():
        attach_adapter(config, setup)
        progress = yield from starting_point(config, resume, setup, machines)
        yield from steps(config, setup, progress, **how)


def starting_point(
    config: Config, resume: Run | None, setup: Setup, machines: int
) -> Generator[Note, None, Progress]:
    """Give the adapter what training starts from: a checkpoint, an adapter, or the first gradient; where it stands."""
    if resume:
        return load_checkpoint(resume.checkpoints, setup.base.model, setup.optimizer)
    if config.start_from:
        folder, _ = find_adapter(config.start_from, config.model.name)
        info = preparation.start_from_adapter(config, setup.base, folder)
        yield Note(f"Going on from {config.start_from}." + (f" {UNCHECKED}." if info.stock else ""))
    yield from start_from_records(config, setup, machines=machines)
    return Progress()


def steps(
    config: Config, setup: Setup, progress: Progress, *, stop: Callable[[], bool], world: World
) -> Iterator[Event]:
    """Train to the end, from the same place on every machine. Raises ConfigError where one is not like the first."""
    model, optimizer = setup.base.model, setup.optimizer
    if world.size > 1:
        records = preparation.data_identity((setup.train, setup.valid), setup.base.tokenizer)
        alike = {"settings": to_tree(config), "records": records, "checkpoint": progress.step}
        alike |= {"base model": setup.base.identity["fingerprint"], "versions": machine()["versions"]}
        world.check_alike(alike)
    align(model, optimizer, world)
    given = (model, optimizer, setup.train, setup.valid, config.train, config.seed, progress)
    yield from Training(*given, stop, config.data.temperature, world, config.held_to_base)


def ask_base(
    config: Config, run: Run, split: Split, setup: Setup
) -> Generator[Note, None, dict[str, EvaluationSet]]:
    """Keep the base's answers to the held-out records in the run; the sets asked, none where nothing is measured."""
    if not config.evaluate or not setup.test:
        return {}
    split = split.without({where for where, _ in setup.aside})
    how = {"group": config.data.group, "max_tokens": config.train.max_tokens}
    measured = {example.where for example in setup.test}
    test, trained, why = held_out_sets(split.test, split.train, measured=measured, **how)
    if why:
        yield Note(why)
    yield Note(f"Scoring the base on {len(setup.test)} held-out records.")
    kept = limited(retention_set("auto"), TEXTS, config.seed)
    parts = parts_of(test, trained=trained, retention=kept, seed=config.seed)
    path, identity = run.path / ANSWERS / "base.answers.jsonl", setup.base.identity["fingerprint"]
    collect(setup.base.model, setup.base.tokenizer, parts, path, name="base", identity=identity)
    return parts


def finish(config: Config, run: Run, setup: Setup, held_out: dict[str, EvaluationSet]) -> Iterator[JobEvent]:
    """Load the best adapter onto a fresh base, as a user will, and measure it."""
    tokenizer, fingerprint = setup.base.tokenizer, setup.base.identity["fingerprint"]
    setup.base = setup.optimizer = None
    loaded = load_run(Run(run.path, config.model.name), tokenizer=tokenizer)
    run.log("the best adapter is on a fresh base")
    yield AdapterReady(loaded.modules, loaded.change)
    if held_out:
        yield Note(f"Scoring the adapter on {len(setup.test)} held-out records.")
        place = run.path / ANSWERS
        (place / "adapted.answers.jsonl").unlink(missing_ok=True)  # of a call that was killed here
        models = {"base": lambda: load_base(config.model.name).model, "adapted": settle(loaded.model)}
        how = {"seed": config.seed, "directory": place, "identities": {"base": fingerprint}}
        results = evaluate(models, tokenizer, **held_out, **how)
        write_results(run.path / "evaluation" / "held-out.json", results)
        yield Evaluated(results)
    if config.evaluate:
        yield Answered(ask_both(config, run, loaded, held_out["test"].records if held_out else []))
    run.update(status="finished")
    run.log("finished")
    write_pages(run)


def ask_both(config: Config, run: Run, loaded: Pair, held_out: list[Record]) -> list[dict]:
    """What base and adapter answer to prompts of held-out records, and to general ones or a user's own. One row a
    prompt: `kind`, `prompt`, the answers of `base` and `adapted`; kept in the run's samples.jsonl."""
    wanted = {record.language: record for record in reversed(held_out) if record.kind != "text"}
    asked = [("held out", record) for record in list(wanted.values())[:HELD_OUT]]
    kind, texts = ("yours", config.report.prompts) if config.report.prompts else ("general", GENERAL)
    asked += [(kind, Record({"prompt": text, "completion": "?"}, "prompt", 0)) for text in texts]
    tokens = [question_tokens(record, loaded.tokenizer) for _, record in asked]
    generate, adapted = greedy(loaded.tokenizer, LONGEST), settle(loaded.model)
    answers = [generate(model, tokens) for model in (loaded.base, adapted)]
    rows = [{"kind": kind, "prompt": record.turns()[-2]["content"]} for kind, record in asked]
    rows = [row | {"base": own, "adapted": new} for row, own, new in zip(rows, *answers, strict=True)]
    write_lines(run.path / SAMPLES, rows)
    return rows


def write_pages(run: Run) -> None:
    """The page to read and the draft of a model card, from what the run wrote down."""
    from mlx_hybrid.publish.card import write_card
    from mlx_hybrid.report.run_page import write_run_page

    write_run_page(run)
    write_card(run)


def plan(config: Config, *, resume: Run | None = None, world: World = ALONE, force: bool = False) -> dict:
    """What a run would do, without doing it: the config, and the sizes and tokens of the data. Reads the model's
    config, tokenizer and headers, and raises what the run itself would."""
    data = prepare(config, find_data(config, world, resume)[0])
    check_held_back(config, data.split)
    made = preparation.tokenised(config, data.split, tokenizer_for(config.model))
    folder = local_folder(config.model.name)
    if config.start_from and folder:  # what can be said before its weights are there
        info = read_adapter_config(find_adapter(config.start_from, config.model.name)[0])
        info.check_base(fingerprints(folder), folder, config.start_from)
    check_fits(config, made[0].examples, machines=world.size, force=force)
    lengths, long = [len(e.tokens) for e in made[0].examples], sum(len(part.long) for part in made)
    tokens = {"train": sum(lengths), "longest": max(lengths), "too_long": long}
    told = {"records": data.counts, "read_as": data.read_as, "split": data.sizes, "tokens": tokens}
    return {"config": to_tree(config)} | told
