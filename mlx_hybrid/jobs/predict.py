"""Labels for all records of a file, with calibrated probabilities."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from mlx_hybrid.adapters.store import WEIGHTS_FILE
from mlx_hybrid.errors import ConfigError, DataError
from mlx_hybrid.evaluation.answers import answer, label_scores
from mlx_hybrid.evaluation.benchmarks.questions import (
    dev_records,
    refuse_trained,
    training_records,
    validation_of,
)
from mlx_hybrid.evaluation.metrics import calibration as calibrating
from mlx_hybrid.evaluation.sets import (
    EvaluationSet,
    as_options,
    evaluation_set,
    kind_of,
    labelled,
    language_code,
)
from mlx_hybrid.files import sha256_of, whole_lines
from mlx_hybrid.models.adapted import Pair, open_pair, run_named
from mlx_hybrid.records.files import read_renames
from mlx_hybrid.records.lines import Fault, as_source, check_file, line_of, read_lines
from mlx_hybrid.records.record import Record, parse_line
from mlx_hybrid.records.shapes import NEAR, renamed

BATCH = 64  # records labelled between two writes
ANSWER = "?"  # stands for the one that is to be chosen
Seen = dict[tuple[str | None, str], dict[str, str]]  # task, language → label → answer


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
    seen = seen_options(known)
    choices = [chosen_from(record, options, seen, target) for record in records]
    validation, lost = validation_of(run) if run and dev == "auto" else (dev_records(dev, list), "")
    refuse_trained(known, validation if dev != "auto" else [])
    pair = open_pair(target, base_name=base_model)
    tell(pair.describe())
    if run:
        pair.tokenizer.date = run.template_date()
    labels = list(dict.fromkeys(label for own in choices for label in own))
    asked = EvaluationSet("classification", "predict", 1, records, labels, choices)
    calibration = calibration_of(pair, validation, known, dev, tell)
    labels_of = set(calibration.bias[calibrating.EVERY] if calibration else ())
    fits = [labels_of >= {*own} and are_seen(record, own, seen) for record, own in zip(records, choices)]
    if others := fits.count(False):
        whose = "The probabilities" if others == len(fits) else f"Of {others} records the probabilities"
        why = f", since {lost}" if lost and not calibration else " for these options"
        tell(f"{whose} are the model's own: there is no calibration{why}.")
    marks = marks_of(asked, pair, calibration)
    if [row.get("of") for row in done] != marks[: len(done)]:
        told = "The output holds rows of other records, options or weights"
        raise ConfigError(f"{told}; name another file with -o.")
    for start in range(len(done), len(records), BATCH):
        part = range(len(records))[start : start + BATCH]
        for place, row in zip(part, chosen(pair, asked.part(part), calibration, fits[start : part.stop])):
            yield row | {"of": marks[place]}
        tell(f"{part.stop} of {len(records)} records")


def calibration_of(
    pair: Pair, validation: Sequence[Record], known: Sequence[Record], dev: str, tell: Callable[[str], None]
) -> calibrating.Calibration | None:
    """The calibration, stored or fitted now, if there is one."""
    if dev == "auto" and (stored := calibrating.read_calibration(pair.adapter)):
        return stored
    wanted = [record for record in validation if kind_of(record) == "classification"]
    if not wanted:
        return None
    tell(f"Calibrating on {len(wanted)} validation records.")
    examples = evaluation_set(wanted, labelled(known))
    shown = scores_of(pair, examples), examples.answers, examples.languages, examples.labels
    calibration = calibrating.fit_calibration(*shown)
    if dev == "auto":
        calibrating.write_calibration(pair.adapter, calibration)
    return calibration


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
        if isinstance(made, Record) and not made.prompt().strip():
            raise DataError(f"{made.where}: the prompt is empty.")
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
    elif isinstance(text := row.get("prompt") or row.get("text") or row.get("prompt"), str):
        row |= {"prompt": text, "completion": row.get("completion") or ANSWER}
    return line_of(row)


def seen_options(known: Sequence[Record]) -> Seen:
    """The options seen in training, label → answer, by task and language; "" for an answer that changes with the
    record."""
    seen: Seen = {}
    for record in (r for r in known if r.label is not None and r.kind != "text"):
        stated = record.fields.get("options")
        own = as_options(stated, record.where) if stated else {str(record.label): record.completion().strip()}
        group = seen.setdefault((record.fields.get("task"), language_code(record.language)), {})
        group |= {
            label: answer if group.get(label, answer) == answer else "" for label, answer in own.items()
        }
    return seen


def are_seen(record: Record, own: dict[str, str], seen: Seen) -> bool:
    """Whether the options of a record are such as stood in training, in one task and its language where that did."""
    groups = [
        options for (_, language), options in seen.items() if language == language_code(record.language)
    ]
    groups = groups or list(seen.values())
    fitting = (all(group.get(label) in ("", answer) for label, answer in own.items()) for group in groups)
    return any(fitting) if groups else True


def chosen_from(record: Record, given: Sequence[str], seen: Seen, target: str) -> dict[str, str]:
    """The options of a record, label → answer: those given, its own, or those seen in its task and language; where it
    names none, or another, those of all, if they do not contradict each other."""
    if own := list(given) or record.fields.get("options"):
        return as_options(own, record.where)
    task, language = record.fields.get("task"), language_code(record.language)
    found = {key: options for key, options in seen.items() if task in (None, key[0]) or key[0] is None}
    found = {key: options for key, options in found.items() if key[1] == language} or found
    whole = {label: answer for options in found.values() for label, answer in options.items()}
    tasks, told = sorted({str(task) for task, _ in found}), ""
    if not whole:
        told = f"nothing to choose from: {target} was trained on no labels{f' of the task {task}' if task else ''};"
    elif len(tasks) > 1:
        told = f"{target} was trained on the labels of {', '.join(tasks)}; name one under `task`, or"
    elif "" in whole.values():
        told = f"{target} was trained on other answers in each record;"
    elif any(not options.items() <= whole.items() for options in found.values()):
        told = f"{target} was trained on other answers in each language; name one under `language`, or"
    if told:
        raise ConfigError(f"{record.where}: {told} give --options a,b,c, or `options` in each record.")
    return as_options(whole, record.where)


def marks_of(asked: EvaluationSet, pair: Pair, calibration: calibrating.Calibration | None) -> list[str]:
    """What each row is of: a hash of the record, its options, the weights and the calibration."""
    weights = pair.identity.get("fingerprint"), sha256_of(pair.adapter / WEIGHTS_FILE) if pair.adapter else ""
    head = sha256(repr((weights, calibration and asdict(calibration))).encode())
    rows = (json.dumps([record.fields, own]) for record, own in zip(asked.records, asked.options))
    marks = [head.copy() for _ in asked.records]
    for mark, row in zip(marks, rows):
        mark.update(row.encode())
    return [mark.hexdigest()[:16] for mark in marks]


def scores_of(pair: Pair, examples: EvaluationSet) -> np.ndarray:
    return label_scores(examples, answer(pair.model, pair.tokenizer, examples, generate=None))


def chosen(
    pair: Pair, part: EvaluationSet, calibration: calibrating.Calibration | None, fits: Sequence[bool]
) -> Iterator[dict]:
    """The rows of some records, calibrated where their options are those that the calibration `fits`."""
    scores = scores_of(pair, part)
    if calibration:
        calibrated = calibration.logits(scores, part.languages, part.labels)
        scores = np.where(np.array(fits)[:, None], calibrated, scores)
    probabilities = np.exp(calibrating.log_probabilities(scores))
    for record, own, row, fit in zip(part.records, part.options, probabilities, fits):
        whole = dict(zip(part.labels, row.tolist(), strict=True))
        shares = {label: round(whole[label], 6) for label in own}
        best = max(shares, key=shares.get)
        place = {key: record.fields[key] for key in ("id", "language") if record.fields.get(key) is not None}
        told = {"label": best, "probability": shares[best], "probabilities": shares}
        yield {"line": record.line, **place, **told, "calibrated": fit}


def read_done(output: Path) -> list[dict]:
    """The rows of a file that a stopped call wrote; a last line that was cut short is taken out of it."""
    if not output.parent.is_dir():
        raise ConfigError(f"{output.parent}: no such folder.")
    try:
        return [dict(json.loads(line)) for line in (whole_lines(output) if output.exists() else ())]
    except (ValueError, TypeError):
        told = "holds other lines than predict writes; name another file with -o."
        raise ConfigError(f"{output}: {told}") from None
