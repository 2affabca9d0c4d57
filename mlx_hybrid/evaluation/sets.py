"""An evaluation set from records: what is asked, and what the right answer is."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np

from mlx_hybrid.errors import ConfigError, DataError, nearest
from mlx_hybrid.evaluation.benchmarks.tasks import fill_prompt, load_task, task_files
from mlx_hybrid.evaluation.benchmarks.variants import apply_variant, variants_for
from mlx_hybrid.evaluation.results import ALL
from mlx_hybrid.evaluation.scoring import OptionItem
from mlx_hybrid.records.fields import from_json
from mlx_hybrid.records.languages import UnknownLanguage, parse_language
from mlx_hybrid.records.record import Record
from mlx_hybrid.records.split import group_key, group_of

MOST_OPTIONS = 100
Kind = Literal["classification", "translation", "text", "conversation"]


@dataclass(frozen=True)
class EvaluationSet:
    """Records of one kind; of a classification with the answers each may choose from, label → answer."""

    kind: Kind
    task: str
    version: int
    records: list[Record]
    labels: list[str] = field(default_factory=list)
    options: list[dict[str, str]] = field(default_factory=list)
    group: str = "group"
    """The key under which records of one group share a value."""
    max_tokens: int = 1 << 30
    """Where a conversation is cut."""

    @property
    def languages(self) -> list[str]:
        """One spelling of each code, `swh_Latn` for `sw` too; `und` where none is declared."""
        return [language_code(record.language) for record in self.records]

    @property
    def groups(self) -> list[str]:
        """What is resampled together, as it is held back together."""
        return [group_of(record, self.group) for record in self.records]

    @property
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
        languages = np.array(self.languages)
        own = [(name, np.flatnonzero(languages == name)) for name in sorted(set(self.languages))]
        return [(ALL, np.arange(len(languages))), *own]


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
    kinds = {kind_of(record) for record in records}
    if len(kinds) > 1:
        raise DataError(
            f"Records of different kinds cannot be evaluated together: {', '.join(sorted(kinds))}; "
            "write each kind to a file of its own and evaluate the files one by one with --on."
        )
    kind = kinds.pop()
    tasks = {(str(r.fields.get("task", "records")), int(r.fields.get("version", 1))) for r in records}
    task, version = tasks.pop() if len(tasks) == 1 else ("records", 1)
    key = group_key(records, group)
    options = options_of(records, known) if kind == "classification" else []
    labels = list(dict.fromkeys(label for own in options for label in own))
    return EvaluationSet(kind, task, version, list(records), labels, options, key)


def labelled(records: Sequence[Record]) -> list[Record]:
    """Records from whose labels the options of others are known: they have one, and do not state their options."""
    return [r for r in records if r.label is not None and r.kind != "text" and "options" not in r.fields]


def from_fields(fields: Sequence[dict], name: str) -> list[Record]:
    """Records made in memory, as `tasks.build_records` gives them."""
    return [Record(row, name, number) for number, row in enumerate(fields, 1)]


def kind_of(record: Record) -> Kind:
    if record.kind == "text":
        return "text"
    return "classification" if record.label is not None else "translation"


def options_of(records: Sequence[Record], known: Sequence[Record]) -> list[dict[str, str]]:
    """The answers that each record may choose from, label → answer."""
    place = lambda record: (record.language, record.fields.get("task"))  # noqa: E731
    seen: dict[tuple, dict[str, str]] = {}
    for record in labelled([*known, *records]):
        own, answer = seen.setdefault(place(record), {}), record.completion().strip()
        if own.setdefault(str(record.label), answer) != answer:
            raise DataError(
                f'{record.where}: label "{record.label}" is answered "{answer}" here and "{own[str(record.label)]}" '
                "elsewhere in its language; give one answer a label."
            )
    trained = {str(record.label) for record in known if record.label is not None}
    options = []
    for record in records:
        where, label = record.where, str(record.label)
        stated = record.fields.get("options")
        own = as_options(stated, where) if stated else seen[place(record)]
        if trained and label not in trained:
            raise DataError(f'{where}: label "{label}" never stood in training; {nearest(label, trained)}')
        if label not in own:
            raise DataError(f'{where}: label "{label}" is not among its options; {nearest(label, own)}')
        options.append(as_options(own, where))
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
    """The record's prompt as chat would send it, and each answer as it would be trained, with its end.

    Raises DataError that names the record where the chat template refuses it.
    """
    from mlx_hybrid.records.template import answers_to

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
    own = examples.groups
    groups = sorted(set(own))
    order = np.random.default_rng([seed, 11]).permutation(len(groups))
    rank = {groups[group]: place for place, group in enumerate(order)}
    streams: dict[tuple, list[int]] = {}
    for number in sorted(range(len(own)), key=lambda n: rank[own[n]]):
        record = examples.records[number]
        streams.setdefault((record.language, record.fields.get("source_language")), []).append(number)
    return examples.part(sorted(n for stream in streams.values() for n in stream[:limit]))


def varied(record: Record, name: str, seed: int) -> Record:
    """The record with its texts spelt as a variant spells them: its `fields`, else its last user turn.

    A language that the variant does not apply to keeps its record; so does a text with nothing to change.
    """
    language = language_code(record.fields.get("source_language") or record.language)
    if name not in variants_for(language):
        return record
    spell = lambda text: apply_variant(name, text, language, seed=seed)  # noqa: E731
    fields = record.fields
    turns = [dict(turn) for turn in record.turns()]
    task = fields.get("task")
    if fields.get("fields") and task in task_files():
        changed = {key: spell(text) for key, text in fields["fields"].items()}
        turns[-2]["content"] = fill_prompt(load_task(task), record.language, changed)
        return replace(record, fields={**fields, "messages": turns, "fields": changed})
    place = max(number for number, turn in enumerate(turns) if turn["role"] == "user")
    turns[place]["content"] = spell(turns[place]["content"])
    rest = {key: value for key, value in fields.items() if key not in ("prompt", "completion")}
    return replace(record, fields={**rest, "messages": turns})


def language_code(language: str | None) -> str:
    """ISO 639-3 and script of a declared language; what is no code stays as it is."""
    try:
        return str(parse_language(language)) if language else "und"
    except UnknownLanguage:
        return language
