"""Tasks of EleutherAI's lm-evaluation-harness on an MLX model, through its Python API.

A bridge of our own and not `mlx_lm.evaluate.MLXLM`: that one gives −inf to an empty context without a beginning-of-text
token, leaves the first token of a text out of its likelihood, and scores the wrong tokens where a continuation merges
with its context. https://github.com/EleutherAI/lm-evaluation-harness
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mlx_hybrid.errors import ConfigError, MlxHybridError
from mlx_hybrid.evaluation.forward import Forward, batches_by_length, pad_right
from mlx_hybrid.evaluation.results import ALL, Row
from mlx_hybrid.evaluation.scoring import sequence_nll
from mlx_hybrid.models.head import evaluating

BATCH_TOKENS = 8192
NO_METRICS = ("alias", "name", "version", "sample_len")


def find_tasks(names: Sequence[str], folder: Path | None = None) -> Any:
    """lm-eval's task manager, which knows all of `names`; `folder` holds YAML tasks of one's own.

    Raises ConfigError where lm-eval is not installed or has no such task.
    """
    try:
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise ConfigError(
            f"--lm-eval needs lm-evaluation-harness ({error}); run `pip install 'mlx-hybrid[lm-eval]'`."
        ) from None
    place = str(folder) if folder else None
    if place:
        alone = TaskManager(include_path=place, include_defaults=False)
        if set(names) <= set(alone.all_subtasks):  # no need to read the harness's own 14,000 first
            return alone
    manager = TaskManager(include_path=place)
    if missing := [name for name in names if name not in manager.all_tasks]:
        raise ConfigError(f"lm-eval has no task {', '.join(missing)}; `lm-eval ls tasks` lists them.")
    return manager


def evaluate_tasks(
    model: Any,
    tokenizer: Any,
    names: Sequence[str],
    manager: Any,
    *,
    limit: int = 0,
    seed: int = 0,
    context: int = 1 << 20,
    samples: bool = False,
) -> dict:
    """What `lm_eval.simple_evaluate` returns. Raises MlxHybridError for whatever fails inside the harness."""
    import lm_eval

    seeds = ("random_seed", "numpy_random_seed", "torch_random_seed", "fewshot_random_seed")
    try:
        return lm_eval.simple_evaluate(
            harness_model(model, tokenizer, context),
            tasks=list(names),
            task_manager=manager,
            limit=limit or None,
            bootstrap_iters=1000,
            log_samples=samples,
            verbosity="ERROR",
            **dict.fromkeys(seeds, seed),
        )
    except MlxHybridError:
        raise
    except Exception as error:  # the harness, its data sets and templates each have errors of their own
        told = str(error).strip().partition("\n")[0] or type(error).__name__
        raise MlxHybridError(f"lm-eval could not run {', '.join(names)}: {told}") from error


def harness_model(model: Any, tokenizer: Any, context: int = 1 << 20) -> Any:
    """The model as the harness's `TemplateLM`, which does the tokenising around contexts."""
    from lm_eval.api.model import TemplateLM

    class Bridge(TemplateLM):
        eot_token_id = tokenizer.eos_token_id
        prefix_token_id = eot_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
        tokenizer_name = str(getattr(tokenizer, "name_or_path", ""))

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
            refuse_longer(tokens, context)
            return [-float(value) for value in sequence_nll(model, tokens)[0]]

        def generate_until(self, requests: Sequence, **_: Any) -> list[str]:
            return [
                generate(model, tokenizer, self.tok_encode(request.args[0]), request.args[1], context)
                for request in requests
            ]

        def apply_chat_template(self, chat_history: list, add_generation_prompt: bool = True) -> str:
            how = {"tokenize": False, "add_generation_prompt": add_generation_prompt}
            return tokenizer.apply_chat_template(chat_history, **how)

    return Bridge()


def refuse_longer(tokens: Sequence[Sequence[int]], context: int) -> None:
    longest = max((len(own) for own in tokens), default=0)
    if longest > context:
        raise MlxHybridError(f"A request of {longest} tokens is longer than the model's context, {context}.")


