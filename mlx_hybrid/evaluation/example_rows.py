"""What a model answered to each example, one plain row a record: to read, and to compare models by."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from mlx_hybrid.evaluation.metrics import calibration
from mlx_hybrid.evaluation.metrics.classification import choose
from mlx_hybrid.evaluation.sets import EvaluationSet, references
from mlx_hybrid.evaluation.tables import byte_counts, label_scores


def answers_to_test(path: Path) -> list[dict]:
    """The answers to the test set in an answers file."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [row for row in rows if row.get("part") == "test"]


def example_rows(test: EvaluationSet, answers: list[dict], *, normalised: bool) -> list[dict]:
    """One row a record: where it stands, and of a classification the choice, whether it is right and the
    probabilities; of a translation the texts; of a text its nats and bytes."""
    if test.kind == "classification":
        own = classified(test, answers, normalised)
    elif test.kind == "text":
        sizes = byte_counts(test)
        own = [{"nats": row["nats"], "bytes": int(size)} for row, size in zip(answers, sizes, strict=True)]
    else:
        pairs = zip(test.records, answers, strict=True)
        own = [{"text": row["text"], "references": references(record)} for record, row in pairs]
    places = zip(test.records, test.languages, test.groups, own, strict=True)
    return [
        {"id": record.fields.get("id", record.where), "language": language, "group": group, **row}
        for record, language, group, row in places
    ]


def classified(test: EvaluationSet, answers: list[dict], normalised: bool) -> list[dict]:
    scores = label_scores(test, answers, normalised=normalised)
    chosen, wanted = choose(scores), test.answers
    log_p = calibration.log_probabilities(scores)
    nll = calibration.negative_log_likelihood(scores, wanted)
    rows: list[dict[str, Any]] = []
    for number, options in enumerate(test.options):
        share = {label: float(np.exp(log_p[number, test.labels.index(label)])) for label in options}
        rows.append(
            {
                "label": test.labels[wanted[number]], "chosen": test.labels[chosen[number]],
                "right": bool(chosen[number] == wanted[number]), "nll_nats": float(nll[number]),
                "probabilities": share,
            }
        )  # fmt: skip
    return rows
