"""One model, or a base beside an adapted one, on one evaluation set."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mlx_hybrid.errors import DataError
from mlx_hybrid.evaluation.answers import collect
from mlx_hybrid.evaluation.figures import VARIANT, choice_rows, loss_rows, retention_rows, text_rows
from mlx_hybrid.evaluation.metrics.translation import translation_rows
from mlx_hybrid.evaluation.results import Results
from mlx_hybrid.evaluation.sets import EvaluationSet, evaluation_set, language_code, limited, varied
from mlx_hybrid.records.record import Record, group_key

PIVOT = "eng_Latn"
HELD_OUT = "held-out records"
ROWS = {
    "classification": choice_rows,
    "text": text_rows,
    "translation": translation_rows,
    "conversation": loss_rows,
}


def evaluate(
    models: Mapping[str, Any],
    tokenizer: Any,
    test: EvaluationSet,
    *,
    pivot: str | None = PIVOT,
    directory: Path | None = None,
    identities: Mapping[str, str] | None = None,
    generate: Callable[[Any, list[list[int]]], list[str]] | None = None,
    progress: Callable[[str, int, int], None] = lambda name, done, total: None,
    seed: int = 0,
    limit: int = 0,
    untrained: Collection[str] = (),
    **asked: Any,
) -> Results:
    """Measure one model, or two and what the second is beyond the first, on `test`.

    `models` has a model by name, or a function that loads it; `asked` is what `parts_of` takes. In `directory` answers
    are kept by model, and a second call with the same examples and `identities` (name → hash of the weights) goes on
    where the first stopped. `generate` makes translations of prompts; `progress` hears (model, done, all).
    """
    pivot = language_code(pivot) if pivot else None
    parts = parts_of(test, seed=seed, limit=limit, **asked)
    answers, how = {}, {"generate": generate, "progress": progress}
    for name, model in models.items():
        path, identity = directory and directory / f"{name}.answers.jsonl", (identities or {}).get(name, "")
        answers[name] = collect(model, tokenizer, parts, path, name=name, identity=identity, **how)
    test = parts["test"]
    facts, rows = ROWS[test.kind](parts, answers, seed=seed, pivot=pivot)
    rows += loss_rows(parts, answers, seed=seed, part="trained")[1] if "trained" in parts else []
    rows += retention_rows(parts, answers, seed=seed, untrained=untrained) if "retention" in parts else []
    told = {"task": test.task, "version": test.version, "kind": test.kind, "seed": seed, "limit": limit}
    told |= {"records": len(test.records), "languages": sorted(set(test.languages)), "pivot": pivot}
    return Results(told | facts, tuple(rows))


def parts_of(
    test: EvaluationSet, *, variants: Sequence[str] = (), seed: int = 0, limit: int = 0, **beside: Any
) -> dict[str, EvaluationSet]:
    """Every set that a model answers, by name; `variants` are spellings of the test set, `beside` may hold the sets
    `dev`, on which a classification is calibrated, `trained`, of which losses are measured, and `retention`."""
    found = {"test": test, "dev": beside.get("dev") if test.kind == "classification" else None}
    parts = {name: limited(own, limit, seed) for name, own in found.items() if own}
    parts |= {f"{VARIANT}{name}": varied(parts["test"], name, seed) for name in variants}
    found = {name: beside.get(name) for name in ("trained", "retention")}
    return parts | {name: limited(own, limit, seed) for name, own in found.items() if own}


def held_out_sets(
    test: Sequence[Record], known: Sequence[Record], *, group: str, max_tokens: int, measured: Collection[str]
) -> tuple[EvaluationSet, EvaluationSet | None, str]:
    """What a run asks of the records that it held out: the labelled ones as choices and all as conversations beside
    them, or these alone, with why labels cannot be measured. `known` are the training records, `group` is
    `data.group`; those not `measured` (by place) were too long, others are cut at `max_tokens` as in training."""
    own, key = [record for record in test if record.where in measured], group_key(test, group)
    whole = EvaluationSet("conversation", HELD_OUT, 1, own, group=key, max_tokens=max_tokens)
    asked, labels = ([r for r in part if r.label is not None and r.kind != "text"] for part in (test, known))
    if not asked:
        return whole, None, ""
    try:
        choices = evaluation_set(asked, labels, group=group)
    except DataError as error:
        return whole, None, f"Accuracy is not measured: {error}"
    return replace(choices, task=HELD_OUT, version=1), whole if own else None, ""
