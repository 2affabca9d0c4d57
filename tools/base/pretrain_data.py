"""Token windows for pretraining: monolingual text in source order, translation pairs, instructions.

A window of text begins at the start of a line, with `<s>`, and runs on through the lines that follow it; long lines are
cut into pieces of a few sentences first. Windows of pairs and instructions are packed with whole examples in the chat
template. Everything is memory-resident: the whole
corpus is about 30 million tokens.
"""

import argparse
import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from corpus import (
    LANGUAGES,
    LOW_RESOURCE,
    data_root,
    ntrex_lines,
    parallel_pairs,
    temperature_shares,
    training_lines,
)
from select_text import likeness, most_alike
from transformers import PreTrainedTokenizerFast

NAMES = {
    "en": "English", "es": "Spanish", "fr": "French", "de": "German", "ru": "Russian", "ar": "Arabic",
    "hi": "Hindi", "zh": "Chinese", "sw": "Swahili", "tr": "Turkish", "vi": "Vietnamese", "th": "Thai",
    "bg": "Bulgarian", "el": "Greek", "ur": "Urdu", "id": "Indonesian", "yo": "Yoruba", "ha": "Hausa", "am": "Amharic",
}  # fmt: skip


@dataclass
class Stream:
    """Tokens end to end, the lines a window may begin with, and what each token weighs in the loss (None: 1)."""

    tokens: np.ndarray
    starts: np.ndarray
    lengths: np.ndarray
    weights: np.ndarray | None = None

    def __post_init__(self) -> None:
        self.reach = np.cumsum(self.lengths)

    def window(self, rng: np.random.Generator, length: int, begin: int) -> tuple[np.ndarray, np.ndarray]:
        """`begin` and the tokens that follow the start of a line, drawn by its length."""
        start = self.starts[np.searchsorted(self.reach, rng.integers(self.reach[-1]), side="right")]
        piece = slice(start, start + length - 1)
        tokens = np.concatenate([[begin], self.tokens[piece]])
        weights = np.ones(len(tokens), np.float32)
        if self.weights is not None:
            weights[1:] = self.weights[piece]
        return tokens, weights


@dataclass
class Mixture:
    """Streams and the probability of drawing a window from each."""

    streams: list[Stream]
    shares: np.ndarray
    begin: int
    pad: int

    def batch(self, rng: np.random.Generator, size: int, length: int) -> tuple[np.ndarray, np.ndarray]:
        """(size, length + 1) token ids, and their weights in the loss: 0 on pads."""
        tokens = np.full((size, length + 1), self.pad, dtype=np.int64)
        weights = np.zeros((size, length + 1), dtype=np.float32)
        for row, pick in enumerate(rng.choice(len(self.streams), size=size, p=self.shares)):
            piece, weight = self.streams[pick].window(rng, length + 1, self.begin)
            tokens[row, : len(piece)], weights[row, : len(piece)] = piece, weight
        return tokens, weights


