"""What base and adapter answer to a few prompts, side by side: of held-out records, general ones, and a user's own."""

from mlx_hybrid.adapters.attach import settle
from mlx_hybrid.config import Config
from mlx_hybrid.evaluation.metrics.translation import greedy
from mlx_hybrid.files import write_lines
from mlx_hybrid.models.adapted import Pair
from mlx_hybrid.records.record import Record
from mlx_hybrid.records.template import question_tokens
from mlx_hybrid.run import SAMPLES, Run

GENERAL = (
    "What is the capital of France?",
    "Write a Python function that adds two numbers.",
    "I have 12 apples and give away 5. How many are left?",
)
HELD_OUT, LONGEST = 3, 48  # records, and tokens of an answer


def ask_both(config: Config, run: Run, loaded: Pair, held_out: list[Record]) -> list[dict]:
    """One row a prompt: `kind`, `prompt`, the answers of `base` and `adapted`; kept in the run's samples.jsonl."""
    wanted = {record.language: record for record in reversed(held_out) if record.kind != "text"}
    asked = [("held out", record) for record in list(wanted.values())[:HELD_OUT]]
    prompts = config.report.prompts or GENERAL
    told = ({"prompt": text, "completion": "?"} for text in prompts)
    asked += [("yours" if config.report.prompts else "general", Record(row, "prompt", 0)) for row in told]
    tokens = [question_tokens(record, loaded.tokenizer) for _, record in asked]
    generate = greedy(loaded.tokenizer, LONGEST)
    adapted = settle(loaded.model)
    answers = [generate(model, tokens) for model in (loaded.base(), adapted)]
    rows = [
        {"kind": kind, "prompt": record.turns()[-2]["content"], "base": before, "adapted": after}
        for (kind, record), before, after in zip(asked, *answers, strict=True)
    ]
    write_lines(run.path / SAMPLES, rows)
    return rows
