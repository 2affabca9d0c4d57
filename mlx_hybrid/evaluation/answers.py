"""What a model answers to the examples of an evaluation, kept in a file as it comes, so that it can go on later."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import mlx.nn as nn
import numpy as np

from mlx_hybrid.errors import ConfigError, DataError, MlxHybridError
from mlx_hybrid.evaluation.metrics import calibration
from mlx_hybrid.evaluation.scoring import score_options, sequence_nll
from mlx_hybrid.evaluation.sets import EvaluationSet, item, references
from mlx_hybrid.files import whole_lines
from mlx_hybrid.models.keys import context_limit
from mlx_hybrid.records.examples import make_examples, question_tokens
from mlx_hybrid.records.record import Record

TEXTS = "as the tokenizer begins them"  # answers to texts of older files have no bytes
BLOCK = 1024  # examples answered between two writes


def collect(
    model: Any,
    tokenizer: Any,
    parts: Mapping[str, EvaluationSet],
    path: Path | None,
    *,
    name: str = "model",
    identity: str = "",
    generate: Callable | None = None,
    progress: Callable[[str, int, int], None] = lambda name, done, total: None,
) -> dict[str, list[dict]]:
    """The model's answer to every record of every part, read from `path` as far as it holds them; ConfigError where
    `path` was written for other examples or another `identity` of the weights."""
    fingerprint = fingerprint_of(parts, identity)
    answers = {part: [] for part in parts} | read_answers(path, fingerprint)
    total, done = sum(len(part.records) for part in parts.values()), sum(map(len, answers.values()))
    for part, examples in parts.items():
        own = answers[part]
        while len(own) < len(examples.records):
            model = model if isinstance(model, nn.Module) else model()
            asked = examples.part(range(len(own), min(len(own) + BLOCK, len(examples.records))))
            rows = answer(model, tokenizer, asked, generate=generate)
            if path:
                path.parent.mkdir(parents=True, exist_ok=True)
                with path.open("a", encoding="utf-8") as file:
                    head = [] if file.tell() else [{"format": 1, "fingerprint": fingerprint}]
                    lines = [*head, *({"part": part, **row} for row in rows)]
                    file.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
            own += rows
            done += len(rows)
            progress(name, done, total)
    return answers


def answer(model: Any, tokenizer: Any, examples: EvaluationSet, *, generate: Callable | None) -> list[dict]:
    """One row a record: `sums` of its options, `nats` of its `bytes` or trained `tokens`, or the `text` generated."""
    records = examples.records
    if examples.kind == "classification":
        items = [item(r, o, tokenizer) for r, o in zip(records, examples.options, strict=True)]
        refuse_longer(model, tokenizer, records, [len(i.prompt) + max(map(len, i.options)) for i in items])
        return [{"sums": scores.tolist()} for scores in score_options(model, items)]
    if examples.kind == "text":
        texts = [record.fields["text"] for record in records]
        rows = [{"nats": 0.0, "bytes": 0} for _ in texts]  # of what the vocabulary has no token of
        known = [n for n, text in enumerate(texts) if tokenizer.encode(text, add_special_tokens=False)]
        tokens = [tokenizer.continued(texts[n]) for n in known]
        for n, own, (nats, *_) in zip(known, tokens, likelihoods(model, tokens)):
            rows[n] = {"nats": nats, "bytes": predicted_bytes(texts[n], own, tokenizer)}
        return rows
    if examples.kind == "conversation":
        limit = {"max_tokens": examples.max_tokens, "too_long": "truncate"}
        made = make_examples(records, tokenizer, **limit).examples
        told = likelihoods(model, [own.tokens for own in made], [own.trained for own in made])
        return [{"nats": nats, "tokens": count} for nats, count, _ in told]
    if generate is None:
        raise ConfigError("Translations need a generator.")
    asked = [question_tokens(record, tokenizer) for record in records]
    refuse_longer(model, tokenizer, records, list(map(len, asked)))
    return [{"text": text} for text in generate(model, asked)]


def refuse_longer(model: Any, tokenizer: Any, records: Sequence[Record], lengths: Sequence[int]) -> None:
    """Raise DataError for a record of more tokens than the model was made for."""
    limit = context_limit(model, tokenizer)
    for record, length in zip(records, lengths):
        if length > limit:
            told = f"has {length:,} tokens, and the model's context is {limit:,}; shorten or leave it out"
            raise DataError(f"{record.where}: {told}.")


def predicted_bytes(text: str, tokens: list[int], tokenizer: Any) -> int:
    """UTF-8 bytes of what is predicted of a text: all, but those of its first token where nothing begins it."""
    if tokenizer.begun([]):
        return len(text.encode())
    first, piece = tokenizer.decode(tokens[:1]), tokenizer.convert_ids_to_tokens(tokens[0])
    if text.startswith(first):
        return len(text.encode()) - len(first.encode())
    # part of a letter: byte-level pieces have a sign a byte, byte fallback writes <0xE4>
    return max(0, len(text.encode()) - (1 if piece.startswith("<0x") else len(piece)))


def likelihoods(model: Any, tokens: list, masks: list | None = None) -> list[tuple[float, int, int]]:
    """Nats and count of the tokens predicted in each sequence, and of those that are not the likeliest."""
    told = sequence_nll(model, tokens, masks)
    if not np.all(np.isfinite(told[0])):
        raise MlxHybridError("The likelihood of a text is not finite: the model's weights hold NaN or inf.")
    return list(zip(*(own.tolist() for own in told)))


def fingerprint_of(parts: Mapping[str, EvaluationSet], identity: str) -> str:
    """What differs where other examples are asked, or by other weights."""
    digest = sha256(identity.encode())
    for name, part in parts.items():
        content = [[record.fields for record in part.records], part.options, part.task, part.version]
        content += [TEXTS] if part.kind == "text" else []
        digest.update(json.dumps([name, content], sort_keys=True).encode())
    return digest.hexdigest()


def read_answers(path: Path | None, fingerprint: str | None = None) -> dict[str, list[dict]]:
    """Part → answers in order; a last line cut short is dropped from the file."""
    lines = whole_lines(path) if path and path.exists() else []
    head, *rows = map(json.loads, lines or ["{}"])
    if fingerprint not in (None, head.get("fingerprint", fingerprint)):
        told = "holds answers of other weights or to other examples; remove it or name another folder."
        raise ConfigError(f"{path}: {told}")
    answers: dict[str, list[dict]] = {}
    for row in rows:
        answers.setdefault(row.pop("part"), []).append(row)
    return answers


def label_scores(examples: EvaluationSet, rows: list[dict]) -> np.ndarray:
    """(records, labels) log-likelihoods; −inf where a label is no option."""
    scores = np.full((len(rows), len(examples.labels)), -np.inf)
    column = {label: number for number, label in enumerate(examples.labels)}
    for own, row, options in zip(scores, rows, examples.options, strict=True):
        own[[column[label] for label in options]] = row["sums"]
    return scores


def example_rows(test: EvaluationSet, path: Path, part: str = "test") -> list[dict]:
    """One row a record of a file of answers: where it stands, what was answered, and what that is worth."""
    answers = read_answers(path).get(part, [])
    if test.kind == "classification":
        answers = choices_made(test, answers)
    elif test.kind == "translation":
        answers = [row | {"references": references(r)} for r, row in zip(test.records, answers)]
    places = zip(test.records, test.languages, test.groups, answers, strict=True)
    return [
        {"id": record.fields.get("id", record.where), "language": language, "group": group, **row}
        for record, language, group, row in places
    ]


def choices_made(test: EvaluationSet, answers: list[dict]) -> Iterator[dict]:
    scores, wanted = label_scores(test, answers), test.answers
    nll = calibration.negative_log_likelihood(scores, wanted).tolist()
    told = zip(scores.argmax(1), wanted, nll, np.exp(calibration.log_probabilities(scores)), test.options)
    for chosen, answer, nats, row, options in told:
        probabilities = dict(zip(test.labels, row.tolist()))
        yield {
            "label": test.labels[answer],
            "chosen": test.labels[chosen],
            "right": bool(chosen == answer),
            "nll_nats": nats,
            "probabilities": {label: probabilities[label] for label in options},
        }
