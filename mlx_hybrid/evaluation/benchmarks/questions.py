"""What `evaluate` asks: a file, a folder or a task, as a test set and its development set."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mlx_hybrid.config import Config
from mlx_hybrid.errors import ConfigError, DataError, nearest
from mlx_hybrid.evaluation import sets
from mlx_hybrid.evaluation.benchmarks.folders import Choice
from mlx_hybrid.evaluation.benchmarks.tasks import load_task, task_files
from mlx_hybrid.evaluation.benchmarks.variants import VARIANTS, variants_for
from mlx_hybrid.evaluation.evaluate import PIVOT
from mlx_hybrid.evaluation.metrics.translation import directions_of
from mlx_hybrid.evaluation.sets import EvaluationSet, evaluation_set, kind_of, labelled, language_code
from mlx_hybrid.records.files import FILES, Sources, find_sources, in_folder, read_renames
from mlx_hybrid.records.lines import as_source
from mlx_hybrid.records.record import Record, load_records, read_records
from mlx_hybrid.records.split import Split
from mlx_hybrid.run import Run


@dataclass(frozen=True)
class Questions:
    """A test set and, where there is one, the development set on which scoring and temperature are chosen; `note` says
    what is not measured."""

    name: str
    test: EvaluationSet
    dev: EvaluationSet | None
    note: str = ""
    known: Sequence[Record] = ()
    """What the run was trained on."""

    @property
    def tasks(self) -> set:
        return {record.fields.get("task") for record in self.test.records}

    @property
    def trained(self) -> bool:
        """Whether the task is the one that the run was trained on."""
        return self.tasks <= {record.fields.get("task") for record in self.known}


def find_questions(
    run: Run | None,
    path: Path | None,
    name: str | None,
    split: str,
    dev: str,
    part: Choice,
    renames: Sequence[str],
) -> Questions:
    """Of a benchmark, a file or folder, or what a run's data holds. Raises ConfigError for two of these, or none."""
    if path and name:
        raise ConfigError("--on and --task both say what to measure on; give one.")
    config = run.config_here() if run else None
    known = training_records(config) if config else []
    if name:
        own = from_task(name, split, part, dev, known)
    elif path:
        own = from_path(path, dev, known, config.data.group if config else "group", renames)
    else:
        own = from_run(config, dev, known, identity_of(run)) if run and config else None
    if own is None:
        raise ConfigError("Nothing to measure on: give --on (a file or folder) or --task (a benchmark).")
    own = replace(own, known=known)
    if run and dev == "auto" and own.dev is None and own.trained and own.test.kind == "classification":
        own = replace(own, dev=own_validation(run, own))
    return own


def from_task(name: str, split: str, choice: Choice, dev_split: str, known: list[Record]) -> Questions:
    """A split of a benchmark and the one that `dev_split` names, `auto` being dev where there is one."""
    task = load_task(name)
    if split not in task.splits:
        raise ConfigError(f'Task {name} has no split "{split}"; it has {", ".join(task.splits)}.')
    if dev_split == "auto":
        dev_split = "dev" if "dev" in task.splits and split != "dev" else "none"
    if dev_split == split:
        raise ConfigError(f"--dev {dev_split} is the test set itself; a temperature from it says nothing.")
    test, dev = (
        [] if own == "none" else sets.from_fields(choice.records(name, own), f"{name}-{own}")
        for own in (split, dev_split)
    )
    return make(name if split == "test" else f"{name}-{split}", test, dev, known)


def from_path(
    path: Path, dev: str, known: list[Record], group: str = "group", renames: Sequence[str] = ()
) -> Questions:
    """A file of records, or a folder with a test file. `dev` is a file, `none`, or `auto`: the folder's validation
    file; `renames` say what keys are read as."""
    if not path.exists():
        raise ConfigError(f"{path}: no such file or folder.")
    keys = read_renames(renames)
    files = in_folder(path) if path.is_dir() else Sources(test=(as_source(path),))
    test, beside = ([replace(file, renames=keys) for file in part] for part in (files.test, files.valid))
    name = path.name
    name = next((name.removesuffix(s) for s in FILES if name.lower().endswith(s)), name)
    return make(name, load_records(test), dev_records(dev, lambda: load_records(beside), keys), known, group)


def from_run(config: Config, dev: str, known: list[Record], identity: str) -> Questions | None:
    """The test files that a run's data names, else the records that it held back; None where it did neither."""
    sources = find_sources(config.data)
    if sources.test:
        dev_set = dev_records(dev, lambda: load_records(sources.valid))
        return make("test", load_records(sources.test), dev_set, known, config.data.group)
    split = held_back(config, sources, identity)
    if not split.test:
        return None
    kinds = [kind_of(record) for record in split.test]
    kind = "classification" if "classification" in kinds else kinds[0]
    test, valid = ([r for r in part if kind_of(r) == kind] for part in (split.test, split.valid))
    own = make("test", test, dev_records(dev, lambda: valid), split.train, config.data.group)
    left = len(split.test) - len(test)
    note = f"Of the records held back, the {len(test)} of kind {kind} are measured, {left} of others are not."
    return replace(own, note=note if left else "")


