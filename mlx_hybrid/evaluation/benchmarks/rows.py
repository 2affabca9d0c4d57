"""Rows of the benchmarks, from local copies or the Hub; languages are FLORES codes (`swh_Latn`) throughout."""

import csv
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from mlx_hybrid.errors import ConfigError, DataError, nearest
from mlx_hybrid.files import hub_endpoint, hub_reason
from mlx_hybrid.records.languages import parse_language
from mlx_hybrid.records.lines import PARQUET, check_file, table_rows

XNLI_DEV_SHARE = 0.2  # of the premises of XNLI dev; the rest is the training split
XNLI_SPLIT_SEED = 20
NTREX_DEV_LINES = 97


@dataclass(frozen=True)
class Source:
    """A benchmark, as sources.yaml describes it."""

    key: str
    files: dict[str, str]
    columns: tuple[str, ...] = ("", "", "text")
    codes: tuple[str, ...] = ()
    rows_of_a_group: int = 1
    hub: str = ""
    home: str = ""
    hub_files: dict[str, str] = field(default_factory=dict)
    hub_labels: tuple[str, ...] = ()

    def code(self, language: str) -> str:
        """What a language is called in the names of its files. Raises ConfigError for one that is not there."""
        known = {str(parse_language(code)): code for code in self.codes}
        if known and language not in known:
            raise ConfigError(f"{self.key.upper()} has no {language}; {nearest(language, known)}")
        return known.get(language, language)


FILE = Path(__file__).with_name("sources.yaml")
SOURCES = {name: Source(**own) for name, own in yaml.safe_load(FILE.read_text(encoding="utf-8")).items()}


@dataclass(frozen=True)
class Row:
    """One example in one language; `key` joins its translations, `group` what must stay on one side of a split."""

    key: str
    group: str
    fields: dict[str, str]
    label: str | None = None


def read_rows(name: str, split: str, languages: Sequence[str], folder: Path | None) -> dict[str, list[Row]]:
    """Rows of each language, alike in all, from `folder`, or from the Hub for None; DataError where they are not."""
    rows = {own: part_of(name, split, list(rows_of(name, split, own, folder))) for own in languages}
    tables = {language: {row.key: (row.group, row.label) for row in own} for language, own in rows.items()}
    first, *others = tables
    for language in others:
        if odd := sorted({key for key, _ in tables[first].items() ^ tables[language].items()}):
            told = f"{language} and {first} are misaligned at {len(odd)} rows, the first being {odd[0]}"
            raise DataError(f"{name} {split}: {told}; get both files from one release.")
    return rows


def rows_of(name: str, split: str, language: str, folder: Path | None) -> Iterator[Row]:
    """The rows of one file. Raises DataError with file and line for one that is none."""
    source = SOURCES[name]
    code, size = source.code(language), source.rows_of_a_group
    path = folder / source.files[split].format(code=code) if folder else fetch(source, name, split, code)
    key = source.key if size == 1 else f"{source.key}-{'test' if split == 'test' else 'dev'}"
    numbered, label, *columns = source.columns
    starts: dict[str, str] = {}
    for line, raw in lines_of(path, source, split, folder):
        try:
            row = parsed(raw, path.suffix, source.columns)
            texts = {column: row[column] for column in columns}
            number = row[numbered] if numbered else line
            group = f"{key}-{number if size == 1 else int(number) // size}"
            if not all(text.strip() for text in texts.values()):
                raise ValueError
        except (ValueError, KeyError, TypeError, AttributeError):
            wanted = ", ".join(filter(None, source.columns))
            told = f"empty, or not a row of {name} ({wanted}), so that lines may not say the same in all languages"
            raise DataError(f"{path}:{line}: {told}.") from None
        start = texts[columns[0]]
        if size > 1 and starts.setdefault(group, start) != start:
            raise DataError(f"{path}:{line}: its {columns[0]} is not that of its group; rows are misaligned.")
        yield Row(f"{key}-{number}", group, texts, row.get(label) or None)


def parsed(raw: Any, suffix: str, columns: Sequence[str]) -> dict[str, Any]:
    """A row by its columns. Raises ValueError for a line that is none."""
    if suffix in (".jsonl", ".parquet"):
        return json.loads(raw) if isinstance(raw, str) else raw
    cells = next(csv.reader([raw], delimiter="\t")) if suffix == ".tsv" else ["", "", raw.strip()]
    return dict(zip(columns, cells, strict=True))


def lines_of(path: Path, source: Source, split: str, folder: Path | None) -> Iterable[tuple[int, Any]]:
    """Numbered lines without a header; of the Hub's Parquet its rows, as those of JSONL are."""
    if path.suffix == ".parquet":
        check_file(path)
        rows = enumerate(table_rows(path, PARQUET))
        return [(n + 1, {"id": n, **row, "label": source.hub_labels[row["label"]]}) for n, row in rows]
    try:
        lines = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    except UnicodeDecodeError:
        raise DataError(f"{path}: not UTF-8.") from None
    except OSError as error:
        start, end = source.files[split].split("{code}")
        found = (str(other.relative_to(folder)) for other in folder.glob(f"{start}*{end}"))
        held = ", ".join(sorted(name.removeprefix(start).removesuffix(end) for name in found))
        why = f"not in this copy; --languages with a {split} split here: {held}" if held else error.strerror
        raise ConfigError(f"{path}: cannot be read: {why}.") from None
    return [(n, line) for n, line in enumerate(lines, 1) if line != "\t".join(source.columns)]


def fetch(source: Source, name: str, split: str, code: str) -> Path:
    """The file of a split and language in the original's Hub repository."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError

    if not source.hub:
        place = source.files[split].format(code="<code>")
        told = f"get it from {source.home} and name a folder that has {place} with --from"
        raise ConfigError(f"{name} has no plain copy on the Hub: {told}.")
    file = source.hub_files[split].format(code=code)
    try:
        return Path(hf_hub_download(source.hub, file, repo_type="dataset", endpoint=hub_endpoint()))
    except (HfHubHTTPError, ValueError, OSError) as error:
        told = f"{file} is not to be had from the Hub ({hub_reason(error)})"
        raise ConfigError(f"{source.hub}: {told}; name a folder that has it with --from.") from None


def part_of(name: str, split: str, rows: list[Row]) -> list[Row]:
    """The rows of a split: of XNLI dev whole premises, the same in every language; of NTREX the last lines for dev."""
    if name == "ntrex128":
        return rows[-NTREX_DEV_LINES:] if split == "dev" else rows[:-NTREX_DEV_LINES]
    if name == "xnli" and split != "test":
        order = np.random.default_rng(XNLI_SPLIT_SEED).permutation(sorted({row.group for row in rows}))
        held_back = {*order[: round(XNLI_DEV_SHARE * len(order))].tolist()}
        return [row for row in rows if (row.group in held_back) == (split == "dev")]
    return rows
