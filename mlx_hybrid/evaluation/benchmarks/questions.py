"""What `evaluate` asks: a file, a folder or a task, as a test set and its development set."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mlx_hybrid.adapters.store import read_adapter_config
from mlx_hybrid.config import Config
from mlx_hybrid.errors import ConfigError, DataError, check_known
from mlx_hybrid.evaluation import sets
from mlx_hybrid.evaluation.benchmarks.tasks import build_records, load_task, task_files
from mlx_hybrid.evaluation.benchmarks.variants import VARIANTS
from mlx_hybrid.evaluation.evaluate import PIVOT
from mlx_hybrid.evaluation.metrics.translation import directions_of
from mlx_hybrid.evaluation.sets import EvaluationSet, evaluation_set, from_fields, labelled, language_code
from mlx_hybrid.models.base import find_model, fingerprints, tokenizer_for
from mlx_hybrid.records.files import FILES, find_sources, in_folder, read_renames
from mlx_hybrid.records.lines import as_source
from mlx_hybrid.records.record import KEPT, Record, Split, load_records, read_records
from mlx_hybrid.run import Run
from mlx_hybrid.training.data import prepare
from mlx_hybrid.training.setup import data_identity, tokenised

RETAINED = Path(__file__).with_name("retention.jsonl")


@dataclass(frozen=True)
class Questions:
    """A test set, a development set to calibrate on, a `note` of what is amiss, and what was `known`."""

    name: str
    test: EvaluationSet
    dev: EvaluationSet | None
    note: str = ""
    known: Sequence[Record] = ()

    @property
    def trained(self) -> bool:
        """Whether the task is the one that the run was trained on."""
        return tasks_of(self.test.records) <= tasks_of(self.known)


def tasks_of(records: Sequence[Record]) -> set:
    return {record.fields.get("task") for record in records}


def find_questions(
    run: Run | None, path: Path | None, name: str | None, *, dev: str, renames: Sequence[str], **part: Any
) -> Questions:
    """Of a benchmark (`part` as `from_task` takes it), a file or folder, or what a run's data holds."""
    if path and name:
        raise ConfigError("--on and --task both say what to measure on; give one.")
    config = run.config_here() if run else None
    known, own = training_records(config, run) if run else [], None
    if name:
        own = from_task(name, dev, known, **part)
    elif path:
        own = from_path(path, dev, known, config.data.group if config else "group", renames)
    elif config:
        own = from_run(config, dev, known, run)
    if own is None:
        raise ConfigError("Nothing to measure on: give --on (a file or folder) or --task (a benchmark).")
    told = ""
    if run and not known:
        told = "What the run was trained on is not to be had, so no test record was looked for there."
    elif again := repeated(known, own.test.records):
        of_all = f"{again} of the {len(own.test.records)} test records"
        told = f"{of_all} were trained on, word for word from another place."
    own = replace(own, known=known, note=f"{own.note} {told}".strip())
    if run and dev == "auto" and own.dev is None and own.trained and own.test.kind == "classification":
        taken, tasks = marks(own.test.records), tasks_of(own.test.records)
        found, lost = validation_of(run)
        valid = [r for r in found if sets.kind_of(r) == "classification" and tasks_of([r]) <= tasks]
        if valid := [record for record in valid if not marks([record]) & taken]:
            own = replace(own, dev=evaluation_set(valid, labelled(known), group=own.test.group))
        elif lost:
            own = replace(own, note=f"{own.note} Not calibrated, since {lost}.".strip())
    return own


def from_task(name: str, dev: str, known: list[Record], *, split: str = "test", **where: Any) -> Questions:
    """A split of a benchmark and that of `dev`, `auto` being dev where there is one; `where` as for `build_records`."""
    task = load_task(name, (split,))
    if dev == "auto":
        dev = "dev" if "dev" in task.splits and split != "dev" else "none"
    if dev == split:
        raise ConfigError(f"--dev {dev} is the test set itself; a temperature from it says nothing.")
    parts = {own: build_records(name, own, **where) for own in (split, dev) if own != "none"}
    test, beside = (from_fields(parts.get(own, ()), f"{name}-{own}") for own in (split, dev))
    return make(name if split == "test" else f"{name}-{split}", test, beside, known, "group")


