"""One model, or a base beside an adapted one, on one evaluation set."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mlx_hybrid.errors import DataError
from mlx_hybrid.evaluation.answers import collect
from mlx_hybrid.evaluation.benchmarks.variants import variants_for
from mlx_hybrid.evaluation.choices import VARIANT, choice_rows
from mlx_hybrid.evaluation.metrics.translation import translation_rows
from mlx_hybrid.evaluation.ratios import loss_rows, retention_rows, text_rows
from mlx_hybrid.evaluation.results import Results
from mlx_hybrid.evaluation.sets import EvaluationSet, evaluation_set, language_code, limited, varied
from mlx_hybrid.records.record import Record
from mlx_hybrid.records.split import group_key

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

    `models` has a model by name, or a function that loads it; `limit` is records a language; `asked` are the other sets
    and variants that `parts_of` takes. With a `directory`, answers are kept there by model, and a second call with the
    same examples goes on where the first stopped, unless `identities` (name → hash of the weights) changed. `generate`
    takes a model and prompts as token ids and gives texts (only translations need it). `progress` hears (model, done,
    all).
    """
    pivot = language_code(pivot) if pivot else None
    parts = parts_of(test, seed=seed, limit=limit, **asked)
    test, answers, how = parts["test"], {}, {"generate": generate, "progress": progress}
    for name, model in models.items():
        path = directory / f"{name}.answers.jsonl" if directory else None
        identity = (identities or {}).get(name, "")
        answers[name] = collect(model, tokenizer, parts, path, name=name, identity=identity, **how)
    facts, rows = ROWS[test.kind](parts, answers, seed=seed, pivot=pivot)
    rows += loss_rows(parts, answers, seed=seed, part="trained")[1] if "trained" in parts else []
    if "retention" in parts:
        rows += retention_rows(parts, answers, seed=seed, untrained=untrained)
    told = {"task": test.task, "version": test.version, "kind": test.kind, "seed": seed, "limit": limit}
    told |= {"records": len(test.records), "languages": sorted(set(test.languages)), "pivot": pivot}
    return Results(told | facts, tuple(rows))


def parts_of(
    test: EvaluationSet,
    *,
    dev: EvaluationSet | None = None,
    trained: EvaluationSet | None = None,
    retention: EvaluationSet | None = None,
    variants: Sequence[str] = (),
    seed: int = 0,
    limit: int = 0,
) -> dict[str, EvaluationSet]:
    """Every set that a model answers in an evaluation, by name.

    On `dev` a classification is calibrated; the loss on the trained tokens of `trained` and the bits per byte of the
    texts of `retention` are measured beside; `variants` are spellings of the test set.
    """
    test = limited(test, limit, seed)
    parts = {"test": test}
    if test.kind == "classification":
        parts |= {"dev": limited(dev, limit, seed)} if dev else {}
        parts |= {f"{VARIANT}{name}": varied_part(test, name, seed) for name in variants}
    beside = {"trained": trained, "retention": retention}
    return parts | {name: limited(own, limit, seed) for name, own in beside.items() if own}


def held_out_sets(
    test: Sequence[Record], known: Sequence[Record], *, group: str, max_tokens: int, measured: Collection[str]
) -> tuple[EvaluationSet, EvaluationSet | None, str]:
    """What a run asks of the records that it held out: the labelled ones as choices, and all as conversations beside
    them; all as conversations alone where nothing is labelled. The text says why labels cannot be measured.

    `known` are the training records, `group` the run's `data.group`; a record that is not `measured` (by its place) was
    too long, and the others are cut at `max_tokens` as training cuts them.
    """
    own, key = [record for record in test if record.where in measured], group_key(test, group)
    whole = EvaluationSet("conversation", HELD_OUT, 1, own, group=key, max_tokens=max_tokens)
    asked, labels = (
        [record for record in part if record.label is not None and record.kind != "text"]
        for part in (test, known)
    )
    if not asked:
        return whole, None, ""
    try:
        choices = evaluation_set(asked, labels, group=group)
    except DataError as error:
        return whole, None, f"Accuracy is not measured: {error}"
    return replace(choices, task=HELD_OUT, version=1), whole if own else None, ""


def varied_part(test: EvaluationSet, name: str, seed: int) -> EvaluationSet:
    """The records of the languages that a variant applies to, spelt its way."""
    own = test.part(n for n, language in enumerate(test.languages) if name in variants_for(language))
    return replace(own, records=[varied(record, name, seed) for record in own.records])
