r"""Pretrain the bundled base: a small multilingual causal language model in Qwen3 or Llama shape.

    python tools/base/make_instructions.py -o instructions.jsonl
    python tools/base/pretrain_base.py train --instructions instructions.jsonl              # until stopped; resumes
    python tools/base/pretrain_base.py anneal --instructions instructions.jsonl --instruction-share 0.35 \
        --parallel 0.15 --minutes 22 -o annealed                                       # decay, then a HF folder
    python tools/base/build_base.py annealed --tokenizer mlx_hybrid/base -o mlx_hybrid/base  # quantise

`train` holds the learning rate constant, so it may be stopped and resumed for as long as there is time;
where the state is gone, `--begin FOLDER` goes on from released weights (`mlx_lm.convert -d` makes them floats).
`anneal` branches off the newest state, decays the rate to zero on a mix with more translation and instruction
text, and writes the model. Matrices are trained by Muon, the rest by AdamW. Runs on CPU (bf16 autocast) and CUDA.
On a CPU two processes of one thread read a quarter more than one of two threads; the gradients are averaged:

    OMP_NUM_THREADS=1 torchrun --nproc-per-node 2 tools/base/pretrain_base.py train ...
"""

import argparse
import json
import os
import time
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from pretrain_data import Mixture, load_mixture
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen3Config

SHAPES = {"qwen3": Qwen3Config, "llama": LlamaConfig}
HEAD = 64
STATE = Path.home() / ".cache" / "mlx-hybrid" / "base-training"


