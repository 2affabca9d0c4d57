"""An evaluation set from records: what is asked, and what the right answer is."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np

from mlx_hybrid.errors import ConfigError, DataError, nearest
from mlx_hybrid.evaluation.benchmarks.tasks import fill_prompt, load_task, task_files
from mlx_hybrid.evaluation.benchmarks.variants import VARIANTS, apply_variant
from mlx_hybrid.evaluation.metrics.intervals import Interval
from mlx_hybrid.evaluation.results import ALL, Row
from mlx_hybrid.evaluation.scoring import OptionItem
from mlx_hybrid.records.examples import answers_to
from mlx_hybrid.records.fields import from_json
from mlx_hybrid.records.languages import UnknownLanguage, parse_language
from mlx_hybrid.records.record import Record, group_key, group_of

MOST_OPTIONS = 100
Answers = Mapping[str, dict]  # model → part → its rows


@dataclass(frozen=True)
class EvaluationSet:
    """Records of one kind; of a classification with the answers each may choose from, label → answer."""

    kind: Literal["classification", "translation", "text", "conversation"]
    task: str
    version: int
    records: list[Record]
    labels: list[str] = field(default_factory=list)
    options: list[dict[str, str]] = field(default_factory=list)
    group: str = "group"  # the key under which records of one group share a value
    max_tokens: int = 1 << 30  # where a conversation is cut

    @cached_property
    def languages(self) -> list[str]:
        """One spelling of each code, `swh_Latn` for `sw` too; `und` where none is declared."""
        return [language_code(record.language) for record in self.records]

    @cached_property
    def groups(self) -> list[str]:
        """What is resampled together, as it is held back together."""
        return [group_of(record, self.group) for record in self.records]

    @cached_property
    def answers(self) -> np.ndarray:
        """Index of each record's label among `labels`."""
        return np.array([self.labels.index(str(record.label)) for record in self.records])

    def part(self, kept: Iterable[int]) -> "EvaluationSet":
        """The records at some places alone."""
        kept = list(kept)
        options = [self.options[n] for n in kept] if self.options else []
        return replace(self, records=[self.records[n] for n in kept], options=options)

    def places(self) -> list[tuple[str, np.ndarray]]:
        """`all` with the place of every record, then each language with those of its own."""
        own, names = np.array(self.languages), sorted(set(self.languages))
        return [(ALL, np.arange(len(own))), *((name, np.flatnonzero(own == name)) for name in names)]

    def rows(self, metric: str, measure: Callable[..., Interval], variant: str = "") -> list[Row]:
        """A row of the whole and of each language: `measure` takes places, and the groups of what is there."""
        groups, places = np.array(self.groups), self.places()
        told = [(name, own, measure(own, groups=groups[own])) for name, own in places]
        return [Row.of(metric, value, len(own), name, variant) for name, own, value in told]


Parts = Mapping[str, EvaluationSet]


def evaluation_set(
    records: Sequence[Record], known: Sequence[Record] = (), *, group: str = "group"
) -> EvaluationSet:
    """Of plain text, labelled or unlabelled conversations; `known` are training records, `group` is `data.group`.

    Answers are those that `options` states, else those seen in the same language and task. Raises DataError on no
    record, mixed kinds, a label that `known` never shows, or one with two spellings in one language.
    """
    if not records:
        raise DataError("No records to evaluate on.")
    if len({record.where for record in records}) < len(records):
        raise DataError("Some records stand twice in the evaluation set: a file was named twice.")
    kind, *others = sorted({kind_of(record) for record in records})
    if others:
        told = "write each kind to a file of its own and evaluate the files one by one (`evaluate --on`)"
        kinds = ", ".join((kind, *others))
        raise DataError(f"Records of different kinds cannot be evaluated together: {kinds}; {told}.")
    tasks = {(str(r.fields.get("task", "records")), int(r.fields.get("version", 1))) for r in records}
    task, version = tasks.pop() if len(tasks) == 1 else ("records", 1)
    options = options_of(records, known) if kind == "classification" else []
    labels = list(dict.fromkeys(label for own in options for label in own))
    return EvaluationSet(kind, task, version, list(records), labels, options, group_key(records, group))


def labelled(records: Sequence[Record]) -> list[Record]:
    """Records from whose labels the options of others are known: they have one, and do not state their options."""
    return [r for r in records if r.label is not None and r.kind != "text" and "options" not in r.fields]


def from_fields(fields: Sequence[dict], name: str) -> list[Record]:
    """Records made in memory, as `tasks.build_records` gives them."""
    return [Record(row, name, number) for number, row in enumerate(fields, 1)]


