"""Labels for all records of a file, with calibrated probabilities."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mlx_hybrid.errors import ConfigError, DataError
from mlx_hybrid.evaluation.answers import answer, label_scores
from mlx_hybrid.evaluation.benchmarks.questions import dev_records, training_records, validation_of
from mlx_hybrid.evaluation.metrics import calibration as calibrating
from mlx_hybrid.evaluation.sets import EvaluationSet, as_options, evaluation_set, kind_of, labelled
from mlx_hybrid.files import whole_lines
from mlx_hybrid.models.adapted import Pair, open_pair, run_named
from mlx_hybrid.records.files import read_renames
from mlx_hybrid.records.lines import Fault, as_source, check_file, line_of, read_lines
from mlx_hybrid.records.record import Record, parse_line
from mlx_hybrid.records.shapes import NEAR, renamed

BATCH = 64  # records labelled between two writes
ANSWER = "?"  # stands for the one that is to be chosen


def predict(
    target: str,
    rows: str | Path | Sequence[Mapping[str, Any] | str],
    *,
    options: Sequence[str] = (),
    renames: Sequence[str] = (),
    dev: str = "auto",
    base_model: str | None = None,
    done: Sequence[dict] = (),
    tell: Callable[[str], None] = lambda text: None,
) -> Iterator[dict]:
    """One row a record: its line, `label`, the `probability` of that, and those of all options.
    `rows` is a file, or records or prompts themselves; `done` are rows that were written before. Options are those
    given, else a record's own, else those the run was trained on. The calibration is the one stored, else it is fitted
    on `dev`: a file, `none`, or the run's validation records, and then stored. Raises ConfigError or DataError, for
    all that the records and options say before a model is loaded."""
    run = run_named(target, base_model)
    known = training_records(run.config_here(), run) if run else []
    if not (records := list(questions(rows, read_renames(renames)))):
        raise DataError("No records to label.")
    choices = choices_of(records, options, known, target)
    check_done(done, records, choices)
    validation, lost = validation_of(run) if run and dev == "auto" else (dev_records(dev, list), "")
    pair = open_pair(target, base_name=base_model)
    tell(pair.describe())
    if run:
        pair.tokenizer.date = run.template_date()
    labels = list(dict.fromkeys(label for own in choices for label in own))
    asked = EvaluationSet("classification", "predict", 1, records, labels, choices)
    calibration = calibrating.read_calibration(pair.adapter) if dev == "auto" else None
    if not calibration and (wanted := [r for r in validation if kind_of(r) == "classification"]):
        tell(f"Calibrating on {len(wanted)} validation records.")
        examples = evaluation_set(wanted, labelled(known))
        shown = scores_of(pair, examples), examples.answers, examples.languages, examples.labels
        calibration = calibrating.fit_calibration(*shown)
        if dev == "auto":
            calibrating.write_calibration(pair.adapter, calibration)
    if not calibration or not set(labels) <= set(calibration.bias[calibrating.EVERY]):
        why = f", since {lost}" if lost and not calibration else " for these options"
        calibration = None
        tell(f"The probabilities are the model's own: there is no calibration{why}.")
    for start in range(len(done), len(records), BATCH):
        part = range(len(records))[start : start + BATCH]
        yield from chosen(pair, asked.part(part), calibration)
        tell(f"{part.stop} of {len(records)} records")


def questions(rows: Any, renames: dict[str, str]) -> Iterator[Record]:
    """Records of which the last answer is to be chosen. Raises ConfigError or DataError for the first that is none."""
    if isinstance(rows, str | Path):
        source = as_source(rows)
        check_file(source.path)
        name, lines = source.name, read_lines(source)
    else:
        told = ({"prompt": row} if isinstance(row, str) else dict(row) for row in rows)
        name, lines = "record", enumerate(map(line_of, told), 1)
    for number, raw in lines:
        made = raw if isinstance(raw, Fault) else parse_line(unanswered(raw, renames), name, number)
        if isinstance(made, Record):
            yield made
        elif made.reason != "no_known_keys":
            raise DataError(f"{made.where}: {made.detail}.")
        else:
            keys = list(json.loads(made.raw))
            theirs = next((key for key in keys if key.lower() in NEAR["prompt"].split()), "THEIRS")
            told = f"no prompt, messages or text among {', '.join(keys)}"
            raise ConfigError(f"{made.where}: {told}; name the column with --map {theirs}=prompt.")


def unanswered(raw: bytes, renames: dict[str, str]) -> bytes:
    """A line with ANSWER where a record of its shape has one, so that it is read as any record is."""
    try:
        row = renamed(json.loads(raw), renames)
    except (ValueError, AttributeError):
        return raw
    turns = next((row[key] for key in ("messages", "conversations", "conversation") if row.get(key)), None)
    if isinstance(turns, list) and isinstance(turns[-1], dict):
        if turns[-1].get("role", turns[-1].get("from")) in ("user", "human"):
            turns.append({"role": "assistant", "content": ANSWER})
    elif "instruction" in row:
        row["output"] = row.get("output") or ANSWER
    elif text := row.get("prompt") or row.get("text"):
        row |= {"prompt": text, "completion": row.get("completion") or ANSWER}
    return line_of(row)


def choices_of(
    records: Sequence[Record], given: Sequence[str], known: Sequence[Record], target: str
) -> list[dict[str, str]]:
    """The options of each record, label → answer."""
    languages: dict[str | None, dict[str, str]] = {}
    for record in (r for r in known if r.label is not None and r.kind != "text"):
        stated = record.fields.get("options")
        own = as_options(stated, record.where) if stated else {str(record.label): record.completion().strip()}
        languages.setdefault(record.language, {}).update(own)
    usual, found = next(iter(languages.values()), {}), []
    for record in records:
        own = list(given) or record.fields.get("options") or languages.get(record.language, usual)
        if not own:
            told = f"nothing to choose from: {target} was trained on no labels"
            raise ConfigError(f"{record.where}: {told}; give --options a,b,c, or `options` in each record.")
        found.append(as_options(own, record.where))
    return found


def check_done(done: Sequence[dict], records: Sequence[Record], choices: Sequence[dict[str, str]]) -> None:
    """Raise ConfigError where rows that were written before are not of these records and options."""
    wanted = [(record.line, record.fields.get("id"), {*own}) for record, own in zip(records, choices)]
    found = [(row.get("line"), row.get("id"), {*row.get("probabilities", ())}) for row in done]
    if found != wanted[: len(found)]:
        raise ConfigError("The output holds rows of other records or options; name another file with -o.")


def scores_of(pair: Pair, examples: EvaluationSet) -> np.ndarray:
    return label_scores(examples, answer(pair.model, pair.tokenizer, examples, generate=None))


def chosen(pair: Pair, part: EvaluationSet, calibration: calibrating.Calibration | None) -> Iterator[dict]:
    """The rows of some records."""
    plain = scores_of(pair, part)
    scores = calibration.logits(plain, part.languages, part.labels) if calibration else plain
    for record, own, row in zip(part.records, part.options, np.exp(calibrating.log_probabilities(scores))):
        whole = dict(zip(part.labels, row.tolist(), strict=True))
        shares = {label: round(whole[label], 6) for label in own}
        best = max(shares, key=shares.get)
        place = {key: record.fields[key] for key in ("id", "language") if record.fields.get(key) is not None}
        told = {"label": best, "probability": shares[best], "probabilities": shares}
        yield {"line": record.line, **place, **told, "calibrated": bool(calibration)}


def read_done(output: Path) -> list[dict]:
    """The rows of a file that a stopped call wrote; a last line that was cut short is taken out of it."""
    if not output.parent.is_dir():
        raise ConfigError(f"{output.parent}: no such folder.")
    try:
        return [dict(json.loads(line)) for line in (whole_lines(output) if output.exists() else ())]
    except (ValueError, TypeError):
        told = "holds other lines than predict writes; name another file with -o."
        raise ConfigError(f"{output}: {told}") from None