def build_model(arguments: argparse.Namespace, vocabulary: int) -> torch.nn.Module:
    config = SHAPES[arguments.shape](
        vocab_size=vocabulary,
        hidden_size=arguments.hidden,
        intermediate_size=arguments.intermediate,
        num_hidden_layers=arguments.layers,
        num_attention_heads=arguments.hidden // HEAD,
        num_key_value_heads=max(1, arguments.hidden // HEAD // 2),
        head_dim=HEAD,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=3,
        initializer_range=0.02,
    )
    # Attention written out compiles to less time than the fused kernel on a CPU: 1.03 s against 1.15 s a step.
    return AutoModelForCausalLM.from_config(config, attn_implementation=arguments.attention)


def make_optimizers(model: torch.nn.Module, arguments: argparse.Namespace) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the body, AdamW for the embedding and the norms."""
    body = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    rest = [p for n, p in model.named_parameters() if p.ndim != 2 or "embed" in n]
    adamw = torch.optim.AdamW(
        [{"params": rest, "weight_decay": 0.0}], lr=arguments.adam_lr, betas=(0.9, 0.95), fused=True
    )
    if arguments.optimizer == "adamw":
        adamw.add_param_group({"params": body, "weight_decay": 0.1, "lr": arguments.lr})
        return [adamw]
    muon = torch.optim.Muon(
        body, lr=arguments.lr, weight_decay=0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw"
    )
    return [adamw, muon]


def loss_sum(model: torch.nn.Module, tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    hidden = model.model(input_ids=tokens[:, :-1], use_cache=False).last_hidden_state
    logits = model.lm_head(hidden).flatten(0, 1)
    loss = torch.nn.functional.cross_entropy(logits, tokens[:, 1:].flatten(), reduction="none")
    return (loss * mask[:, 1:].flatten()).sum() / mask[:, 1:].sum()


def begin_ranks() -> tuple[int, int]:
    """(rank, ranks): those of torchrun, else (0, 1)."""
    if "RANK" not in os.environ:
        return 0, 1
    dist.init_process_group("gloo")
    return dist.get_rank(), dist.get_world_size()


def of_first_rank(value: float) -> float:
    """The value that rank 0 holds: ranks decide alike by its clock."""
    if not dist.is_initialized():
        return value
    shared = torch.tensor([value], dtype=torch.float64)
    dist.broadcast(shared, 0)
    return float(shared)


def average_gradients(parameters: list[torch.nn.Parameter], ranks: int) -> None:
    if ranks == 1:
        return
    flat = torch.cat([p.grad.flatten() for p in parameters])
    dist.all_reduce(flat)
    for parameter, piece in zip(parameters, flat.div_(ranks).split([p.numel() for p in parameters])):
        parameter.grad.copy_(piece.view_as(parameter))


class Trainer:
    """The model, its optimisers, where the data stands, and how to save and load all three."""

    def __init__(self, arguments: argparse.Namespace, mixture: Mixture, vocabulary: int):
        self.arguments, self.mixture = arguments, mixture
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.rank, self.ranks = begin_ranks()
        torch.manual_seed(arguments.seed)
        self.model = self.begin_model(vocabulary).to(self.device)
        self.optimizers = make_optimizers(self.model, arguments)
        self.peaks = [[g["lr"] for g in o.param_groups] for o in self.optimizers]
        self.step_loss = torch.compile(loss_sum) if arguments.compile else loss_sum
        self.step, self.tokens, self.seconds = 0, 0, 0.0

    def begin_model(self, vocabulary: int) -> torch.nn.Module:
        """Random weights of the shape asked for, or with `--begin` those of a Hugging Face folder."""
        arguments = self.arguments
        if arguments.begin is None:
            return build_model(arguments, vocabulary)
        return AutoModelForCausalLM.from_pretrained(
            arguments.begin, dtype=torch.float32, attn_implementation=arguments.attention
        )

    def set_rate(self, factor: float) -> None:
        for optimizer, peaks in zip(self.optimizers, self.peaks, strict=True):
            for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                group["lr"] = peak * factor

    def train_step(self, factor: float) -> float:
        started = time.monotonic()
        arguments = self.arguments
        rng = np.random.default_rng((arguments.seed, self.step, self.rank))
        self.set_rate(factor * min(1.0, (self.step + 1) / arguments.warmup))
        total = 0.0
        for _ in range(arguments.accumulate):
            tokens, mask = self.mixture.batch(rng, arguments.batch, arguments.length)
            tokens = torch.from_numpy(tokens).to(self.device)
            mask = torch.from_numpy(mask).to(self.device)
            with torch.autocast(self.device, dtype=torch.bfloat16):
                loss = self.step_loss(self.model, tokens, mask) / arguments.accumulate
            loss.backward()
            total += float(loss.detach())
            self.tokens += tokens.numel() * self.ranks
        average_gradients(list(self.model.parameters()), self.ranks)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        self.step += 1
        self.seconds += time.monotonic() - started
        return total

    def save(self, path: Path) -> None:
        state = {
            "model": self.model.state_dict(),
            "optimizers": [o.state_dict() for o in self.optimizers],
            "step": self.step, "tokens": self.tokens, "seconds": self.seconds,
        }  # fmt: skip
        temporary = path.with_suffix(".tmp")
        torch.save(state, temporary)
        os.replace(temporary, path)

    def load(self, path: Path) -> None:
        state = torch.load(path, map_location=self.device, weights_only=True)
        self.model.load_state_dict(state["model"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.step, self.tokens, self.seconds = state["step"], state["tokens"], state["seconds"]


def log(path: Path, trainer: Trainer, loss: float, phase: str) -> None:
    row = {
        "phase": phase, "step": trainer.step, "tokens": trainer.tokens, "loss": round(loss, 4),
        "seconds": round(trainer.seconds), "tokens_per_second": round(trainer.tokens / trainer.seconds),
    }  # fmt: skip
    with path.open("a") as file:
        file.write(json.dumps(row) + "\n")
    print(row, flush=True)


def run(trainer: Trainer, arguments: argparse.Namespace, phase: str) -> None:
    """Train until the time or the tokens are used up; constant rate, or linear decay when annealing."""
    deadline = time.monotonic() + 60 * arguments.minutes
    begun, saved, losses = time.monotonic(), time.monotonic(), []
    while (left := of_first_rank(deadline - time.monotonic())) > 0 and trainer.tokens < arguments.max_tokens:
        while arguments.pause_file and Path(arguments.pause_file).exists():
            time.sleep(2)  # benchmarks run alone
            deadline += 2
        factor = 1.0
        if phase == "anneal":
            factor = min(1.0, left / (60 * arguments.minutes))
        losses.append(trainer.train_step(factor))
        if trainer.rank:
            continue
        if trainer.step % 50 == 0:
            log(arguments.state / "log.jsonl", trainer, float(np.mean(losses[-50:])), phase)
        if phase == "train" and time.monotonic() - saved > 60 * arguments.save_minutes:
            trainer.save(arguments.state / "state.pt")
            saved = time.monotonic()
    if not trainer.rank:
        print(f"{phase}: {trainer.tokens:,} tokens, {time.monotonic() - begun:.0f} s", flush=True)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("phase", choices=["train", "anneal"])
    parser.add_argument("--state", type=Path, default=STATE, help=f"folder of the resumable state  [{STATE}]")
    parser.add_argument("--tokenizer", type=Path, default=Path("mlx_hybrid/base"))
    parser.add_argument("--begin", type=Path, help="float weights to go on from where no state is kept")
    parser.add_argument("-o", "--output", type=Path, help="folder for the annealed model")
    parser.add_argument(
        "--instructions", type=Path, nargs="*", default=[], help="chat JSONL mixed into the anneal"
    )
    parser.add_argument("--instruction-share", type=float, default=0.1)
    parser.add_argument("--answer-weight", type=float, default=12, help="least tokens an answer weighs as")
    parser.add_argument("--question-weight", type=float, default=1, help="of a token outside the answers")
    parser.add_argument("--minutes", type=float, default=1e9)
    parser.add_argument("--max-tokens", type=float, default=1e18)
    parser.add_argument("--save-minutes", type=float, default=5)
    parser.add_argument("--pause-file", help="training waits while this file exists")
    parser.add_argument("--shape", choices=SHAPES, default="qwen3")
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--intermediate", type=int, default=768)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--attention", choices=["eager", "sdpa"], default="eager")
    parser.add_argument("--optimizer", choices=["muon", "adamw"], default="muon")
    parser.add_argument("--lr", type=float, default=4e-3)
    parser.add_argument("--adam-lr", type=float, default=4e-3)
    parser.add_argument("--warmup", type=int, default=100)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--accumulate", type=int, default=1)
    parser.add_argument("--alpha", type=float, default=0.5, help="temperature of language sampling")
    parser.add_argument("--parallel", type=float, default=0.1, help="share of translation pairs")
    parser.add_argument("--like-news", type=float, default=1, help="share of each language's text to read")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True)
    return parser.parse_args()


def main() -> None:
    arguments = parse()
    arguments.state.mkdir(parents=True, exist_ok=True)
    mixture, tokenizer = load_mixture(arguments)
    trainer = Trainer(arguments, mixture, tokenizer.vocab_size)
    newest = arguments.state / "state.pt"
    if newest.exists():
        trainer.load(newest)
    run(trainer, arguments, arguments.phase)
    if trainer.rank:
        return
    if arguments.phase == "train":
        trainer.save(newest)
    else:
        trainer.model.to(torch.float32).save_pretrained(arguments.output)
        tokenizer.save_pretrained(arguments.output)


if __name__ == "__main__":
    main()
