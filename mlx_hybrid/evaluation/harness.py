"""Tasks of EleutherAI's lm-evaluation-harness on an MLX model, through its Python API."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mlx_hybrid.errors import ConfigError, MlxHybridError
from mlx_hybrid.evaluation.answers import likelihoods
from mlx_hybrid.evaluation.results import ALL, Row

NO_METRICS = ("alias", "name", "version", "sample_len")
ENDLESS = 1 << 20


def find_tasks(names: Sequence[str], folder: Path | None = None) -> Any:
    """lm-eval's task manager, which knows all of `names`; `folder` holds YAML tasks of one's own."""
    try:
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        way = "run `pip install 'mlx-hybrid[lm-eval]'`"
        raise ConfigError(f"--lm-eval needs lm-evaluation-harness ({error}); {way}.") from None
    # one's own first: the harness's 14,000 take seconds
    for defaults in (False, True) if folder else (True,):
        manager = TaskManager(include_path=str(folder) if folder else None, include_defaults=defaults)
        if not (missing := [name for name in names if name not in manager.all_tasks]):
            return manager
    raise ConfigError(f"lm-eval has no task {', '.join(missing)}; `lm-eval ls tasks` lists them.")


def evaluate_tasks(lm: Any, names: Sequence[str], manager: Any, limit: int, seed: int, samples: bool) -> dict:
    """What `lm_eval.simple_evaluate` returns. Raises MlxHybridError for whatever fails inside the harness."""
    import lm_eval

    seeds = ("random_seed", "numpy_random_seed", "torch_random_seed", "fewshot_random_seed")
    how = {"limit": limit or None, "log_samples": samples, "bootstrap_iters": 1000, "verbosity": "ERROR"}
    how |= dict.fromkeys(seeds, seed)
    try:
        return lm_eval.simple_evaluate(lm, tasks=list(names), task_manager=manager, **how)
    except MlxHybridError:
        raise
    except Exception as error:  # the harness, its data sets and templates each have errors of their own
        told = str(error).strip().partition("\n")[0] or type(error).__name__
        raise MlxHybridError(f"lm-eval could not run {', '.join(names)}: {told}") from error


def harness_model(model: Any, tokenizer: Any, context: int = ENDLESS) -> Any:
    """The model as the harness's `TemplateLM`, which does the tokenising around contexts."""
    from lm_eval.api.model import TemplateLM

    class Bridge(TemplateLM):
        eot_token_id = tokenizer.eos_token_id
        prefix_token_id = eot_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id

        def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
            """A context begins as the tokenizer begins texts, unless the task's words have that already."""
            tokens = list(tokenizer.encode(string, add_special_tokens=False))
            return tokenizer.checked(tokens if add_special_tokens is False else tokenizer.begun(tokens))

        def _loglikelihood_tokens(self, requests: Sequence, **_: Any) -> list[tuple[float, bool]]:
            return continuations(model, [(before, after) for _, before, after in requests], context)

        def loglikelihood_rolling(self, requests: Sequence, **_: Any) -> list[float]:
            tokens = [tokenizer.continued(request.args[0]) for request in requests]
            if not tokenizer.begun([]):
                # lm-eval's own Hugging Face model predicts the first token too, after BOS or EOS; `evaluate` does not
                tokens = [[self.prefix_token_id, *own] for own in tokens]
            refuse_longer(map(len, tokens), context)
            return [-nats for nats, _, _ in likelihoods(model, tokens)]

        def generate_until(self, requests: Sequence, **_: Any) -> list[str]:
            asked = [request.args for request in requests]
            return [generate(model, tokenizer, self.tok_encode(text), how, context) for text, how in asked]

    return Bridge()


def refuse_longer(lengths: Iterable[int], context: int) -> None:
    if (longest := max(lengths, default=0)) > context:
        raise MlxHybridError(f"A request of {longest} tokens is longer than the model's context, {context}.")


def continuations(
    model: Any, requests: Sequence[tuple[list[int], list[int]]], context: int = ENDLESS
) -> list[tuple[float, bool]]:
    """Σ log p of each continuation after its context in nats, and whether it is what greedy decoding gives; contexts
    longer than the model takes lose their beginning, as in the harness's own models."""
    refuse_longer((1 + len(after) for _, after in requests), context)
    if not all(after for _, after in requests):
        raise MlxHybridError("A continuation has no token of its own: it merges with its context.")
    tokens = [(before + after)[-context:] for before, after in requests]
    masks = [[0] * (len(own) - len(after)) + [1] * len(after) for own, (_, after) in zip(tokens, requests)]
    return [(-nats, not others) for nats, _, others in likelihoods(model, tokens, masks)]


def generate(model: Any, tokenizer: Any, prompt: list[int], settings: dict, context: int) -> str:
    """Greedy text until a stop string, the end of the turn, or `max_gen_toks`."""
    from mlx_lm import stream_generate

    if settings.get("do_sample") or float(settings.get("temperature") or 0) > 0:
        raise ConfigError("This task asks for sampled text; only greedy generation is offered here.")
    stops = settings.get("until") or []
    stops = [stops] if isinstance(stops, str) else [stop for stop in stops if stop]
    most, text = int(settings.get("max_gen_toks", 256)), ""
    for piece in stream_generate(model, tokenizer, prompt[-max(1, context - most) :], max_tokens=most):
        text += piece.text
        if any(stop in text for stop in stops):
            break
    return min((text.partition(stop)[0] for stop in stops), key=len, default=text)


def task_results(whole: dict) -> list[Row]:
    """The metrics of every task, each with the interval of its standard error and the examples it is of."""
    rows = []
    for task, own in whole["results"].items():
        n = whole.get("n-samples", {}).get(task, {}).get("effective", 0)
        for key, value in own.items():
            metric, _, kind = key.partition(",")
            if metric.endswith("_stderr") or key in NO_METRICS or not isinstance(value, int | float):
                continue
            row = Row(f"{task} {metric}", ALL, "" if kind == "none" else kind, float(value), n=n)
            error = own.get(f"{metric}_stderr,{kind}")
            if isinstance(error, float):
                row = replace(row, low=value - 1.96 * error, high=value + 1.96 * error)
            rows.append(row)
    return rows


def sample_rows(whole: dict) -> list[dict]:
    """One row an example and filter: the record, what was wanted, what the model answered, and its metrics."""
    keys = ("doc_id", "doc", "target", "filter", "filtered_resps")
    names = ("id", "record", "target", "filter", "answers")
    return [
        {"task": task} | dict(zip(names, map(row.get, keys))) | {name: row[name] for name in row["metrics"]}
        for task, rows in whole["samples"].items()
        for row in rows
    ]