def encode(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> Stream:
    ids = tokenizer(texts, add_special_tokens=False)["input_ids"]
    lengths = np.array([len(i) for i in ids])
    tokens = np.fromiter((t for i in ids for t in i), dtype=np.uint16, count=int(lengths.sum()))
    return Stream(tokens, np.concatenate([[0], np.cumsum(lengths)[:-1]]), lengths)


def answers_weighed(
    stream: Stream, tokenizer: PreTrainedTokenizerFast, least: float, question: float = 1
) -> Stream:
    """The stream with each answer weighing at least `least` tokens, so that a label is not lost in its question.

    Every token outside the answers weighs `question`.
    """
    opened, closed = tokenizer.convert_tokens_to_ids(["<|assistant|>", "<|end|>"])
    weights = np.full(len(stream.tokens), question, np.float32)
    ends = np.flatnonzero(stream.tokens == closed)
    for start in np.flatnonzero(stream.tokens == opened):
        place = np.searchsorted(ends, start)
        if place < len(ends):
            answer = slice(start + 1, ends[place] + 1)
            weights[answer] = max(1.0, least / (answer.stop - answer.start))
    return replace(stream, weights=weights)


def translation_chats(root: Path, seed: int) -> list[str]:
    """Every pair in both directions, half as a translation request, half as two plain lines; news four times."""
    rng = np.random.default_rng(seed)
    texts = []
    for language, english, other in parallel_pairs(root, news_copies=4):
        for source, target, name in ((english, other, NAMES[language]), (other, english, "English")):
            if rng.random() < 0.5:
                texts.append(f"<|user|>Translate into {name}: {source}<|end|><|assistant|>{target}<|end|><s>")
            else:
                texts.append(f"{source}\n{target}</s><s>")
    rng.shuffle(texts)
    return texts


def instruction_chats(paths: list[Path]) -> list[str]:
    texts = []
    for path in paths:
        for line in path.read_text(encoding="utf-8").splitlines():
            record = json.loads(line)
            if "text" in record:
                texts.append(record["text"] + "</s><s>")
            else:
                turns = "".join(f"<|{t['role']}|>{t['content']}<|end|>" for t in record["messages"])
                texts.append(turns + "<s>")
    return texts


def load_streams(cache: Path, root: Path, tokenizer: PreTrainedTokenizerFast, seed: int) -> dict[str, Stream]:
    """The text of each language, and the pairs; encoded once and kept in `cache`."""
    names, fields = [*LANGUAGES, "pairs"], ("tokens", "starts", "lengths")
    if not cache.exists():
        texts = {name: [line + "\n" for line in training_lines(root, name)] for name in LANGUAGES}
        texts["pairs"] = translation_chats(root, seed)
        streams = {name: encode(tokenizer, texts[name]) for name in names}
        np.savez(cache, **{f"{n}.{field}": getattr(streams[n], field) for n in names for field in fields})
    stored = np.load(cache)
    return {name: Stream(*(stored[f"{name}.{field}"] for field in fields)) for name in names}


def like_news(
    stream: Stream, language: str, root: Path, tokenizer: PreTrainedTokenizerFast, share: float
) -> Stream:
    """The stream with windows begun only in the `share` of its text that is most like edited news (NTREX 1–500)."""
    lines = tokenizer(ntrex_lines(root, language), add_special_tokens=False)["input_ids"]
    reference = np.array([t for line in lines for t in line])
    newline = tokenizer.convert_tokens_to_ids("<0x0A>")
    scores = likeness(stream.tokens, stream.starts, reference, tokenizer.vocab_size, newline)
    kept = most_alike(scores, stream.lengths, share)
    return replace(stream, starts=stream.starts[kept], lengths=stream.lengths[kept])


def load_mixture(arguments: argparse.Namespace) -> tuple[Mixture, PreTrainedTokenizerFast]:
    tokenizer = PreTrainedTokenizerFast.from_pretrained(arguments.tokenizer)
    root = data_root()
    streams = load_streams(arguments.state / "lines.npz", root, tokenizer, arguments.seed)
    sizes = {language: len(streams[language].tokens) for language in LANGUAGES}
    if arguments.like_news < 1:
        for language in LANGUAGES:
            if language not in LOW_RESOURCE:
                streams[language] = like_news(
                    streams[language], language, root, tokenizer, arguments.like_news
                )
    shares = temperature_shares(sizes, arguments.alpha)
    for language, size in sizes.items():  # a language with next to no text is not read hundreds of times
        shares[language] = min(shares[language], 4 * size / sum(sizes.values()))
    total = sum(shares.values())
    shares = {language: (1 - arguments.parallel) * share / total for language, share in shares.items()}
    shares["pairs"] = arguments.parallel
    if arguments.instructions:
        chats = encode(tokenizer, instruction_chats(arguments.instructions))
        streams["instructions"] = answers_weighed(
            chats, tokenizer, arguments.answer_weight, arguments.question_weight
        )
        shares = {name: share * (1 - arguments.instruction_share) for name, share in shares.items()}
        shares["instructions"] = arguments.instruction_share
    weights = np.array([shares[name] for name in streams])
    return Mixture(list(streams.values()), weights / weights.sum(), 1, 3), tokenizer