def from_path(
    path: Path, dev: str, known: list[Record], group: str = "group", renames: Sequence[str] = ()
) -> Questions:
    """A file of records, or a folder with a test file and, for `dev` auto, a validation file."""
    if not path.exists():
        raise ConfigError(f"{path}: no such file or folder.")
    keys = read_renames(renames)
    files = in_folder(path) if path.is_dir() else Split(test=(as_source(path),))
    test, beside = ([replace(file, renames=keys) for file in part] for part in (files.test, files.valid))
    name = next((path.name.removesuffix(s) for s in FILES if path.name.lower().endswith(s)), path.name)
    return make(name, load_records(test), dev_records(dev, lambda: load_records(beside), keys), known, group)


def from_run(config: Config, dev: str, known: list[Record], run: Run | None = None) -> Questions | None:
    """The test files that a run's data names, else the records that it held back; None where it did neither."""
    sources, group = find_sources(config.data), config.data.group
    if sources.test:
        beside = dev_records(dev, lambda: load_records(sources.valid))
        return make("test", load_records(sources.test), beside, known, group)
    split = held_back(config, run)
    if not split.test:
        return None
    kinds = [sets.kind_of(record) for record in split.test]
    kind = "classification" if "classification" in kinds else kinds[0]
    test, valid = ([r for r in part if sets.kind_of(r) == kind] for part in (split.test, split.valid))
    own = make("test", test, dev_records(dev, lambda: valid), split.train, group)
    left = len(split.test) - len(test)
    note = f"Of the records held back, the {len(test)} of kind {kind} are measured, {left} of others are not."
    return replace(own, note=note if left else "")


def validation_of(run: Run) -> tuple[list[Record], str]:
    """The records that a run validated with, and why they are not to be found again, where they are not."""
    config = run.config_here()
    try:
        files = find_sources(config.data).valid
        return load_records(files) if files else held_back(config, run).valid, ""
    except (ConfigError, DataError) as error:
        why = str(error).partition(";")[0].rstrip(".")  # the way out after it is another command's
        return [], f"the run's validation records are not to be had ({why}); --dev names others"


def held_back(config: Config, run: Run | None) -> Split:
    """The split of a run's records, made again. Raises DataError where they, ConfigError where its base are others."""
    split, tokenizer = prepare(config, find_sources(config.data)).split, tokenizer_for(config.model)
    made = tokenised(config, split, tokenizer)
    identity = run.info().get("data_identity") if run else None  # older runs noted nothing
    if identity and data_identity((part.examples for part in made), tokenizer) != identity:
        place = find_model(config.model.name)  # another base makes other tokens of the same data
        read_adapter_config(run.adapter).check_base(fingerprints(place), place, run.path)
        told = "so what it held back is not known; name records with --on"
        raise DataError(f"The run's data changed since it was trained, {told}.")
    return split.without({where for part in made for where, _ in part.aside})


def dev_records(dev: str, usual: Callable[[], list], renames: dict[str, str] | None = None) -> list[Record]:
    """Of the file that `dev` names; `auto` is the usual ones, `none` none."""
    if dev in ("auto", "none"):
        return usual() if dev == "auto" else []
    if not Path(dev).is_file():
        raise ConfigError(f"--dev {dev}: no such file.")
    return load_records([as_source(Path(dev), renames)])


def training_records(config: Config, run: Run | None = None) -> list[Record]:
    """The records a run was trained on, as far as its files are there, without those that governance set aside."""
    kept = run and run.path / "data" / KEPT
    try:
        records = [line for line in read_records(find_sources(config.data).train) if isinstance(line, Record)]
        if not (kept and kept.is_file()):
            return records
        good = {came_from(line) for line in read_records(kept) if isinstance(line, Record)}
    except (ConfigError, DataError):
        return []
    return [record for record in records if came_from(record) in good]


def came_from(record: Record) -> str:
    """The name of the file that a record was first read from, and its line."""
    return Path(record.fields.get("_gov", {}).get("where") or record.where).name


