"""What `evaluate` does once its options are read: questions, models, answers, files."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from mlx_hybrid.errors import ConfigError
from mlx_hybrid.files import read_json, write_json, write_text

OF_A_TASK = ("split", "languages", "english_prompts", "folder")
WITH_HARNESS = (
    "target", "base_model", "baseline", "limit", "seed", "examples", "lm_tasks", "lm_folder", "output", "as_json",
)  # fmt: skip


@dataclass(frozen=True)
class Told:
    """Results, where they were written, and the run they are of."""

    results: dict
    path: Path | None
    run: Path | None


def measure(target: str, output: Path | None, options: dict, tell: Callable[[str], None]) -> Told:
    """Everything that can be refused is refused before a model is loaded."""
    from mlx_hybrid.evaluation.benchmarks.questions import chosen_pivot, chosen_variants, settings_hash
    from mlx_hybrid.evaluation.evaluate import evaluate
    from mlx_hybrid.evaluation.metrics.spbleu import fetch_tokenizer
    from mlx_hybrid.evaluation.metrics.translation import MOST_TOKENS, greedy
    from mlx_hybrid.models.base import is_offline

    run = run_of(target)
    questions = find_questions(run, options)
    if questions.note:
        tell(questions.note)
    variants = chosen_variants(names(options["variants"]), questions.test)
    pivot = chosen_pivot(options["pivot"], questions.test)
    if options["dev"] not in ("auto", "none") and questions.test.kind != "classification":
        raise ConfigError(f"--dev is for choices between answers; these records are {questions.test.kind}.")
    for name in ("max_tokens", "spbleu"):
        if options[name] and questions.test.kind != "translation":
            option = f"--{name.replace('_', '-')}"
            raise ConfigError(f"{option} is for translations; these records are {questions.test.kind}.")
    if options["spbleu"] and (failed := fetch_tokenizer(offline=is_offline())):
        tell(failed)
    if options["save_temperature"] and (questions.dev is None or questions.test.kind != "classification"):
        raise ConfigError(
            "--save-temperature needs a classification with a development set; name one with --dev."
        )
    folder = output or (run.path / "evaluation" if run else None)
    if options["examples"] and folder is None:
        raise ConfigError("--examples needs a folder to write to; give -o.")
    if folder is None:
        tell("Results are not kept, and a stop loses them; -o DIR keeps them.")
    pair = open_target(target, options["base_model"], tell)
    models = models_of(pair, options["baseline"])
    if options["save_temperature"] and not pair.adapted:
        raise ConfigError(f"--save-temperature: {target} has no adapter to keep it in.")
    if options["save_temperature"] and run is None and not Path(target).is_dir():
        raise ConfigError(
            f"--save-temperature: {target} is on the Hub; download the adapter and name its folder."
        )
    limit, seed, most = options["limit"], options["seed"], options["max_tokens"] or MOST_TOKENS
    name = f"{questions.name}-limit-{limit}" if limit else questions.name
    mark = settings_hash(questions, limit=limit, seed=seed, variants=variants, most_tokens=most)
    answers = folder / "answers" / f"{name}-{mark}" if folder else None
    results = evaluate(
        models, pair.tokenizer, questions.test, dev=questions.dev, variants=variants,
        seed=seed, limit=limit, pivot=pivot, directory=answers, identities=identities(pair),
        generate=lambda model, prompts: greedy(model, pair.tokenizer, max_tokens=most)(prompts),
        progress=lambda model, done, total: tell(f"{model}: {done} of {total} answers"),
    )  # fmt: skip
    results |= {"model": pair.loaded.name, "base": pair.loaded.base}
    path = write_results(folder, name, results)
    if options["examples"]:
        write_examples(folder, name, answers, questions.test, results)
    if options["save_temperature"]:
        value = save_temperature(pair.loaded.adapter, results)
        tell(f"Temperature {value:.3g} is stored in {pair.loaded.adapter / 'adapter_config.json'}.")
    if run and output is None:
        refresh(run)
    return Told(results, path, run.path if run else None)


def refuse_idle(given: dict[str, str]) -> None:
    """Raise ConfigError where an option that was given, name → how it is written, has nothing to act on."""
    if "lm_tasks" in given:
        if idle := [written for name, written in given.items() if name not in WITH_HARNESS]:
            raise ConfigError(f"--lm-eval brings its own tasks and settings; leave out {', '.join(idle)}.")
    elif "lm_folder" in given:
        raise ConfigError("--lm-eval-tasks is a folder for --lm-eval, which names the tasks.")
    elif "name" not in given and (idle := [given[name] for name in OF_A_TASK if name in given]):
        raise ConfigError(
            f"Without --task there is nothing that {', '.join(idle)} could choose; leave it out."
        )


def run_of(target: str) -> Any:
    """The run that `target` names, as `load_any` understands it; None for an adapter folder or a model."""
    from mlx_hybrid.run import LAST, find_run

    folder = Path(target)
    named = not folder.is_dir() and target != "bundled" and "/" not in target
    return find_run(target) if (folder / "run.json").is_file() or target == LAST or named else None


def find_questions(run: Any, options: dict) -> Any:
    """From --on, --task, or the run's own test files."""
    from mlx_hybrid.cli.evaluate import choice
    from mlx_hybrid.evaluation.benchmarks import questions as question_files

    path, name, dev = options["path"], options["name"], options["dev"]
    if path and name:
        raise ConfigError("--on and --task both say what to measure on; give one.")
    known = question_files.training_records(run.config_here()) if run else []
    if name:
        part = choice(options["languages"], options["seed"], options["english_prompts"], options["folder"])
        return question_files.from_task(name, options["split"], part, dev, known)
    if path:
        group = run.config_here().data.group if run else "group"
        return question_files.from_path(path, dev, known, group)
    own = (
        question_files.from_run(run.config_here(), dev, known, run.info().get("data_hash", ""))
        if run
        else None
    )
    if own is None:
        raise ConfigError(
            "Nothing to measure on: give --on with a file or folder, or --task with a benchmark."
        )
    return own


