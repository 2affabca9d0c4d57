"""Full fine-tuning and scoring of a small model in PyTorch: three times as fast on a CPU as float32, by bf16 autocast.

Used by tools/base/measure_base.py, where whole models are tuned many times over.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM

PAD = 3
WARMUP = 0.05


@dataclass(frozen=True)
class Row:
    """Token ids, and the index of the first one that is learnt or scored."""

    tokens: list[int]
    first: int


def load(folder: Path, *, random_weights: bool, seed: int) -> torch.nn.Module:
    """The model of a Hugging Face folder in float32, or the same net from random weights."""
    torch.manual_seed(seed)
    if random_weights:
        config = AutoConfig.from_pretrained(folder)
        return AutoModelForCausalLM.from_config(config).float()
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def autocast() -> torch.autocast:
    return torch.autocast("cuda" if torch.cuda.is_available() else "cpu", dtype=torch.bfloat16)


def collate(rows: Sequence[Row]) -> tuple[torch.Tensor, torch.Tensor]:
    """(rows, longest) ids padded on the right, and 1 at the targets that count."""
    width = max(len(row.tokens) for row in rows)
    tokens = torch.full((len(rows), width), PAD)
    counted = torch.zeros((len(rows), width))
    for number, row in enumerate(rows):
        tokens[number, : len(row.tokens)] = torch.tensor(row.tokens)
        counted[number, max(1, row.first) : len(row.tokens)] = 1
    return tokens, counted


def token_losses(model: torch.nn.Module, rows: Sequence[Row]) -> tuple[torch.Tensor, torch.Tensor]:
    """−log p of every counted token, end to end, and the row each belongs to."""
    tokens, counted = collate(rows)
    hidden = model.model(input_ids=tokens[:, :-1], use_cache=False).last_hidden_state
    places = counted[:, 1:].bool()
    logits = model.lm_head(hidden[places]).float()
    losses = torch.nn.functional.cross_entropy(logits, tokens[:, 1:][places], reduction="none")
    return losses, places.nonzero()[:, 0]


def batches(rows: Sequence[Row], size: int, rng: np.random.Generator) -> Iterator[list[Row]]:
    """All rows once, those of like length together, the batches in random order."""
    order = sorted(rng.permutation(len(rows)), key=lambda i: len(rows[i].tokens))
    groups = [order[i : i + size] for i in range(0, len(order), size)]
    for number in rng.permutation(len(groups)):
        yield [rows[i] for i in groups[number]]


def tune(
    model: torch.nn.Module, rows: Sequence[Row], *, rate: float, epochs: int, seed: int, size: int = 16
) -> None:
    """AdamW over all weights, warm-up and cosine, clipped at 1."""
    rng = np.random.default_rng(seed)
    steps = epochs * -(-len(rows) // size)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=rate, betas=(0.9, 0.95), weight_decay=0.01, fused=True
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps + 1, pct_start=WARMUP)
    model.train()
    for _ in range(epochs):
        for batch in batches(rows, size, rng):
            with autocast():
                loss = token_losses(model, batch)[0].mean()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
    model.eval()


@torch.no_grad()
def option_nats(
    model: torch.nn.Module, prompts: Sequence[list[int]], options: Sequence[list[list[int]]], size: int = 64
) -> list[np.ndarray]:
    """Summed −log p of each prompt's options; prompts of one length are read together, and each only once."""
    result: list[np.ndarray] = [np.zeros(0)] * len(prompts)
    lengths: dict[int, list[int]] = {}
    for number, prompt in enumerate(prompts):
        lengths.setdefault(len(prompt), []).append(number)
    for alike in lengths.values():
        for begin in range(0, len(alike), size):
            picked = alike[begin : begin + size]
            losses = read_options(model, [prompts[n] for n in picked], [options[n] for n in picked])
            for number, value in zip(picked, losses, strict=True):
                result[number] = value
    return result


def read_options(
    model: torch.nn.Module, prompts: list[list[int]], options: list[list[list[int]]]
) -> list[np.ndarray]:
    """As `option_nats`, of prompts of one length that have as many options each."""
    many = len(options[0])
    tokens, counted = collate([Row(option, 0) for each in options for option in each])
    counted[:, 0] = 1
    with autocast():
        read = model(input_ids=torch.tensor(prompts), use_cache=True, logits_to_keep=1)
        first = read.logits[:, -1].repeat_interleave(many, 0)
        read.past_key_values.batch_repeat_interleave(many)
        after = (
            model(input_ids=tokens[:, :-1], past_key_values=read.past_key_values).logits
            if tokens.shape[1] > 1
            else None
        )
    logits = first[:, None] if after is None else torch.cat([first[:, None], after], 1)
    losses = torch.nn.functional.cross_entropy(logits.float().transpose(1, 2), tokens, reduction="none")
    return list((losses * counted).sum(1).reshape(len(prompts), many).numpy())


@torch.no_grad()
def nats(model: torch.nn.Module, rows: Sequence[Row], size: int = 64) -> np.ndarray:
    """Summed −log p of each row's counted tokens, in the order of the rows."""
    result = np.zeros(len(rows))
    order = sorted(range(len(rows)), key=lambda i: len(rows[i].tokens))
    for begin in range(0, len(order), size):
        picked = order[begin : begin + size]
        with autocast():
            losses, owners = token_losses(model, [rows[i] for i in picked])
        summed = torch.zeros(len(picked)).index_add_(0, owners, losses)
        result[picked] = summed.numpy()
    return result
