"""Measure a run beside its base, or a model: questions, models, answers, files."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from mlx_hybrid.errors import ConfigError
from mlx_hybrid.evaluation import harness
from mlx_hybrid.evaluation.answers import example_rows, fingerprint_of
from mlx_hybrid.evaluation.benchmarks import questions as own
from mlx_hybrid.evaluation.evaluate import evaluate, parts_of
from mlx_hybrid.evaluation.metrics.calibration import Calibration, write_calibration
from mlx_hybrid.evaluation.metrics.translation import MOST_TOKENS, greedy
from mlx_hybrid.evaluation.results import ADAPTED, BASE, Results, Row, by_model, write_results
from mlx_hybrid.evaluation.sets import limited
from mlx_hybrid.files import sha256_of, write_lines
from mlx_hybrid.jobs import finetune
from mlx_hybrid.models.adapted import open_pair, run_base, run_named

OF_A_TASK = ("split", "languages", "folder")
WITH_HARNESS = ("target", "base_model", "baseline", "limit", "seed", "examples", "output", "as_json")
WITH_HARNESS += ("lm_tasks", "lm_folder")
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
    """Results of the request, the file they were written to, if any, and the folder of the run they are of. Raises
    ConfigError or DataError, before a model is loaded for all that can be refused by then."""
    if run := run_named(request.target, request.base_model):
        run_base(run)  # said before its records are looked for
    folder = request.output or (run.path / "evaluation" if run else None)
    if request.examples and folder is None:
        raise ConfigError("--examples needs a folder to write to; give -o.")
    name, results = (ask if request.lm_tasks is None else ask_harness)(request, run, folder, tell)
    path = folder / f"{name}.json" if folder else None
    if path:
        write_results(path, results)
    if run and request.output is None:
        finetune.write_pages(run)
    return results, path, run.path if run else None


def ask(request: Request, run: Any, folder: Path | None, tell: Tell) -> tuple[str, Results]:
    """Questions of our own: a task, a file, or what the run held back."""
    part = {name: getattr(request, name) for name in (*OF_A_TASK, "dev", "renames")}
    questions = own.find_questions(run, request.path, request.name, **part)
    if questions.note:
        tell(questions.note)
    variants = own.chosen_variants(request.variants, questions.test)
    pivot = own.chosen_pivot(request.pivot, questions.test)
    kind, limit, seed, most = questions.test.kind, request.limit, request.seed, request.max_tokens
    if request.dev not in ("auto", "none") and kind != "classification":
        raise ConfigError(f"--dev is for choices between answers; these records are {kind}.")
    if most and kind != "translation":
        raise ConfigError(f"--max-tokens is for translations; these records are {kind}.")
    kept = None if request.retain == "none" else own.retention_set(request.retain)
    pair, models = opened(request, folder, run, tell)
    name = f"{questions.name}-limit-{limit}" if limit else questions.name
    kept = kept if len(models) == 2 or request.retain != "auto" else None
    asked = {"dev": questions.dev, "variants": variants, "retention": kept, "seed": seed, "limit": limit}
    mark = fingerprint_of(parts_of(questions.test, **asked), str(most or MOST_TOKENS))[:8]
    answers = folder / "answers" / f"{name}-{mark}" if folder else None
    base = str(pair.identity.get("fingerprint", ""))
    adapter = sha256_of(pair.adapter / "adapters.safetensors") if pair.adapted else ""
    how = {"pivot": pivot, "directory": answers, "generate": greedy(pair.tokenizer, most or MOST_TOKENS)}
    how["identities"] = {"model": base, BASE: base, ADAPTED: f"{base} {adapter}"}  # hashes of the weights
    how["untrained"] = own.untrained(kept, questions.known) if kept else ()
    how["progress"] = lambda model, done, total: tell(f"{model}: {done} of {total} answers")
    results = evaluate(models, pair.tokenizer, questions.test, **asked, **how)
    results = replace(results, facts=results.facts | {"model": pair.name, "base": pair.identity})
    if request.examples:
        own_test = limited(questions.test, limit, seed)
        for label in results.models:
            rows = example_rows(own_test, answers / f"{label}.answers.jsonl")
            write_lines(folder / f"{name}.{label}.examples.jsonl", rows)
    fitted = results.facts.get("calibration", {}).get(ADAPTED)
    if run and fitted and questions.trained and request.dev == "auto" and not limit:
        write_calibration(run.adapter, Calibration(**fitted))
    return name, results


def ask_harness(request: Request, run: Any, folder: Path | None, tell: Tell) -> tuple[str, Results]:
    """Tasks of lm-evaluation-harness, base beside adapted."""
    if not (tasks := request.lm_tasks):
        raise ConfigError("--lm-eval: name a task, or several with commas between.")
    if request.lm_folder is not None and not request.lm_folder.is_dir():
        raise ConfigError(f"--lm-eval-tasks {request.lm_folder}: no such folder.")
    manager = harness.find_tasks(tasks, request.lm_folder)
    pair, models = opened(request, folder, None, tell)
    name, rows, versions = f"lm-eval-{'-'.join(tasks)[:60]}", list[Row](), {}
    for label, model in models.items():
        tell(f"{label}: {', '.join(tasks)}")
        net = harness.harness_model(model() if label == BASE else model, pair.tokenizer, pair.context)
        whole = harness.evaluate_tasks(net, tasks, manager, request.limit, request.seed, request.examples)
        rows += by_model(harness.task_results(whole), label)
        versions = whole.get("versions", {})
        if request.examples:
            write_lines(folder / f"{name}.{label}.examples.jsonl", harness.sample_rows(whole))
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
        told = f"{', '.join(idle)} could choose; leave it out."
        raise ConfigError(f"Without --task there is nothing that {told}")


def opened(request: Request, folder: Path | None, run: Any, tell: Tell) -> tuple[Any, dict[str, Any]]:
    """The model with its adapter, and what is measured of it by name: the base first, so that differences are adapted
    minus base. Raises ConfigError where `baseline` is given for a model that has no adapter."""
    if folder is None:
        tell("Results are not kept, and a stop loses them; -o DIR keeps them.")
    pair, baseline = open_pair(request.target, base_name=request.base_model), request.baseline
    tell(pair.describe())
    if run:
        pair.tokenizer.date = run.template_date()
    if pair.adapted:
        return pair, ({} if baseline is False else {BASE: lambda: pair.base}) | {ADAPTED: pair.model}
    if baseline is not None:
        option = "--baseline" if baseline else "--no-baseline"
        raise ConfigError(f"{option}: {pair.name} has no adapter beside it.")
    return pair, {"model": pair.model}