def make(name: str, test: list[Record], dev: list[Record], known: list[Record], group: str) -> Questions:
    """Sets that share no record with what was trained on, nor with each other; labels must have stood in training,
    where that was of the same task and no options are stated."""
    if both := len(marks(known) & marks(test)):
        raise DataError(f"{both} of the {len(test)} records to evaluate on were trained on; name others.")
    if both := len(marks(dev) & marks(test)):
        told = "of its records are of the test set; a temperature fitted there says nothing"
        raise ConfigError(f"--dev: {both} {told}.")
    refuse_trained(known, dev)
    tasks = tasks_of(test)
    same = [r for r in labelled(known) if r.fields.get("task") in tasks]
    chosen = evaluation_set(test, same, group=group)
    other = evaluation_set(dev, same, group=group) if dev else None
    if other and other.kind != chosen.kind:
        raise DataError(f"The development set is {other.kind} and the test set {chosen.kind}; use one kind.")
    return Questions(name, chosen, other)


def refuse_trained(known: Sequence[Record], dev: Sequence[Record]) -> None:
    """Raise ConfigError for records to calibrate on that were trained on: a model is too sure of those."""
    again = repeated(known, dev)  # a few texts may stand in both
    if both := len(marks(known) & marks(dev)) or (again if again > len(dev) / 2 else 0):
        raise ConfigError(f"--dev: {both} of its {len(dev)} records were trained on; name others.")


def repeated(known: Sequence[Record], records: Sequence[Record]) -> int:
    """How many of the records say, word for word, what one of the known ones says."""
    contents = {record.content() for record in known}
    return sum(record.content() in contents for record in records)


def marks(records: Sequence[Record]) -> set[tuple]:
    """What each record is known by: of a benchmark its task and id, else file and line."""
    whole = {name: Path(name).resolve() for name in {record.path for record in records}}
    benchmarks, named = task_files(), [(record.fields.get("task"), record) for record in records]
    return {(task, r.id) if task in benchmarks else (whole[r.path], r.line) for task, r in named}


def chosen_variants(asked: Sequence[str], test: EvaluationSet) -> list[str]:
    """The variants asked for, `all` being those that some language of the set has."""
    if asked and test.kind != "classification":
        raise ConfigError(f"--variants are measured on classification tasks; these records are {test.kind}.")
    languages = sorted(set(test.languages))
    fitting = [name for name, own in VARIANTS.items() if any(map(own.applies_to, languages))]
    if list(asked) == ["all"]:
        return fitting
    for name in asked:
        check_known(name, VARIANTS, "Unknown variant")
        if name not in fitting:
            raise ConfigError(f'Variant "{name}" applies to none of {", ".join(languages)}.')
    return list(asked)


def chosen_pivot(asked: str | None, test: EvaluationSet) -> str:
    """The language that the others are held against, PIVOT where none is asked for."""
    pairs = directions_of(test) if test.kind == "translation" else [test.languages]
    own, code = sorted({code for pair in pairs for code in pair}), language_code(asked)
    if asked and code not in own:
        raise ConfigError(f"--pivot {asked}: no test record is in {code}; there are {', '.join(own)}.")
    return code if asked else PIVOT


def retention_set(name: str) -> EvaluationSet:
    """The texts of a file of records or of lines, by which forgetting is measured; `auto` is our own (CC0 1.0)."""
    path = RETAINED if name == "auto" else Path(name)
    if path.suffix.lower() == ".txt" and path.is_file():
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        records = from_fields([{"text": line} for line in lines if line.strip()], str(path))
    else:
        records = load_records([path])
    if not records or any(record.kind != "text" for record in records):
        raise ConfigError(f"--retain {path}: needs plain text, records with `text` or a .txt of lines.")
    return evaluation_set(records)


def untrained(examples: EvaluationSet, known: Sequence[Record]) -> set[str]:
    """The languages of the texts that no training record declares; none where training declares none."""
    trained = {language_code(record.language) for record in known}
    return set(examples.languages) - trained if trained - {"und"} else set()
