"""Measure a run beside its base, or a model: questions, models, answers, files."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from mlx_hybrid.errors import ConfigError
from mlx_hybrid.evaluation.results import ADAPTED, BASE, Results, Row, by_model, write_results
from mlx_hybrid.files import write_lines

OF_A_TASK = ("split", "languages", "folder")
WITH_HARNESS = (
    *("target", "base_model", "baseline", "limit", "seed", "examples"),
    *("lm_tasks", "lm_folder", "output", "as_json"),
)
Tell = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Request:
    """What is measured and on what, as the options of `evaluate` say it."""

    target: str
    path: Path | None = None
    renames: tuple[str, ...] = ()
    name: str | None = None
    split: str = "test"
    dev: str = "auto"
    languages: tuple[str, ...] = ()
    folder: Path | None = None
    variants: tuple[str, ...] = ()
    base_model: str | None = None
    baseline: bool | None = None
    limit: int = 0
    seed: int = 0
    pivot: str | None = None
    max_tokens: int | None = None
    examples: bool = False
    retain: str = "auto"
    lm_tasks: tuple[str, ...] | None = None
    lm_folder: Path | None = None
    output: Path | None = None


def measure(request: Request, tell: Tell) -> tuple[Results, Path | None, Path | None]:
    """Results of the request, the file they were written to, if any, and the folder of the run they are of.

    Everything that can be refused is refused before a model is loaded. Raises ConfigError or DataError.
    """
    from mlx_hybrid.jobs.held_out import write_pages
    from mlx_hybrid.models.adapted import run_named

    run = run_named(request.target)
    folder = request.output or (run.path / "evaluation" if run else None)
    if request.examples and folder is None:
        raise ConfigError("--examples needs a folder to write to; give -o.")
    measured = ask if request.lm_tasks is None else ask_harness
    name, results = measured(request, run, folder, tell)
    path = folder / f"{name}.json" if folder else None
    if path:
        write_results(path, results)
    if run and request.output is None:
        write_pages(run)
    return results, path, run.path if run else None


def ask(request: Request, run: Any, folder: Path | None, tell: Tell) -> tuple[str, Results]:
    """Questions of our own: a task, a file, or what the run held back."""
    from mlx_hybrid.evaluation.answers import fingerprint_of, write_examples
    from mlx_hybrid.evaluation.benchmarks import questions as own
    from mlx_hybrid.evaluation.benchmarks.questions import retention_set, untrained
    from mlx_hybrid.evaluation.evaluate import evaluate, parts_of
    from mlx_hybrid.evaluation.metrics.calibration import Calibration, write_calibration
    from mlx_hybrid.evaluation.metrics.translation import MOST_TOKENS, greedy
    from mlx_hybrid.evaluation.sets import limited
    from mlx_hybrid.models.adapted import open_pair

    part = {name: getattr(request, name) for name in (*OF_A_TASK, "dev", "renames")}
    questions = own.find_questions(run, request.path, request.name, **part)
    if questions.note:
        tell(questions.note)
    variants = own.chosen_variants(request.variants, questions.test)
    pivot = own.chosen_pivot(request.pivot, questions.test)
    check_kind(request, questions)
    kept = None if request.retain == "none" else retention_set(request.retain)
    if folder is None:
        tell("Results are not kept, and a stop loses them; -o DIR keeps them.")
    pair = open_pair(request.target, base_name=request.base_model)
    tell(pair.describe())
    if run:
        pair.tokenizer.date = run.template_date()
    models = models_of(pair, request.baseline)
    limit, seed, most = request.limit, request.seed, request.max_tokens or MOST_TOKENS
    name = f"{questions.name}-limit-{limit}" if limit else questions.name
    kept = kept if len(models) == 2 or request.retain != "auto" else None
    asked = {"dev": questions.dev, "variants": variants, "retention": kept, "seed": seed, "limit": limit}
    mark = fingerprint_of(parts_of(questions.test, **asked), str(most))[:8]
    answers = folder / "answers" / f"{name}-{mark}" if folder else None
    results = evaluate(
        models,
        pair.tokenizer,
        questions.test,
        untrained=untrained(kept, questions.known) if kept else (),
        pivot=pivot,
        directory=answers,
        identities=identities(pair),
        generate=greedy(pair.tokenizer, most),
        progress=lambda model, done, total: tell(f"{model}: {done} of {total} answers"),
        **asked,
    )
    results = replace(results, facts=results.facts | {"model": pair.name, "base": pair.identity})
    if request.examples and folder and answers:
        write_examples(folder / name, answers, limited(questions.test, limit, seed), results)
    fitted = results.facts.get("calibration", {}).get(ADAPTED)
    if run and fitted and questions.trained and request.dev == "auto" and not limit:
        write_calibration(run.adapter, Calibration(**fitted))
    return name, results


def ask_harness(request: Request, run: Any, folder: Path | None, tell: Tell) -> tuple[str, Results]:
    """Tasks of lm-evaluation-harness, base beside adapted."""
    from importlib.metadata import version

    from mlx_hybrid.evaluation.harness import (
        evaluate_tasks,
        find_tasks,
        harness_model,
        sample_rows,
        task_results,
    )
    from mlx_hybrid.models.adapted import open_pair

    tasks = request.lm_tasks
    if not tasks:
        raise ConfigError("--lm-eval: name a task, or several with commas between.")
    if request.lm_folder is not None and not request.lm_folder.is_dir():
        raise ConfigError(f"--lm-eval-tasks {request.lm_folder}: no such folder.")
    manager = find_tasks(tasks, request.lm_folder)
    if folder is None:
        tell("Results are not kept; -o DIR keeps them.")
    pair = open_pair(request.target, base_name=request.base_model)
    tell(pair.describe())
    name, rows, versions = f"lm-eval-{'-'.join(tasks)[:60]}", list[Row](), {}
    for label, model in models_of(pair, request.baseline).items():
        tell(f"{label}: {', '.join(tasks)}")
        net = harness_model(model() if label == BASE else model, pair.tokenizer, pair.context)
        whole = evaluate_tasks(net, tasks, manager, request.limit, request.seed, request.examples)
        rows += by_model(task_results(whole), label)
        versions = whole.get("versions", {})
        if request.examples and folder:
            write_lines(folder / f"{name}.{label}.examples.jsonl", sample_rows(whole))
    facts = {"task": ", ".join(tasks), "harness": f"lm-eval {version('lm-eval')}", "versions": versions}
    facts |= {"seed": request.seed, "limit": request.limit}
    return name, Results(facts | {"model": pair.name, "base": pair.identity}, tuple(rows))


def refuse_idle(given: dict[str, str]) -> None:
    """Raise ConfigError where an option that was given, name → how it is written, has nothing to act on."""
    if "lm_tasks" in given:
        if idle := [written for name, written in given.items() if name not in WITH_HARNESS]:
            raise ConfigError(f"--lm-eval brings its own tasks and settings; leave out {', '.join(idle)}.")
    elif "lm_folder" in given:
        raise ConfigError("--lm-eval-tasks is a folder for --lm-eval, which names the tasks.")
    elif "renames" in given and "path" not in given:
        raise ConfigError("--map names the keys of the records of --on, which is not given.")
    elif "name" not in given and (idle := [given[name] for name in OF_A_TASK if name in given]):
        told = f"Without --task there is nothing that {', '.join(idle)} could choose; leave it out."
        raise ConfigError(told)


def check_kind(request: Request, questions: Any) -> None:
    """Raise ConfigError where an option does not fit the kind of the records."""
    kind = questions.test.kind
    if request.dev not in ("auto", "none") and kind != "classification":
        raise ConfigError(f"--dev is for choices between answers; these records are {kind}.")
    if request.max_tokens and kind != "translation":
        raise ConfigError(f"--max-tokens is for translations; these records are {kind}.")


def models_of(pair: Any, baseline: bool | None) -> dict[str, Any]:
    """The base first, so that differences are adapted minus base; without it where `baseline` is False.

    Raises ConfigError where `baseline` is given for a model that has no adapter.
    """
    if pair.adapted:
        return ({} if baseline is False else {BASE: pair.base}) | {ADAPTED: pair.model}
    if baseline is not None:
        option = "--baseline" if baseline else "--no-baseline"
        raise ConfigError(f"{option}: {pair.name} has no adapter beside it.")
    return {"model": pair.model}


def identities(pair: Any) -> dict[str, str]:
    """Hashes of the weights behind each name."""
    base = str(pair.identity.get("fingerprint", ""))
    if not pair.adapted:
        return {"model": base}
    weights = sha256((pair.adapter / "adapters.safetensors").read_bytes()).hexdigest()
    return {BASE: base, ADAPTED: f"{base} {weights}"}
