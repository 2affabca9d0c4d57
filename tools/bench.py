"""What the benchmarks share: one BLAS thread, small Llamas, turns, and rows of Markdown tables; imported before mlx."""

import multiprocessing
import os
import shutil
import statistics
import time
from collections.abc import Callable
from pathlib import Path

os.environ |= {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}

from mlx_hybrid.models.blas import prefer_openblas

OPENBLAS = prefer_openblas()  # before anything imports mlx

import numpy as np  # noqa: E402

from mlx_hybrid.records.examples import Example  # noqa: E402
from mlx_hybrid.training.batches import Batch, make_batch  # noqa: E402

RANK = 16
Step = Callable[[], None]


def apart(function: Callable, *arguments: object) -> object:
    """Call in a process of its own, with OpenBLAS where there is one."""
    with multiprocessing.get_context("spawn").Pool(1, initializer=prefer_openblas) as pool:
        return pool.apply(function, arguments)


def llama_config(hidden: int, layers: int, vocabulary: int, **sizes: object) -> dict:
    """Of heads of 64 unless told otherwise."""
    heads = {"num_attention_heads": hidden // 64, "num_key_value_heads": hidden // 64}
    config = {"model_type": "llama", "hidden_size": hidden, "intermediate_size": hidden * 11 // 4, **heads}
    config |= {"num_hidden_layers": layers, "vocab_size": vocabulary, "rms_norm_eps": 1e-5, "eos_token_id": 2}
    return config | {"tie_word_embeddings": True, "max_position_embeddings": 2048} | sizes


def add_tokenizer(folder: Path) -> None:
    """The bundled tokenizer's files, so that the folder is whole."""
    from mlx_hybrid.models.base import BUNDLED_FOLDER

    for path in BUNDLED_FOLDER.glob("tokenizer*"):
        shutil.copy(path, folder)


def random_rows(vocabulary: int, tokens: int, longest: int) -> np.ndarray:
    """So many random tokens (rows, length + 1), in rows of `longest` predicted ones at most."""
    rows, length = max(1, tokens // longest), min(tokens, longest)
    return np.random.default_rng(0).integers(0, vocabulary, (rows, length + 1))


def trained_batch(rows: np.ndarray) -> Batch:
    """A batch of which every token is trained."""
    return make_batch([Example(row, [True] * len(row), "", "", len(row)) for row in rows.tolist()])


def seconds(step: Step) -> float:
    """Processor time, so that other work on the machine counts little."""
    begun = time.process_time()
    step()
    return time.process_time() - begun


def take_turns(steps: dict[str, Step], repeats: int, *, warm: int = 2) -> dict[str, list[float]]:
    """Seconds of each step in each repeat; the order turns by one each time."""
    names, times = list(steps), {name: list[float]() for name in steps}
    for step in list(steps.values()) * warm:
        step()
    for repeat in range(repeats):
        turn = repeat % len(names)
        for name in names[turn:] + names[:turn]:
            times[name].append(seconds(steps[name]))
    return times


def ratios(found: list[float], reference: list[float]) -> tuple[str, str]:
    """Median and quartiles of the ratios within each repeat."""
    turns = [a / b for a, b in zip(found, reference, strict=True)]
    low, middle, high = statistics.quantiles(turns if turns[1:] else turns * 2, n=4)
    return f"{middle:.2f}", f"{low:.2f}–{high:.2f}"


def row(*cells: object) -> None:
    print("| " + " | ".join(str(cell) for cell in cells) + " |", flush=True)


def head(*cells: object) -> None:
    row(*cells)
    print("|---" * len(cells) + "|")