def names(text: str | None) -> list[str]:
    """What stands between commas."""
    return [name.strip() for name in (text or "").split(",") if name.strip()]


def open_target(target: str, base_name: str | None, tell: Callable[[str], None]) -> Any:
    from mlx_hybrid.models.pair import open_pair

    pair = open_pair(target, base_name=base_name)
    tell(pair.loaded.describe())
    return pair


def models_of(pair: Any, baseline: bool | None) -> dict[str, Any]:
    """The base first, so that differences are adapted minus base; without it where `baseline` is False.

    Raises ConfigError where `baseline` is given for a model that has no adapter.
    """
    if pair.adapted:
        return ({} if baseline is False else {"base": pair.base}) | {"adapted": pair.model}
    if baseline is not None:
        raise ConfigError(
            f"--{'' if baseline else 'no-'}baseline: {pair.loaded.name} has no adapter beside it."
        )
    return {"model": pair.model}


def identities(pair: Any) -> dict[str, str]:
    """Hashes of the weights behind each name."""
    base = str(pair.loaded.base.get("fingerprint", ""))
    if not pair.adapted:
        return {"model": base}
    weights = sha256((pair.loaded.adapter / "adapters.safetensors").read_bytes()).hexdigest()
    return {"base": base, "adapted": f"{base} {weights}"}


def write_results(folder: Path | None, name: str, results: dict) -> Path | None:
    if folder is None:
        return None
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / f"{name}.json", results)
    return folder / f"{name}.json"


def refresh(run: Any) -> None:
    """Bring the run's page and card up to what is now measured."""
    from mlx_hybrid.jobs.finetune import write_pages

    write_pages(run)


def write_examples(folder: Path, name: str, answers: Path, test: Any, results: dict) -> None:
    """`NAME.MODEL.examples.jsonl` beside the results."""
    from mlx_hybrid.evaluation.example_rows import answers_to_test, example_rows
    from mlx_hybrid.evaluation.sets import limited

    test = limited(test, results["limit"], results["seed"])
    for model, own in results["models"].items():
        normalised = own.get("scoring", {}).get("normalised", False)
        rows = example_rows(test, answers_to_test(answers / f"{model}.answers.jsonl"), normalised=normalised)
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        write_text(folder / f"{name}.{model}.examples.jsonl", text)


def save_temperature(adapter: Path, results: dict) -> float:
    """Keep `mlx_hybrid.temperature` in the adapter's config: what the scores of whole answers are divided by."""
    path = adapter / "adapter_config.json"
    tree = read_json(path)
    value = results["models"]["adapted"]["calibration"]["temperature"]
    tree["mlx_hybrid"]["temperature"] = value
    write_json(path, tree)
    return value
