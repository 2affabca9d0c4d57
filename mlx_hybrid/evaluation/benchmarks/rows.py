"""Rows of the benchmarks, from local copies or the Hub, checked to say the same in every language.

Languages are FLORES codes (`swh_Latn`) throughout.
"""

import csv
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mlx_hybrid.errors import ConfigError, DataError, nearest
from mlx_hybrid.records.languages import parse_language

XNLI_CODES = {
    str(parse_language(code)): code
    for code in ["ar", "bg", "de", "el", "en", "es", "fr", "hi", "ru", "sw", "th", "tr", "ur", "vi", "zh"]
}
XNLI_DEV = "xnli/dev.{code}.jsonl"
XNLI_LABELS = ("entailment", "neutral", "contradiction")
XNLI_DEV_SHARE = 0.2  # of the premises of XNLI dev; the rest is the training split
XNLI_SPLIT_SEED = 20
NTREX_DEV_LINES = 97
SIB_COLUMNS = ("index_id", "category", "text")
PARSERS: dict[str, Callable[[str], dict]] = {
    ".jsonl": json.loads,
    ".parquet": json.loads,
    ".tsv": lambda line: dict(zip(SIB_COLUMNS, next(csv.reader([line], delimiter="\t")), strict=True)),
    ".txt": lambda line: {"text": line.strip()},
}
XNLI_GROUP = 3  # rows with one premise


@dataclass(frozen=True)
class Source:
    """A benchmark: the file of each split under a folder, with a {code} for the language, and what its rows hold."""

    key: str  # what the ids of its rows begin with
    files: dict[str, str]
    columns: tuple[str, ...] = ("", "", "text")  # a row's number, its label, its texts
    fault: str = "empty, so the lines after it may be misaligned with other languages"
    hub: str = ""  # the original's repository, where it is in a plain format
    hub_file: str = ""


SOURCES = {
    "xnli": Source(
        "xnli",
        {"train": XNLI_DEV, "dev": XNLI_DEV, "test": "xnli/test.{code}.jsonl"},
        ("id", "label", "premise", "hypothesis"),
        "not an XNLI row with id, premise, hypothesis and label",
        hub="facebook/xnli",
        hub_file="{code}/{split}-00000-of-00001.parquet",
    ),
    "sib200": Source(
        "sib200",
        {split: f"sib200/{{code}}/{split}.tsv" for split in ("train", "dev", "test")},
        SIB_COLUMNS,
        "not an index, a category and a text between tabs",
        hub="Davlan/sib200",
        hub_file="data/{code}/{split}.tsv",
    ),
    "flores200": Source("flores", {"test": "flores200/dev/{code}.txt"}),  # its dev set is a test set here
    "ntrex128": Source("ntrex", dict.fromkeys(("train", "dev"), "ntrex128/{code}.txt")),
}


@dataclass(frozen=True)
class Row:
    """One example in one language; `key` joins its translations, `group` what must stay on one side of a split."""

    key: str
    group: str
    fields: dict[str, str]
    label: str | None = None


def read_rows(
    name: str,
    split: str,
    languages: Sequence[str],
    folder: Path | None,
    labels: Sequence[str] = (),
    skip: int = 0,
) -> dict[str, list[Row]]:
    """Rows of each language. `folder` None fetches from the Hub, where the original is there in a plain format.

    Raises ConfigError on an unknown split or a missing file, DataError where rows are misaligned between languages or
    carry a label not in `labels`.
    """
    if split not in SOURCES[name].files:
        raise ConfigError(f'{name} has no split "{split}"; it has {", ".join(SOURCES[name].files)}.')
    rows = {}
    for language in languages:
        own = part_of(name, split, list(rows_of(name, split, language, folder)), skip)
        if odd := next((row for row in own if labels and row.label not in labels), None):
            told = f'row {odd.key} has the unknown label "{odd.label}"'
            raise DataError(f"{name} {language}: {told}; {nearest(str(odd.label), labels)}")
        rows[language] = own
    check_aligned(name, split, rows)
    return rows


def check_aligned(name: str, split: str, rows: dict[str, list[Row]]) -> None:
    """Every language holds the same keys, with the same label and group."""
    tables = {language: {row.key: (row.group, row.label) for row in own} for language, own in rows.items()}
    first, *others = tables
    for language in others:
        odd = sorted({key for key, _ in tables[first].items() ^ tables[language].items()})
        if odd:
            raise DataError(
                f"{name} {split}: {language} and {first} are misaligned at {len(odd)} rows, the first being "
                f"{odd[0]}; get both files from one release."
            )


