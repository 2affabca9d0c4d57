"""A run's held-out records: the base's answers before training, the adapter's after it, and both compared."""

from collections.abc import Generator, Iterator

from mlx_hybrid.adapters.attach import settle
from mlx_hybrid.config import Config
from mlx_hybrid.evaluation.answers import collect
from mlx_hybrid.evaluation.benchmarks.questions import retention_set
from mlx_hybrid.evaluation.evaluate import evaluate, held_out_sets, parts_of
from mlx_hybrid.evaluation.metrics.translation import greedy
from mlx_hybrid.evaluation.results import write_results
from mlx_hybrid.evaluation.sets import EvaluationSet, limited
from mlx_hybrid.files import write_lines
from mlx_hybrid.jobs.events import AdapterReady, Answered, Evaluated, JobEvent
from mlx_hybrid.models.adapted import Pair, load_run
from mlx_hybrid.models.base import load_base
from mlx_hybrid.records.record import Record
from mlx_hybrid.records.split import Split
from mlx_hybrid.records.template import question_tokens
from mlx_hybrid.run import SAMPLES, Run
from mlx_hybrid.training.events import Note
from mlx_hybrid.training.setup import Setup

TEXTS = 2  # of each language, by which a run measures what it forgot; `evaluate` takes all
GENERAL = (
    "What is the capital of France?",
    "Write a Python function that adds two numbers.",
    "I have 12 apples and give away 5. How many are left?",
)
ANSWERS = "evaluation/answers/held-out"  # in the run's folder: the answers to its held-out records
HELD_OUT, LONGEST = 3, 48  # records that are answered, and tokens of an answer


def ask_base(
    config: Config, run: Run, split: Split, setup: Setup
) -> Generator[Note, None, dict[str, EvaluationSet]]:
    """Keep the base's answers to the held-out records in the run; the sets asked, none where nothing is measured."""
    if not config.evaluate or not setup.test:
        return {}
    split = split.without({where for where, _ in setup.aside})
    test, trained, why = held_out_sets(
        split.test,
        split.train,
        group=config.data.group,
        max_tokens=config.train.max_tokens,
        measured={example.where for example in setup.test},
    )
    if why:
        yield Note(why)
    yield Note(f"Scoring the base on {len(setup.test)} held-out records.")
    kept = limited(retention_set("auto"), TEXTS, config.seed)
    parts = parts_of(test, trained=trained, retention=kept, seed=config.seed)
    path, identity = run.path / ANSWERS / "base.answers.jsonl", setup.base.identity["fingerprint"]
    collect(setup.base.model, setup.base.tokenizer, parts, path, name="base", identity=identity)
    return parts


def finish(config: Config, run: Run, setup: Setup, held_out: dict[str, EvaluationSet]) -> Iterator[JobEvent]:
    """Load the best adapter onto a fresh base, as a user will, and measure it."""
    tokenizer, fingerprint = setup.base.tokenizer, setup.base.identity["fingerprint"]
    setup.base = setup.optimizer = None
    loaded = load_run(run, base_name=config.model.name, tokenizer=tokenizer)
    run.log("the best adapter is on a fresh base")
    yield AdapterReady(loaded.modules, loaded.change)
    if held_out:
        yield Note(f"Scoring the adapter on {len(setup.test)} held-out records.")
        (run.path / ANSWERS / "adapted.answers.jsonl").unlink(
            missing_ok=True
        )  # of a call that was killed here
        results = evaluate(
            {"base": lambda: load_base(config.model.name).model, "adapted": settle(loaded.model)},
            tokenizer,
            held_out["test"],
            trained=held_out.get("trained"),
            retention=held_out["retention"],
            seed=config.seed,
            directory=run.path / ANSWERS,
            identities={"base": fingerprint},
        )
        write_results(run.path / "evaluation" / "held-out.json", results)
        yield Evaluated(results)
    if config.evaluate:
        yield Answered(ask_both(config, run, loaded, held_out["test"].records if held_out else []))
    run.update(status="finished")
    run.log("finished")
    write_pages(run)


def ask_both(config: Config, run: Run, loaded: Pair, held_out: list[Record]) -> list[dict]:
    """What base and adapter answer to prompts of held-out records, and to general ones or a user's own. One row a
    prompt: `kind`, `prompt`, the answers of `base` and `adapted`; kept in the run's samples.jsonl."""
    wanted = {record.language: record for record in reversed(held_out) if record.kind != "text"}
    asked = [("held out", record) for record in list(wanted.values())[:HELD_OUT]]
    kind = "yours" if config.report.prompts else "general"
    told = ({"prompt": text, "completion": "?"} for text in config.report.prompts or GENERAL)
    asked += [(kind, Record(row, "prompt", 0)) for row in told]
    tokens = [question_tokens(record, loaded.tokenizer) for _, record in asked]
    generate, adapted = greedy(loaded.tokenizer, LONGEST), settle(loaded.model)
    answers = [generate(model, tokens) for model in (loaded.base, adapted)]
    rows = [
        {"kind": kind, "prompt": record.turns()[-2]["content"], "base": before, "adapted": after}
        for (kind, record), before, after in zip(asked, *answers, strict=True)
    ]
    write_lines(run.path / SAMPLES, rows)
    return rows


def write_pages(run: Run) -> None:
    """The page to read and the draft of a model card, from what the run wrote down."""
    from mlx_hybrid.publish.card import write_card
    from mlx_hybrid.report.run_page import write_run_page

    write_run_page(run)
    write_card(run)
