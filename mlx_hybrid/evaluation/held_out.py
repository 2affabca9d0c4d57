"""Base against adapter on held-out records: loss per token, and accuracy where records carry a label."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mlx_hybrid.evaluation.metrics.intervals import bootstrap_mean, bootstrap_ratio, paired_bootstrap
from mlx_hybrid.evaluation.scoring import OptionItem, score_options, sequence_nll
from mlx_hybrid.evaluation.sets import evaluation_set, item
from mlx_hybrid.records.record import Record
from mlx_hybrid.records.split import group_key, group_of
from mlx_hybrid.records.template import Example


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


def example_groups(examples: Sequence[Example], test: Sequence[Record], key: str) -> list[str]:
    """The group of each example; of `test`, records over the length limit are no examples. `key` is `data.group`."""
    key = group_key(test, key)
    groups = {record.where: group_of(record, key) for record in test}
    return [groups[example.where] for example in examples]


def compare(base: Scores, adapted: Scores, groups: Sequence[str], questions: Questions, seed: int) -> dict:
    """Both models and their difference with 95 % intervals over resampled groups, whole and by language; `groups` are
    those of the examples."""
    result: dict[str, Any] = {
        "format": 1,
        "records": len(groups),
        "questions": len(questions.items),
        "seed": seed,
    }
    if len(groups):
        result["loss_nats_per_token"] = loss_difference(base, adapted, groups, seed)
    if questions.items:
        result["accuracy"] = accuracy(base.correct, adapted.correct, questions.groups, seed)
        kin = np.array(questions.groups)
        result["accuracy_by_language"] = {
            language: {"questions": len(rows)}
            | accuracy(base.correct[rows], adapted.correct[rows], kin[rows], seed)
            for language, rows in rows_by_language(questions.languages).items()
        }
    return result


def loss_difference(base: Scores, adapted: Scores, groups: Sequence[str], seed: int) -> dict:
    """Σ nats / Σ tokens of both, and the adapter's minus the base's with its interval over resampled groups."""
    tokens = base.tokens
    difference = bootstrap_ratio(adapted.nats - base.nats, tokens, seed=seed, groups=groups)
    return {
        "base": float(base.nats.sum() / tokens.sum()),
        "adapted": float(adapted.nats.sum() / tokens.sum()),
        "difference": difference.as_dict(),
    }


def accuracy(base: np.ndarray, adapted: np.ndarray, groups: Sequence, seed: int) -> dict:
    return {
        "base": bootstrap_mean(base, seed=seed, groups=groups).as_dict(),
        "adapted": bootstrap_mean(adapted, seed=seed, groups=groups).as_dict(),
        "gain": paired_bootstrap(base, adapted, seed=seed, groups=groups).as_dict(),
    }


def rows_by_language(languages: Sequence[str]) -> dict[str, np.ndarray]:
    return {language: np.flatnonzero(np.array(languages) == language) for language in sorted(set(languages))}
