"""Base against adapter on held-out records: loss per token, and accuracy where records carry a label."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mlx_hybrid.evaluation.examples import evaluation_set, item
from mlx_hybrid.evaluation.intervals import bootstrap_mean, bootstrap_statistic, paired_bootstrap
from mlx_hybrid.evaluation.scoring import OptionItem, score_options, sequence_nll
from mlx_hybrid.governance.records import Record
from mlx_hybrid.training.examples import Example


@dataclass(frozen=True)
class Questions:
    """Labelled held-out records as choices between the answers that their task and language know."""

    items: list[OptionItem]
    answers: list[int]
    languages: list[str]
    groups: list[str]


NO_QUESTIONS = Questions([], [], [], [])


@dataclass(frozen=True)
class Scores:
    """One model on the held-out records: nats and tokens of each, right or wrong of each question."""

    nats: np.ndarray
    tokens: np.ndarray
    correct: np.ndarray


def make_questions(
    test: Sequence[Record], known: Sequence[Record], tokenizer: Any, *, group: str = "group"
) -> Questions:
    """Questions of the labelled test records; their options are the answers seen in the same task and language, and
    `group` is the run's `data.group`."""
    labelled = [record for record in test if record.label is not None and record.kind != "text"]
    if not labelled:
        return NO_QUESTIONS
    chosen = evaluation_set(
        labelled, [r for r in known if r.label is not None and r.kind != "text"], group=group
    )
    items, answers = [], []
    for record, options in zip(chosen.records, chosen.options, strict=True):
        items.append(item(record, options, tokenizer))
        answers.append(list(options).index(str(record.label)))
    return Questions(items, answers, chosen.languages, chosen.groups)


def score(model: Any, examples: Sequence[Example], questions: Questions) -> Scores:
    """Losses and answers of one model; an answer is the option of highest summed log-likelihood."""
    nats, tokens = sequence_nll(model, [e.tokens for e in examples], [e.trained for e in examples])
    scored = score_options(model, questions.items)
    chosen = [int(np.argmax(options[:, 0])) for options in scored]
    correct = np.array([c == a for c, a in zip(chosen, questions.answers, strict=True)], dtype=float)
    return Scores(nats, tokens, correct)


def compare(
    base: Scores, adapted: Scores, examples: Sequence[Example], questions: Questions, seed: int
) -> dict:
    """Both models and their difference with 95 % intervals, over all records and by language."""
    result: dict[str, Any] = {
        "format": 1,
        "records": len(examples),
        "questions": len(questions.items),
        "seed": seed,
    }
    if len(examples):
        result["loss_nats_per_token"] = loss_difference(base, adapted, seed)
    if questions.items:
        result["accuracy"] = accuracy(base.correct, adapted.correct, questions.groups, seed)
        result["accuracy_by_language"] = {
            language: accuracy(base.correct[rows], adapted.correct[rows], None, seed)
            for language, rows in rows_by_language(questions.languages).items()
        }
    return result


def loss_difference(base: Scores, adapted: Scores, seed: int) -> dict:
    """Σ nats / Σ tokens of both, and the adapter's minus the base's with its interval over resampled records."""
    tokens, change = base.tokens, adapted.nats - base.nats
    difference = bootstrap_statistic(lambda i: change[i].sum() / tokens[i].sum(), len(tokens), seed=seed)
    return {
        "base": float(base.nats.sum() / tokens.sum()),
        "adapted": float(adapted.nats.sum() / tokens.sum()),
        "difference": difference.as_dict(),
    }


def accuracy(base: np.ndarray, adapted: np.ndarray, groups: Sequence | None, seed: int) -> dict:
    return {
        "base": bootstrap_mean(base, seed=seed, groups=groups).as_dict(),
        "adapted": bootstrap_mean(adapted, seed=seed, groups=groups).as_dict(),
        "gain": paired_bootstrap(base, adapted, seed=seed, groups=groups).as_dict(),
    }


def rows_by_language(languages: Sequence[str]) -> dict[str, np.ndarray]:
    return {language: np.flatnonzero(np.array(languages) == language) for language in sorted(set(languages))}
