"""Rows of the benchmarks, from local copies or the Hub, checked to say the same in every language.

Layouts under the folder: `xnli/<split>.<lang>.jsonl`, `sib200/<code>/<split>.tsv`, `flores200/dev/<code>.txt`,
`ntrex128/<code>.txt`. Languages are FLORES codes (`swh_Latn`) throughout.
"""

import csv
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mlx_hybrid.errors import ConfigError, DataError, nearest
from mlx_hybrid.files import write_text
from mlx_hybrid.records.languages import parse_language

XNLI_FILES = {
    str(parse_language(code)): code
    for code in ["ar", "bg", "de", "el", "en", "es", "fr", "hi", "ru", "sw", "th", "tr", "ur", "vi", "zh"]
}
XNLI_LABELS = ("entailment", "neutral", "contradiction")
XNLI_DEV_SHARE = 0.2  # of the premises of XNLI dev; the rest is the training split
XNLI_SPLIT_SEED = 20
NTREX_DEV_LINES = 97
SPLITS = {
    "xnli": ("train", "dev", "test"),
    "sib200": ("train", "dev", "test"),
    "flores200": ("test",),
    "ntrex128": ("train", "dev"),
}
PLACES = {"flores200": "flores200/dev/<code>.txt", "ntrex128": "ntrex128/<code>.txt"}
HUB = {"xnli": "facebook/xnli", "sib200": "Davlan/sib200"}


@dataclass(frozen=True)
class Row:
    """One example in one language; `key` joins its translations, `group` what must stay on one side of a split."""

    key: str
    group: str
    fields: dict[str, str]
    label: str | None = None


def read_rows(
    source: str,
    split: str,
    languages: Sequence[str],
    folder: Path | None,
    *,
    labels: Sequence[str] = (),
    skip: int = 0,
) -> dict[str, list[Row]]:
    """Rows of each language. `folder` None fetches from the Hub, where the original is there in a plain format.

    Raises ConfigError on an unknown split or a missing file, DataError where rows are misaligned between languages or
    carry a label not in `labels`.
    """
    if split not in SPLITS[source]:
        raise ConfigError(f'{source} has no split "{split}"; it has {", ".join(SPLITS[source])}.')
    if folder is None:
        folder = fetch(source, split, languages)
    read = READERS[source]
    rows = {language: read(folder, split, language, skip) for language in languages}
    check_labels(source, rows, labels)
    check_aligned(source, split, rows)
    return rows


def check_labels(source: str, rows: dict[str, list[Row]], labels: Sequence[str]) -> None:
    for language, own in rows.items():
        for row in own:
            if labels and row.label not in labels:
                raise DataError(
                    f'{source} {language}: row {row.key} has the unknown label "{row.label}"; '
                    f"{nearest(str(row.label), labels)}"
                )


def check_aligned(source: str, split: str, rows: dict[str, list[Row]]) -> None:
    """Every language holds the same keys, with the same label and group."""
    first, *others = rows
    reference = {row.key: (row.group, row.label) for row in rows[first]}
    for language in others:
        own = {row.key: (row.group, row.label) for row in rows[language]}
        odd = sorted(reference.keys() ^ own.keys()) or sorted(k for k, v in own.items() if v != reference[k])
        if odd:
            raise DataError(
                f"{source} {split}: {language} and {first} are misaligned at {len(odd)} rows, the first being "
                f"{odd[0]}; get both files from one release."
            )


def read_xnli(folder: Path, split: str, language: str, skip: int) -> list[Row]:
    """Test, or the share of dev that `split` names, by premise: three rows in a row have one."""
    file = "test" if split == "test" else "dev"
    path = folder / "xnli" / f"{file}.{_known(language, XNLI_FILES, 'XNLI')}.jsonl"
    rows, premises = [], {}
    for number, line in enumerate(_lines(path), 1):
        try:
            record = json.loads(line)
            key, fields = int(record["id"]), {name: record[name] for name in ("premise", "hypothesis")}
        except (ValueError, KeyError, TypeError):
            raise DataError(
                f"{path}:{number}: not an XNLI row with id, premise, hypothesis and label."
            ) from None
        group = f"xnli-{file}-{key // 3}"
        if premises.setdefault(group, fields["premise"]) != fields["premise"]:
            raise DataError(
                f"{path}:{number}: its premise is not that of its group of three, so rows are misaligned."
            )
        rows.append(Row(f"xnli-{file}-{key}", group, fields, record.get("label")))
    if split == "test":
        return rows
    held_back = _held_back(sorted({row.group for row in rows}))
    return [row for row in rows if (row.group in held_back) == (split == "dev")]