def continuations(
    model: Any, requests: Sequence[tuple[list[int], list[int]]], context: int = 1 << 20
) -> list[tuple[float, bool]]:
    """Σ log p of each continuation after its context in nats, and whether it is what greedy decoding gives.

    Contexts longer than the model takes lose their beginning, as in the harness's own models. Raises MlxHybridError
    for a continuation that has no token of its own, as where it merges with its context.
    """
    import mlx.core as mx

    refuse_longer([[0, *after] for _, after in requests], context)
    if not all(after for _, after in requests):
        raise MlxHybridError("A continuation has no token of its own: it merges with its context.")
    pairs = [((before + after)[-context:], len(after)) for before, after in requests]
    results: list[tuple[float, bool]] = [(0.0, False)] * len(pairs)
    with evaluating(model):
        forward = Forward(model)
        most = min(BATCH_TOKENS, forward.most_tokens)
        for batch in batches_by_length([len(tokens) for tokens, _ in pairs], most) if pairs else ():
            tokens = pad_right([pairs[i][0] for i in batch])
            hidden = forward.body(mx.array(tokens[:, :-1]))
            for row, i in enumerate(batch):
                length, count = len(pairs[i][0]), pairs[i][1]
                own = hidden[row, length - 1 - count : length - 1]
                logits = forward.head(own[None])[0].astype(mx.float32)
                wanted = mx.array(tokens[row, length - count : length])
                log_p = mx.take_along_axis(logits, wanted[:, None], 1)[:, 0] - mx.logsumexp(logits, 1)
                greedy = mx.all(mx.argmax(logits, 1) == wanted).item()
                results[i] = float(np.array(log_p, np.float64).sum()), bool(greedy)
    if not np.all(np.isfinite([total for total, _ in results])):
        raise MlxHybridError("A log-likelihood is not finite: the model's weights hold NaN or inf.")
    return results


def generate(model: Any, tokenizer: Any, prompt: list[int], settings: dict, context: int) -> str:
    """Greedy text until a stop string, the end of the turn, or `max_gen_toks`."""
    from mlx_lm import stream_generate

    if settings.get("do_sample") or float(settings.get("temperature") or 0) > 0:
        raise ConfigError("This task asks for sampled text; only greedy generation is offered here.")
    stops = settings.get("until") or []
    stops = [stops] if isinstance(stops, str) else [stop for stop in stops if stop]
    most = int(settings.get("max_gen_toks", 256))
    text = ""
    for piece in stream_generate(model, tokenizer, prompt[-max(1, context - most) :], max_tokens=most):
        text += piece.text
        if found := [text.index(stop) for stop in stops if stop in text]:
            return text[: min(found)]
    return text


def task_results(whole: dict) -> list[Row]:
    """The metrics of every task, each with the interval of its standard error and the examples it is of."""
    counts, rows = whole.get("n-samples", {}), []
    for task, own in whole["results"].items():
        n = counts.get(task, {}).get("effective", 0)
        for key, value in own.items():
            metric, _, kind = key.partition(",")
            if metric.endswith("_stderr") or key in NO_METRICS or not isinstance(value, int | float):
                continue
            error = own.get(f"{metric}_stderr,{kind}")
            bounds = (
                (value - 1.96 * error, value + 1.96 * error) if isinstance(error, float) else (None, None)
            )
            rows.append(
                Row(f"{task} {metric}", ALL, "" if kind == "none" else kind, float(value), *bounds, n)
            )
    return rows


def sample_rows(whole: dict) -> list[dict]:
    """One row an example and filter: the record, what was wanted, what the model answered, and its metrics."""
    keys = ("doc_id", "doc", "target", "filter", "filtered_resps")
    names = ("id", "record", "target", "filter", "answers")
    return [
        {"task": task, **dict(zip(names, (row[key] for key in keys))), **{m: row[m] for m in row["metrics"]}}
        for task, rows in whole["samples"].items()
        for row in rows
    ]
