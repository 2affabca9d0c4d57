"""The records of a comparison: one training, development and test file for all of its cells, with planted faults."""

import copy
import json
import random
from collections.abc import Sequence
from itertools import cycle
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from mlx_hybrid.config import Config
from mlx_hybrid.errors import ConfigError, DataError
from mlx_hybrid.evaluation.sets import EvaluationSet, evaluation_set, labelled
from mlx_hybrid.files import write_text
from mlx_hybrid.governance.folder.lines import read_folder_lines
from mlx_hybrid.records.files import find_sources
from mlx_hybrid.records.record import Record, Split, as_source, group_of, load_records, read_records
from mlx_hybrid.training.data import apart_from_held_out, check_manifests, governed, prepare

KINDS = ("language", "mojibake", "repetition", "copy")
COPIES = 4  # repeats of one record in a row, so that copies weigh on training
LONGEST_WORD = 12  # letters of the word that is repeated; without spaces the last word is the whole line
FILES = ("train.jsonl", "valid.jsonl", "test.jsonl")


def freeze_data(
    config: Config, directory: Path, *, noise: float, begun: bool = False
) -> tuple[dict[str, Any], list[str]]:
    """Copy the config's records into `directory`, with planted faults in training; the config values that name the
    copies, and the sha256 of the manifest of every governed file copied from. Raises ConfigError where a comparison has
    begun with other records, DataError for a governed file that changed since it was signed."""
    sources = find_sources(config.data)
    manifests = [] if config.data.allow_changed else check_manifests(sources)
    parts = read_parts(config, sources)
    if noise:
        parts[0] = plant_noise(parts[0], noise, seed=config.seed)
    directory.mkdir(parents=True, exist_ok=True)
    for name, rows in zip(FILES, parts, strict=True):
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        path = directory / name
        if begun and path.exists() and path.read_text(encoding="utf-8") != text:
            way = "use a new folder with -o"
            raise ConfigError(f"{path}: the data changed since the comparison began; {way}.")
        write_text(path, text)
    train, valid, test = ([str(directory / name)] for name in FILES)
    return {"data.paths": train, "data.valid": valid, "data.test": test}, manifests


def read_parts(config: Config, sources: Split) -> list[list[dict]]:
    """Training, development and test records. Where no files are named for the latter, whole groups are held back of
    what the config's governance keeps, so that no fault is measured on. All others but copies of those train as they
    are: every cell governs them its own way."""
    valid, test = load_records(sources.valid), load_records(sources.test)
    if valid and test:
        train = load_records(sources.train)
    else:
        with TemporaryDirectory() as scratch:
            split, copies = prepare(config, sources, Path(scratch)).split, copies_in(Path(scratch))
        key, held = config.data.group, [*([] if valid else split.valid), *([] if test else split.test)]
        groups, places = {group_of(record, key) for record in held}, {record.where for record in held}
        lines = (line for line in read_records(sources.train) if isinstance(line, Record))
        own = (record for record in lines if group_of(record, key) not in groups)
        train = [record for record in own if copies.get(record.where, record.where) not in places]
        valid, test = split.valid, split.test
    if not valid or not test:
        needs = "records to choose the learning rate by and others to measure on"
        raise DataError(f"A comparison needs {needs}; give data.valid and data.test, or shares to hold back.")
    return [[record.fields for record in part] for part in (train, valid, test)]


def copies_in(folder: Path) -> dict[str, str]:
    """Places of copies that governance set aside, with that of the record copied; none where it did not govern."""
    path = folder / "rejected.jsonl"
    notes = (line.note for line in read_folder_lines(path)) if path.exists() else ()
    copies = {note["where"]: note["match"] for note in notes if "match" in note}
    for where in copies:
        while copies[where] in copies:
            copies[where] = copies[copies[where]]
    return copies


def governed_counts(config: Config, data: Path) -> dict[str, int]:
    """What a cell's governance keeps of the training records, and of those the planted ones."""
    train, valid, test = (as_source(data / name) for name in FILES)
    records = load_records(train)
    kept, *_ = governed(apart_from_held_out(config, Split((train,), (valid,), (test,))), (train,))
    planted = [sum("planted" in r.fields for r in part) for part in (records, kept)]
    return {"records": len(records), "kept": len(kept), "planted": planted[0], "planted_kept": planted[1]}


def evaluation_sets(directory: Path, group: str = "group") -> tuple[EvaluationSet, EvaluationSet | None]:
    """(test set, development set), grouped by `data.group`; the latter where the task is a choice between answers. A
    classification is scored on the answers seen in training only where training was on that task."""
    train, valid, test = parts = [load_records([directory / name]) for name in FILES]
    trained, tried, asked = ({record.fields.get("task") for record in part} for part in parts)
    known = labelled(train) if asked <= trained else []
    chosen = evaluation_set(test, known, group=group)
    choice = chosen.kind == "classification" and asked <= tried
    return chosen, evaluation_set(valid, known, group=group) if choice else None


def plant_noise(records: Sequence[dict], share: float, *, seed: int) -> list[dict]:
    """The records and planted ones after them, `share` of the whole, each kind that these records can have as often as
    the others. A planted record says which fault it holds under `planted`: a text of another language than it declares
    and with an answer to another text, one decoded wrongly, one word over and over, or a near-copy. They come last, so
    that of a record and its copies governance keeps the record."""
    rng, wanted = random.Random(seed), round(share / (1 - share) * len(records))
    languages = {record.get("language") for record in records}
    pools = dict.fromkeys(KINDS, records) | {"language": records if len(languages) > 1 else []}
    pools["mojibake"] = [own for own in records if not asked(own).isascii()]  # ASCII decodes as it was
    planted: list[dict] = []
    for number, kind in enumerate(cycle([kind for kind in KINDS if pools[kind]])):
        if len(planted) >= wanted:
            break
        source = rng.choice(pools[kind])
        for place, text in enumerate(faulty(kind, source, records, rng)[: wanted - len(planted)]):
            name = f"planted-{number}-{place}"
            made = copy.deepcopy(source) | {"id": name, "group": name, "planted": kind}
            holder, key = question(made)
            holder[key] = text
            planted.append(made)
    return [*records, *planted]


def faulty(kind: str, source: dict, records: Sequence[dict], rng: random.Random) -> list[str]:
    """What stands in the place of a record's question, a text a record to plant."""
    text = asked(source)
    if kind == "language":
        return [asked(rng.choice([r for r in records if r.get("language") != source.get("language")]))]
    if kind == "mojibake":
        return [text.encode().decode("latin-1")]
    if kind == "repetition":
        return [" ".join([text.split()[-1][-LONGEST_WORD:]] * 40)]
    return [text.rstrip(" .!") + " ." * n for n in range(1, COPIES + 1)]


def question(record: dict) -> tuple[dict, str]:
    """Where the last user turn, prompt, or plain text stands: what holds it, and its key there."""
    if "messages" in record:
        return next(turn for turn in reversed(record["messages"]) if turn["role"] == "user"), "content"
    return record, "prompt" if "prompt" in record else "text"


def asked(record: dict) -> str:
    holder, key = question(record)
    return holder[key]