def read_sib200(folder: Path, split: str, language: str, skip: int) -> list[Row]:
    path = folder / "sib200" / language / f"{split}.tsv"
    if not path.exists() and (held := sorted(p.parent.name for p in path.parents[1].glob(f"*/{split}.tsv"))):
        raise ConfigError(
            f"{path}: not in this copy; --languages with a {split} split here: {', '.join(held)}."
        )
    rows = []
    for number, columns in enumerate(csv.reader(_lines(path), delimiter="\t"), 1):
        if number == 1 and columns == ["index_id", "category", "text"]:
            continue
        if len(columns) != 3 or not columns[2].strip():
            raise DataError(f"{path}:{number}: not an index, a category and a text between tabs.")
        key = f"sib200-{columns[0]}"
        rows.append(Row(key, key, {"text": columns[2]}, columns[1]))
    return rows


def read_flores(folder: Path, split: str, language: str, skip: int) -> list[Row]:
    """FLORES dev, which is a test set here."""
    return _numbered(folder / "flores200" / "dev" / f"{language}.txt", "flores")


def read_ntrex(folder: Path, split: str, language: str, skip: int) -> list[Row]:
    """All but the last lines after `skip` to train, the last to develop."""
    rows = _numbered(folder / "ntrex128" / f"{language}.txt", "ntrex")
    return rows[-NTREX_DEV_LINES:] if split == "dev" else rows[skip:-NTREX_DEV_LINES]


READERS: dict[str, Callable[[Path, str, str, int], list[Row]]] = {
    "xnli": read_xnli,
    "sib200": read_sib200,
    "flores200": read_flores,
    "ntrex128": read_ntrex,
}


def fetch(source: str, split: str, languages: Sequence[str]) -> Path:
    """The files of one split from the original's Hub repository, laid out like a local copy; the folder they are in."""
    if source not in HUB:
        raise ConfigError(
            f"{source} has no plain copy on the Hub; name a folder that has {PLACES[source]} with --from."
        )
    from huggingface_hub import constants, hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError

    from mlx_hybrid.models.base import hub_endpoint, hub_reason

    folder = Path(constants.HF_HOME) / "mlx-hybrid" / "tasks"
    for language in languages:
        if source == "sib200":
            target, name = folder / "sib200" / language / f"{split}.tsv", f"data/{language}/{split}.tsv"
        else:
            file, code = ("test" if split == "test" else "dev"), _known(language, XNLI_FILES, "XNLI")
            target = folder / "xnli" / f"{file}.{code}.jsonl"
            name = f"{code}/{'test' if file == 'test' else 'validation'}-00000-of-00001.parquet"
        if not target.exists():
            try:
                path = Path(hf_hub_download(HUB[source], name, repo_type="dataset", endpoint=hub_endpoint()))
            except (HfHubHTTPError, ValueError, OSError) as error:
                raise ConfigError(
                    f"{HUB[source]}: {name} is not to be had from the Hub ({hub_reason(error)}); name a folder that "
                    f"has it with --from."
                ) from None
            text = path.read_text(encoding="utf-8") if source == "sib200" else _xnli_from_parquet(path)
            target.parent.mkdir(parents=True, exist_ok=True)
            write_text(target, text)
    return folder


def _xnli_from_parquet(path: Path) -> str:
    try:
        from pyarrow import parquet
    except ImportError:
        raise ConfigError("Reading XNLI from the Hub needs pyarrow; run `pip install pyarrow`.") from None
    lines = [
        json.dumps({"id": number, **row, "label": XNLI_LABELS[row["label"]]}, ensure_ascii=False)
        for number, row in enumerate(parquet.read_table(path).to_pylist())
    ]
    return "\n".join(lines) + "\n"


def _held_back(groups: list[str]) -> set[str]:
    """The premises of the development split: the same in every language, whatever the user's seed."""
    order = np.random.default_rng(XNLI_SPLIT_SEED).permutation(len(groups))
    return {groups[i] for i in order[: round(XNLI_DEV_SHARE * len(groups))]}


def _numbered(path: Path, name: str) -> list[Row]:
    rows = []
    for number, line in enumerate(_lines(path), 1):
        if not line.strip():
            raise DataError(
                f"{path}:{number}: empty, so the lines after it may be misaligned with other languages."
            )
        rows.append(Row(f"{name}-{number}", f"{name}-{number}", {"text": line.strip()}))
    return rows


def _lines(path: Path) -> list[str]:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}).") from None
    except UnicodeDecodeError:
        raise DataError(f"{path}: not UTF-8.") from None
    return text.removesuffix("\n").split("\n")


def _known(language: str, table: dict[str, str], name: str) -> str:
    if language not in table:
        raise ConfigError(f"{name} has no {language}; {nearest(language, table)}")
    return table[language]
