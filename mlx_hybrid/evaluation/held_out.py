"""Base against adapter on held-out records: loss per token, and accuracy where records carry a label."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mlx_hybrid.evaluation.intervals import bootstrap_mean, bootstrap_statistic, paired_bootstrap
from mlx_hybrid.evaluation.scoring import OptionItem, score_options, sequence_nll, tokenise_options
from mlx_hybrid.governance.records import Record
from mlx_hybrid.training.examples import Example, record_segments

MOST_OPTIONS = 50


@dataclass(frozen=True)
class Question:
    """A labelled record as a choice between the answers that its task and language know."""

    item: OptionItem
    answer: int
    language: str
    group: str


@dataclass(frozen=True)
class Scores:
    """One model on the held-out records: nats and tokens of each, right or wrong of each question."""

    nats: np.ndarray
    tokens: np.ndarray
    correct: np.ndarray


def make_questions(
    test: Sequence[Record], known: Sequence[Record], tokenizer: Any, group_key: str
) -> list[Question]:
    """Questions of the labelled test records; their options are the answers seen anywhere in the same task and language."""
    answers: dict[tuple, set[str]] = defaultdict(set)
    for record in [*known, *test]:
        if is_labelled(record):
            answers[task_of(record)].add(record.completion())
    questions = []
    for record in test:
        options = sorted(answers[task_of(record)]) if is_labelled(record) else []
        if not 2 <= len(options) <= MOST_OPTIONS:
            continue
        segments = record_segments(record, tokenizer)
        last = max(i for i, segment in enumerate(segments) if segment.trained)
        prompt = "".join(segment.text for segment in segments[:last])
        ending = segments[last].text[len(record.completion().strip()) :]
        item = tokenise_options(tokenizer, prompt, [option.strip() + ending for option in options])
        group = str(record.fields.get(group_key, record.where))
        questions.append(Question(item, options.index(record.completion()), record.language or "", group))
    return questions


def is_labelled(record: Record) -> bool:
    return record.label is not None and record.kind != "text"


def task_of(record: Record) -> tuple:
    return (record.language or "", record.fields.get("task"))


def score(model: Any, examples: Sequence[Example], questions: Sequence[Question]) -> Scores:
    """Losses and answers of one model; an answer is the option of highest summed log-likelihood."""
    nats, tokens = sequence_nll(model, [e.tokens for e in examples], [e.trained for e in examples])
    options = score_options(model, [q.item for q in questions])
    correct = [int(np.argmax(o[:, 0])) == q.answer for o, q in zip(options, questions, strict=True)]
    return Scores(nats, tokens, np.array(correct, dtype=float))


def compare(
    base: Scores, adapted: Scores, examples: Sequence[Example], questions: Sequence[Question], seed: int
) -> dict:
    """Both models and their difference with 95 % intervals, over all records and by language."""
    result: dict[str, Any] = {
        "format": 1,
        "records": len(examples),
        "questions": len(questions),
        "seed": seed,
    }
    if len(examples):
        result["loss_nats_per_token"] = loss_difference(base, adapted, seed)
    if questions:
        groups = [q.group for q in questions]
        result["accuracy"] = accuracy(base.correct, adapted.correct, groups, seed)
        result["accuracy_by_language"] = {
            language: accuracy(base.correct[rows], adapted.correct[rows], None, seed)
            for language, rows in rows_by_language(questions).items()
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


def rows_by_language(questions: Sequence[Question]) -> dict[str, np.ndarray]:
    languages = sorted({q.language for q in questions})
    return {
        language: np.array([i for i, q in enumerate(questions) if q.language == language])
        for language in languages
    }