def kind_of(record: Record) -> str:
    answered = "classification" if record.label is not None else "translation"
    return "text" if record.kind == "text" else answered


def options_of(records: Sequence[Record], known: Sequence[Record]) -> list[dict[str, str]]:
    """The answers that each record may choose from, label → answer."""
    seen: dict[tuple, dict[str, str]] = {}
    for record in labelled([*known, *records]):
        own = seen.setdefault((language_code(record.language), record.fields.get("task")), {})
        here = record.completion().strip()
        if (there := own.setdefault(str(record.label), here)) != here:
            told = f'label "{record.label}" is answered "{here}" here and "{there}" elsewhere in its language'
            raise DataError(f"{record.where}: {told}; give one answer a label.")
    trained = {str(record.label) for record in known if record.label is not None}
    options = []
    for record in records:
        label, told = str(record.label), f'{record.where}: label "{record.label}"'
        place = language_code(record.language), record.fields.get("task")
        options.append(as_options(record.fields.get("options") or seen[place], record.where))
        if trained and label not in trained:
            raise DataError(f"{told} never stood in training; {nearest(label, trained)}")
        if label not in options[-1]:
            raise DataError(f"{told} is not among its options; {nearest(label, options[-1])}")
    return options


def as_options(value: Any, where: str) -> dict[str, str]:
    """Label → answer, of such a mapping, a list of answers, or either as text. Raises DataError for anything else."""
    value = from_json(value)
    if isinstance(value, str):
        value = [part.strip() for part in value.split(",") if part.strip()]
    if isinstance(value, list):
        value = {str(answer): answer for answer in value}
    if not isinstance(value, dict) or not all(isinstance(own, str) and own.strip() for own in value.values()):
        raise DataError(f"{where}: options must be a list of answers, or an answer for each label.")
    if not 2 <= len(value) <= MOST_OPTIONS:
        raise DataError(f"{where}: {len(value)} options; a choice is between 2 and {MOST_OPTIONS}.")
    return dict(value)


def item(record: Record, options: dict[str, str], tokenizer: Any) -> OptionItem:
    """The record's prompt as chat would send it, and each answer as it would be trained, with its end."""
    try:
        return OptionItem(*answers_to(record, [answer.strip() for answer in options.values()], tokenizer))
    except ConfigError as error:
        raise DataError(f"{record.where}: {error}") from None


def references(record: Record) -> list[str]:
    return record.fields.get("references") or [record.completion()]


def limited(examples: EvaluationSet, limit: int, seed: int) -> EvaluationSet:
    """At most `limit` records a language, of groups drawn in one order for all languages."""
    if not limit:
        return examples
    groups = sorted(set(examples.groups))
    order = np.random.default_rng([seed, 11]).permutation(len(groups))
    rank = {groups[group]: place for place, group in enumerate(order)}
    streams: dict[tuple, list[int]] = {}
    for number in sorted(range(len(examples.records)), key=lambda n: rank[examples.groups[n]]):
        source = language_code(examples.records[number].fields.get("source_language"))
        streams.setdefault((examples.languages[number], source), []).append(number)
    return examples.part(sorted(n for stream in streams.values() for n in stream[:limit]))


def varied(test: EvaluationSet, name: str, seed: int) -> EvaluationSet:
    """The records of the languages that a variant applies to, spelt its way."""
    own = test.part(n for n, code in enumerate(test.languages) if VARIANTS[name].applies_to(code))
    return replace(own, records=[respelt(*each, name, seed) for each in zip(own.records, own.languages)])


def respelt(record: Record, language: str, name: str, seed: int) -> Record:
    """The record with its `fields`, else its last user turn, as a variant spells them."""
    spell = lambda text: apply_variant(name, text, language, seed=seed)  # noqa: E731
    fields, turns = record.fields, [dict(turn) for turn in record.turns()]
    if fields.get("fields") and fields.get("task") in task_files():
        changed = {key: spell(text) for key, text in fields["fields"].items()}
        turns[-2]["content"] = fill_prompt(load_task(fields["task"]), record.language, changed)
        return replace(record, fields={**fields, "messages": turns, "fields": changed})
    turn = [turn for turn in turns if turn["role"] == "user"][-1]
    turn["content"] = spell(turn["content"])
    rest = {key: value for key, value in fields.items() if key not in ("prompt", "completion")}
    return replace(record, fields={**rest, "messages": turns})


def language_code(language: str | None) -> str:
    """ISO 639-3 and script of a declared language; what is no code stays as it is."""
    try:
        return str(parse_language(language)) if language else "und"
    except UnknownLanguage:
        return language
