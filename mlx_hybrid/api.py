"""The Python API (docs/python.md): what the commands do, as functions, each loading what it needs."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlx_hybrid.models.blas import warn_of_slow_products

warn_of_slow_products()  # before anything imports mlx

from mlx_hybrid.adapters import attach as adapters
from mlx_hybrid.adapters.layer import HybridLinear as HybridLinear
from mlx_hybrid.config import PRESETS, USUAL, GovernanceConfig, build, build_config, flat, merge
from mlx_hybrid.config.recipes import run_config
from mlx_hybrid.errors import ConfigError, MlxHybridError, check_known  # noqa: F401
from mlx_hybrid.run import Run, find_run  # noqa: F401

if TYPE_CHECKING:
    import mlx.nn as nn

    from mlx_hybrid.evaluation.results import Row
    from mlx_hybrid.exports.checks import Report
    from mlx_hybrid.jobs.events import JobEvent

Names = str | Path | Sequence[str | Path]


def load(name: str, *, base_model: str | None = None) -> tuple["nn.Module", Any]:
    """Load (model, tokenizer), ready to answer, with the adapter on where `name` has one.

    `name` is a run (path, name or "last"), an adapter (folder or Hub id) or a model (folder, Hub id or "bundled");
    `base_model` is the base to put an adapter on where it is not where the adapter says. Raises ConfigError for what
    cannot be found, and MlxHybridError for an adapter that changes no logit."""
    from mlx_hybrid.models.adapted import open_pair

    pair = open_pair(str(name), base_name=base_model, compact=True)
    return pair.model, pair.tokenizer


def attach(model: "nn.Module", method: str = USUAL, *, seed: int = 0, **adapter: Any) -> adapters.Attached:
    """Freeze `model` and put a fresh adapter on its linear layers, in place, to be trained by a loop of your own.

    Each layer becomes y = (x R) Wᵀ + s · x A B + bias and equals its base until it is trained: x (…, in), W (out, in),
    R (in, in) orthogonal, A (in, r), B (r, out). `adapter` are settings of that group, as targets=["q_proj"]. B starts
    from zero: starts from a gradient take records, and belong to `finetune`. Raises ConfigError for an unknown method
    or setting, and for a target that the model lacks."""
    usual = {"low_rank": {"start": "zeros"}} if PRESETS.get(method, {}).get("low_rank") else {}
    config = build_config({"method": method, "adapter": merge(usual, adapter)}, "attach").adapter
    if config.from_gradient:
        raise ConfigError("attach: a start from the gradient takes records; leave it out, or use finetune.")
    return adapters.attach(model, config, seed=seed)


def finetune(
    model: str | None = None,
    data: Names | Mapping[str, Any] | None = None,
    method: str | None = None,
    output: str | Path | None = None,
    *,
    config: str | Path | None = None,
    on_event: Callable[["JobEvent"], None] = lambda event: None,
    log: Sequence[str] = (),
    **settings: Any,
) -> Run:
    """Govern the records of `data`, train an adapter on `model`, and measure it against its base; the run.

    `data` is paths, or settings of that group; `config` is a YAML file or a recipe's name, without it and data the
    quickstart; `settings` are its keys, as seed=1 or train={"epochs": 2}. `on_event` gets every event of the job as it
    comes (mlx_hybrid.jobs.finetune), and so do the trackers in `log`: tensorboard, trackio, wandb. Raises ConfigError,
    DataError, MemoryLimitError or MlxHybridError; a run that broke off can be gone on with."""
    from mlx_hybrid.jobs import finetune as job
    from mlx_hybrid.jobs.events import Tracking

    group = data if isinstance(data, Mapping) or data is None else {"paths": paths_of(data)}
    named = {"model": model, "method": method, "data": group}
    given = {key: value for key, value in named.items() if value is not None} | settings
    chosen, run = run_config(str(config) if config else None, values=flat(given)), None
    with Tracking(*log) as tracking:
        for event in job.finetune(chosen, output=Path(output) if output else None):
            run = event.run if isinstance(event, job.Prepared) else run
            tracking.follow(event)
            on_event(event)
    return run


def govern(
    paths: Names,
    output: str | Path | None = None,
    *,
    replace: bool = False,
    map: Sequence[str] = (),
    progress: Callable[[int], None] = lambda records: None,
    **settings: Any,
) -> dict:
    """Check raw records; keep, flag or reject each with a reason, into the new folder `output`.

    Returns the summary. Without `output` nothing is written, and the summary says what would be decided. `replace`
    takes the place of a folder that govern made; `map` says what keys are read as, as ["question=prompt"]; `progress`
    gets the number of records read; `settings` are those of the governance group, as languages=["sw"] or redact=True.
    Raises ConfigError for settings and paths, DataError where a language would lose too much."""
    from mlx_hybrid.governance.folder.reports import summarise
    from mlx_hybrid.governance.govern import govern_files

    config, folder = build(GovernanceConfig, settings, "govern", "governance."), output and Path(output)
    how = {"replace": replace, "renames": map, "progress": progress}
    return summarise(govern_files(paths_of(paths), folder or None, config, **how))


def rescue(folder: str | Path, ids: Names = (), *, reasons: Names = ()) -> dict:
    """Bring records that governance set aside back into the kept ones of `folder`, which `govern` made.

    They are named by their ids or places (`path:line`), or by the reasons they went for, as "menu". Returns how many
    came back for each reason (`records`), and what stays because it is no record (`left`). Raises ConfigError for a
    reason that there is not, DataError where nothing comes back."""
    from mlx_hybrid.governance.folder import changing

    return changing.rescue(Path(folder), paths_of(ids), paths_of(reasons))


def evaluate(
    name: str,
    *,
    on: str | Path | None = None,
    task: str | None = None,
    output: str | Path | None = None,
    tell: Callable[[str], None] = lambda text: None,
    **options: Any,
) -> list["Row"]:
    """Measure a run beside its base, or a model: one row a figure, with its 95 % interval.

    On the records of `on`, a file or folder, on the benchmark `task`, or on what the run held back; results are written
    to `output`, or to the run's evaluation/. `options` are those of the command (docs/evaluation.md), as limit=100,
    dev="none" or baseline=False. Raises ConfigError for options that have nothing to act on, DataError for records."""
    from mlx_hybrid.jobs.evaluate import Request, measure

    named = [field.name for field in fields(Request)]
    for key in options:
        check_known(key, named, "evaluate: no option")
    path, folder = (Path(place) if place else None for place in (on, output))
    results, *_ = measure(Request(target=str(name), path=path, name=task, output=folder, **options), tell)
    return list(results.rows)


def predict(
    name: str, rows: str | Path | Sequence[Mapping[str, Any] | str], options: Sequence[str] = (), **how: Any
) -> list[dict]:
    """Label records or prompts, or those of a file: `label`, its `probability`, and the `probabilities` of all options.

    Options are those given, else a record's own, else the labels that the run `name` was trained on; `how` are
    `renames`, `dev` and `base_model`, as the command has them. Raises ConfigError or DataError."""
    from mlx_hybrid.jobs import predict as job

    return list(job.predict(str(name), rows, options=options, **how))


def export(name: str, to: str, output: str | Path, **options: Any) -> "Report":
    """Write the adapter `name`, as `load` takes it, to the new folder `output` for another library, and check it there.

    `to` is peft, merged, lora, mlx-lm or gguf; `options` are those of the command (docs/export.md), rank=64.
    Raises ConfigError for what cannot be said in that form, and ExportMismatch where the export does something else
    than the adapter; nothing is written then."""
    from mlx_hybrid.exports import export as exports

    return exports.export(str(name), to, Path(output), exports.Options(**options))


def generate(
    model: "str | Path | tuple[nn.Module, Any]",
    prompt: str | Sequence[Mapping[str, str]] | Sequence[str],
    *,
    system: str | None = None,
    raw: bool = False,
    **sampling: Any,
) -> str | list[str]:
    """The answer to one prompt, a user's message or a list of messages, of a name or of what `load` gave; to a list of
    texts, that of each, made side by side.

    `raw` continues the text without the chat template; `sampling` are max_tokens (512, or what the context leaves),
    temperature (0: the likeliest token), top_p, top_k, min_p, repetition_penalty and seed. Raises ConfigError for a
    prompt over the context."""
    from mlx_hybrid.models.generate import Sampling, answers, prompt_tokens, room_for_answer
    from mlx_hybrid.models.keys import context_limit

    net, tokenizer = model if isinstance(model, tuple) else load(str(model))
    many = not isinstance(prompt, str) and all(isinstance(one, str) for one in prompt)

    def tokens(one: str | Sequence[Mapping[str, str]]) -> list[int]:
        if isinstance(one, str):
            return prompt_tokens(tokenizer, one, system=system, raw=raw)
        return tokenizer.ask([dict(turn) for turn in one])

    prompts = [tokens(one) for one in (prompt if many else [prompt])]
    asked, context = Sampling(**sampling), context_limit(net, tokenizer)
    how = [replace(asked, max_tokens=room_for_answer(len(p), context, asked.max_tokens)) for p in prompts]
    made = dict(answers(net, tokenizer, prompts, how))
    texts = ["".join(piece.text for piece in made[i]) for i in range(len(prompts))]
    return texts if many else texts[0]


def paths_of(names: Names) -> list[str]:
    return [str(name) for name in ([names] if isinstance(names, str | Path) else names)]
