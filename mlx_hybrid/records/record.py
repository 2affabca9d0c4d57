"""Records, invalid lines, each with its file and line; and the split into training, validation and test records.

Three kinds of record: `messages` (with `tools`), `prompt` + `completion`, `text`; shapes.py makes them of others. Any
of them may carry `language`, `label`, `id`, `group`, `source` and `licence`; other keys pass through untouched.
"""

import json
import random
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from mlx_hybrid.config import DataConfig
from mlx_hybrid.errors import ConfigError, DataError
from mlx_hybrid.records.fields import NotARecord, check_fields
from mlx_hybrid.records.lines import Fault, File, Source, as_source, check_file, path_and_line, read_lines
from mlx_hybrid.records.shapes import as_record, describe_read, renamed, turn_of

KEPT = "kept.jsonl"
HALVES = re.compile(rb"\\u[dD][89a-fA-F]")  # of surrogate pairs, where two are whole
READ = "; files of records are .jsonl, .json, .csv, .tsv or .parquet"
UNKNOWN = frozenset({"no_known_keys", "not_object", "preference", "bad_content", "bad_encoding", "bad_json"})
"""Reasons that, where they hold for every line of a file, say that the file is of another shape."""


@dataclass(frozen=True, slots=True)
class Record:
    """One JSON object that can be trained on, and where it stands."""

    fields: dict[str, Any]
    path: str
    line: int
    shape: str = ""  # what it was written as: messages, sharegpt, prompt, alpaca or text
    as_is: bool = False  # and that is the form it is trained in

    where = path_and_line

    @property
    def kind(self) -> str:
        """`messages`, `prompt` or `text`."""
        if "messages" in self.fields:
            return "messages"
        return "prompt" if "completion" in self.fields else "text"

    @property
    def id(self) -> str:
        """The record's own `id`, else its place."""
        own = self.fields.get("id")
        return self.where if own is None else str(own)

    @property
    def language(self) -> str | None:
        """The declared language as it was written, that of the answer where `languages` names two, or None."""
        each = self.fields.get("languages")
        own = each.get("answer") if isinstance(each, dict) else None
        return own or self.fields.get("language") or None

    @property
    def label(self) -> Any:
        """The class of a classification record, or None."""
        return self.fields.get("label")

    def turns(self) -> list[dict[str, Any]]:
        """The conversation as role and content; empty for plain text."""
        if self.kind == "prompt":
            return [turn_of("user", self.fields["prompt"]), turn_of("assistant", self.fields["completion"])]
        return self.fields.get("messages", [])

    def content(self) -> str:
        """The text that is checked and compared: what was said, without roles, template or system turn."""
        return self.fields["text"] if self.kind == "text" else said(self.turns())

    def prompt(self) -> str:
        """Everything before the last assistant turn, without the system turn; empty for plain text."""
        return said(self.turns()[:-1])

    def completion(self) -> str:
        """The last assistant turn, or the whole text."""
        return self.fields["text"] if self.kind == "text" else self.turns()[-1].get("content") or ""


def said(turns: list[dict[str, Any]]) -> str:
    return "\n".join(turn.get("content") or "" for turn in turns if turn["role"] != "system")


def read_records(files: Iterable[File] | File) -> Iterator[Record | Fault]:
    """Stream files of records in order: of JSONL one line is in memory at a time, of a table a batch, of an array all.
    Raises ConfigError, before the first is given, for a file that `check_source` refuses."""
    sources = [as_source(file) for file in ([files] if isinstance(files, File) else files)]
    for source in sources:
        check_source(source)
    return (item for source in sources for item in read_file(source))


def load_records(paths: Iterable[File] | File) -> list[Record]:
    """Every record, or one DataError that counts the faults by kind and shows the first five with file and line."""
    items = list(read_records(paths))
    if not (faults := [item for item in items if isinstance(item, Fault)]):
        return items
    kinds = ", ".join(f"{n} {reason}" for reason, n in sorted(Counter(f.reason for f in faults).items()))
    shown = "".join(f"\n  {fault.where}: {fault.detail} ({fault.reason})" for fault in faults[:5])
    more = f"\n  and {len(faults) - 5} more" if len(faults) > 5 else ""
    lines = "1 line is no record" if len(faults) == 1 else f"{len(faults)} lines are no records"
    raise DataError(f"{lines}: {kinds}.{shown}{more}\nMend them, or let `mlx-hybrid govern` set them aside.")


def check_source(source: Source) -> None:
    """Raise ConfigError for a file that cannot be read, or of which no line has a known shape."""
    check_file(source.path)
    items = read_file(source)
    first = next(items, None)
    if first and all(getattr(item, "reason", "") in UNKNOWN for item in chain([first], items)):
        kinds = READ if first.reason == "bad_json" else ""
        raise ConfigError(f"{first.where}: {first.detail}{kinds}.")