def validation_of(run: Run) -> list[Record]:
    """The records that a run validated with, none where they are not to be found again."""
    config = run.config_here()
    try:
        sources = find_sources(config.data)
        return (
            load_records(sources.valid)
            if sources.valid
            else held_back(config, sources, identity_of(run)).valid
        )
    except (ConfigError, DataError):
        return []


def own_validation(run: Run, asked: Questions) -> EvaluationSet | None:
    """A run's validation records, as far as they are choices of the same task and not tested on."""
    taken, choices = (
        marks(asked.test.records),
        (r for r in validation_of(run) if kind_of(r) == "classification"),
    )
    own = [r for r in choices if r.fields.get("task") in asked.tasks and not marks([r]) & taken]
    return evaluation_set(own, labelled(asked.known), group=asked.test.group) if own else None


def identity_of(run: Run) -> str:
    """What a run noted of its records; older ones noted nothing."""
    return run.info().get("data_identity", "")


def held_back(config: Config, sources: Sources, identity: str) -> Split:
    """The split of a run's records, made again. Raises DataError where they are others than the run noted."""
    from mlx_hybrid.models.base import tokenizer_for
    from mlx_hybrid.training.data import prepare
    from mlx_hybrid.training.setup import data_identity, tokenised

    split = prepare(config, sources).split
    if not split.test and not split.valid:
        return split
    tokenizer = tokenizer_for(config.model)
    made = tokenised(config, split, tokenizer)
    if identity and data_identity((part.examples for part in made), tokenizer) != identity:
        raise DataError(
            "The run's data changed since it was trained, so what it held back is not known; "
            "name records with --on."
        )
    return split.without({where for part in made for where, _ in part.aside})


def dev_records(
    dev: str, usual: Callable[[], list[Record]], renames: dict[str, str] | None = None
) -> list[Record]:
    """Of the file that `dev` names; `auto` is the usual ones, `none` none."""
    if dev in ("auto", "none"):
        return usual() if dev == "auto" else []
    if not Path(dev).is_file():
        raise ConfigError(f"--dev {dev}: no such file.")
    return load_records([as_source(Path(dev), renames)])


def training_records(config: Config) -> list[Record]:
    """The records a run was trained on, as far as its files are still there; lines that are none were no part of it."""
    try:
        lines = list(read_records(find_sources(config.data).train))
    except (ConfigError, DataError):
        return []
    return [line for line in lines if isinstance(line, Record)]


def make(
    name: str, test: list[Record], dev: list[Record], known: list[Record], group: str = "group"
) -> Questions:
    """Sets whose labels must have stood in training, where that was of the same task and no options are stated.

    Raises DataError where some records were trained on, ConfigError where some of the development set are tested on.
    """
    if both := len(marks(known) & marks(test)):
        raise DataError(f"{both} of the {len(test)} records to evaluate on were trained on; name others.")
    if both := len(marks(dev) & marks(test)):
        raise ConfigError(
            f"--dev: {both} of its records are of the test set; a temperature fitted there says nothing."
        )
    tasks = {record.fields.get("task") for record in test}
    same = [r for r in labelled(known) if r.fields.get("task") in tasks]
    chosen = evaluation_set(test, same, group=group)
    other = evaluation_set(dev, same, group=group) if dev else None
    if other and other.kind != chosen.kind:
        raise DataError(f"The development set is {other.kind} and the test set {chosen.kind}; use one kind.")
    return Questions(name, chosen, other)


def marks(records: list[Record]) -> set[tuple]:
    """What each record is known by: of a benchmark its task and id, wherever it was written, else file and line."""
    whole = {name: Path(name).resolve() for name in {record.path for record in records}}
    tasks = task_files()
    known = lambda record: record.fields.get("task") in tasks  # noqa: E731
    return {(r.fields["task"], r.id) if known(r) else (whole[r.path], r.line) for r in records}


def chosen_variants(asked: Sequence[str], test: EvaluationSet) -> list[str]:
    """The variants asked for, `all` being those that some language of the set has. Raises ConfigError for others."""
    if asked and test.kind != "classification":
        raise ConfigError(f"--variants are measured on classification tasks; these records are {test.kind}.")
    languages = sorted(set(test.languages))
    fitting = {name for language in languages for name in variants_for(language)}
    if list(asked) == ["all"]:
        return [name for name in VARIANTS if name in fitting]
    for name in asked:
        if name not in VARIANTS:
            raise ConfigError(f'Unknown variant "{name}"; {nearest(name, VARIANTS)}')
        if name not in fitting:
            raise ConfigError(f'Variant "{name}" applies to none of {", ".join(languages)}.')
    return list(asked)


def chosen_pivot(asked: str | None, test: EvaluationSet) -> str:
    """The language that the others are held against, PIVOT where none is asked for. Raises ConfigError for one that no
    record is in."""
    if not asked:
        return PIVOT
    code = language_code(asked)
    own = sorted(set(test.languages))
    if test.kind == "translation":
        own = sorted({code for pair in directions_of(test) for code in pair})
    if code not in own:
        raise ConfigError(f"--pivot {asked}: no test record is in {code}; there are {', '.join(own)}.")
    return code