def rows_of(name: str, split: str, language: str, folder: Path | None) -> Iterator[Row]:
    """The rows of one file. Raises DataError with file and line for one that is none."""
    source, grouped = SOURCES[name], name == "xnli"
    if grouped and language not in XNLI_CODES:
        raise ConfigError(f"XNLI has no {language}; {nearest(language, XNLI_CODES)}")
    code = XNLI_CODES[language] if grouped else language
    file = "test" if split == "test" else "dev"
    path = folder / source.files[split].format(code=code) if folder else fetch(source, name, split, code)
    key = f"{source.key}-{file}" if grouped else source.key
    numbered, label, *columns = source.columns
    premises: dict[str, str] = {}
    for line, raw in enumerate(lines_of(path, source.files[split], split, folder), 1):
        if raw == "\t".join(SIB_COLUMNS):
            continue
        try:
            row = PARSERS[path.suffix](raw)
            texts = {column: row[column] for column in columns}
            number = row[numbered] if numbered else line
            group = f"{key}-{int(number) // XNLI_GROUP if grouped else number}"
            if not all(text.strip() for text in texts.values()):
                raise ValueError
        except (ValueError, KeyError, TypeError, AttributeError):
            raise DataError(f"{path}:{line}: {source.fault}.") from None
        if grouped and premises.setdefault(group, texts["premise"]) != texts["premise"]:
            raise DataError(f"{path}:{line}: its premise is not that of its group; rows are misaligned.")
        yield Row(f"{key}-{number}", group, texts, row.get(label))


def lines_of(path: Path, pattern: str, split: str, folder: Path | None) -> list[str]:
    if path.suffix == ".parquet":
        return parquet_lines(path)
    try:
        return path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    except UnicodeDecodeError:
        raise DataError(f"{path}: not UTF-8.") from None
    except OSError as error:
        start, end = pattern.split("{code}")
        found = (str(other.relative_to(folder)) for other in folder.glob(f"{start}*{end}"))
        held = ", ".join(sorted(name.removeprefix(start).removesuffix(end) for name in found))
        why = f"not in this copy; --languages with a {split} split here: {held}" if held else error.strerror
        raise ConfigError(f"{path}: cannot be read: {why}.") from None


def parquet_lines(path: Path) -> list[str]:
    """XNLI's rows in the Hub's file, as its JSONL has them."""
    try:
        from pyarrow import parquet
    except ImportError:
        raise ConfigError("Reading XNLI from the Hub needs pyarrow; run `pip install pyarrow`.") from None
    rows = enumerate(parquet.read_table(path).to_pylist())
    return [json.dumps({"id": n, **row, "label": XNLI_LABELS[row["label"]]}) for n, row in rows]


def fetch(source: Source, name: str, split: str, code: str) -> Path:
    """The file of a split and language in the original's Hub repository."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError

    from mlx_hybrid.models.base import hub_endpoint, hub_reason

    if not source.hub:
        place = source.files[split].format(code="<code>")
        raise ConfigError(f"{name} has no plain copy on the Hub; name a folder that has {place} with --from.")
    of_dev = name == "xnli" and split != "test"
    file = source.hub_file.format(code=code, split="validation" if of_dev else split)
    try:
        return Path(hf_hub_download(source.hub, file, repo_type="dataset", endpoint=hub_endpoint()))
    except (HfHubHTTPError, ValueError, OSError) as error:
        told = f"{file} is not to be had from the Hub ({hub_reason(error)})"
        raise ConfigError(f"{source.hub}: {told}; name a folder that has it with --from.") from None


def part_of(name: str, split: str, rows: list[Row], skip: int) -> list[Row]:
    """The rows of a split: of XNLI dev whole premises, the same whatever the language and the user's seed; of NTREX the
    last lines to develop and all but those after `skip` to train."""
    if name == "ntrex128":
        return rows[-NTREX_DEV_LINES:] if split == "dev" else rows[skip:-NTREX_DEV_LINES]
    if name == "xnli" and split != "test":
        groups = sorted({row.group for row in rows})
        order = np.random.default_rng(XNLI_SPLIT_SEED).permutation(len(groups))
        held_back = {groups[i] for i in order[: round(XNLI_DEV_SHARE * len(groups))]}
        return [row for row in rows if (row.group in held_back) == (split == "dev")]
    return rows