def shapes_of(records: Iterable[Record]) -> str:
    """What was read as what, in one sentence."""
    return describe_read((record.path, {record.shape: 1}) for record in records)


def read_file(source: Source) -> Iterator[Record | Fault]:
    """The records and faults of one file, but for a kept one of the kind of its first."""
    kind, several = "", is_kept(source.path)
    for number, raw in read_lines(source):
        item = raw if isinstance(raw, Fault) else parse_line(raw, source.name, number, source.renames)
        if isinstance(item, Record) and not several:
            kind = kind or item.kind
            if other := another_kind(item.kind, kind):
                item = Fault(source.name, number, "mixed_kinds", other, raw)
        yield item


def is_kept(path: Path) -> bool:
    """Whether govern wrote the file: its records are of as many kinds as the files they came from."""
    return path.name == KEPT and path.with_name("manifest.json").is_file()


def another_kind(kind: str, first: str) -> str:
    """Why a record does not go with the first of its file; empty where they are of one kind."""
    told = f"a {kind} record in a file of {first} records; keep text and conversations in files of their own"
    return told if (kind == "text") != (first == "text") else ""


def parse_line(raw: bytes, path: str, line: int, renames: dict[str, str] | None = None) -> Record | Fault:
    """One line as a Record, its keys renamed first, or the Fault that says why it is none."""
    try:
        value, shape = row, _ = json.loads(raw.decode("utf-8")), ""
        if isinstance(row, dict):
            value, shape = as_record(renamed(row, renames or {}))
        check_fields(value)
        if HALVES.search(raw):
            json.dumps(value, ensure_ascii=False).encode()
        return Record(value, path, line, shape, value is row)
    except UnicodeEncodeError as error:
        half = f"half a pair, U+{ord(error.object[error.start]):04X}"
        reason, detail = "bad_unicode", f"holds {half}, which stands for no character; take it out"
    except UnicodeDecodeError as error:
        reason, detail = "bad_encoding", f"not UTF-8 at byte {error.start}; save it as UTF-8"
    except NotARecord as error:
        reason, detail = error.reason, str(error)
    except json.JSONDecodeError as error:
        reason, detail = "bad_json", f"not JSON: {error.msg} at column {error.colno}"
        if raw.strip() in (b"[", b"{"):
            detail = "not one JSON object a line, but JSON over several lines"
    except (ValueError, RecursionError) as error:
        reason, detail = "bad_json", f"not JSON that can be read ({error})"
    return Fault(path, line, reason, detail, raw)


class Split(NamedTuple):
    """Records, or files of them, by their use."""

    train: Sequence[Any] = ()
    valid: Sequence[Any] = ()
    test: Sequence[Any] = ()

    def without(self, places: Collection[str]) -> "Split":
        """The split without the records that stand at some places."""
        return Split(*([record for record in part if record.where not in places] for part in self))


def split_records(
    records: list[Record], valid: list[Record], test: list[Record], config: DataConfig, seed: int
) -> Split:
    """Hold back whole groups for validation and test where no files were named for them: records that share a value
    under `data.group` (translations of a sentence, one premise), so that none has its twin in training."""
    sizes = Counter(group_of(record, config.group) for record in records)
    order = sorted(sizes)
    random.Random(seed).shuffle(order)
    held_valid = set() if valid else take(order, sizes, config.valid_share * len(records))
    held_test = set() if test else take(order, sizes, config.test_share * len(records))

    names = (set(order), held_valid, held_test)
    parts = [[record for record in records if group_of(record, config.group) in own] for own in names]
    if not parts[0]:
        why = f"all {len(records)} are held back; lower data.valid_share"
        raise DataError(f"No record is left to train on: {why}.")
    return Split(parts[0], valid or parts[1], test or parts[2])


def group_of(record: Record, key: str) -> str:
    """What is held back and resampled together: records of one value under `key`; one without a value is alone."""
    value = record.fields.get(key)
    return record.where if value is None else f"{key}={value}"


def group_key(records: Sequence[Record], key: str) -> str:
    """`data.group` where some record has a value under it, else `group`: benchmarks know no key of one's own."""
    return key if any(record.fields.get(key) is not None for record in records) else "group"


def take(order: list[str], sizes: dict[str, int], wanted: float) -> set[str]:
    """Remove groups from the end of `order` until they hold `wanted` records, leaving at least one."""
    taken, count = set(), 0
    while count < wanted and len(order) > 1:
        group = order.pop()
        taken.add(group)
        count += sizes[group]
    return taken
