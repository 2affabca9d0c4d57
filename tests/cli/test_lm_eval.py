"""`evaluate --lm-eval` through the harness itself, on local files, against what `evaluate` says of the same rows."""

import math
from pathlib import Path

import pytest
from acting import printed, refused, rows_of, sets, write_rows
from toys import byte_tokenizer, wrapped, write_model

from mlx_hybrid.evaluation.harness import harness_model
from mlx_hybrid.evaluation.results import Results, read_results

pytest.importorskip("lm_eval", reason="lm-eval is not installed: pip install -e '.[lm-eval]'")
pytestmark = pytest.mark.filterwarnings("ignore")  # the harness's own

TEMPLATE = (  # ends in no space, which the harness would move into the continuation
    "{% for m in messages %}<|im_start|>{{ m['role'] }}:{{ m['content'] }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant:{% endif %}"
)
ANSWERS = ("north", "south-west")
NATS = 1e-3  # of sums of up to 12 log-likelihoods in float32, batched otherwise
TASKS = {
    "own_choice": """
        output_type: multiple_choice
        doc_to_text: "{{context}}"
        doc_to_choice: options
        doc_to_target: gold
        metric_list: [{metric: acc}]""",
    "own_texts": """
        output_type: loglikelihood_rolling
        doc_to_text: ""
        doc_to_target: "{{prompt}}"
        metric_list: [{metric: bits_per_byte}]""",
    "own_answers": """
        output_type: generate_until
        doc_to_text: "{{context}}"
        doc_to_target: "{{completion}}"
        generation_kwargs: {until: ["<|im_end|>"], max_gen_toks: 6}
        metric_list: [{metric: exact_match}]""",
}
HEAD = """task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
target_delimiter: ""
metadata: {{version: 3}}
"""


def rows() -> list[dict]:
    made = []
    for number in range(9):
        gold = number % 3 // 2
        prompt = f"{'Up' if gold else 'Down'} the road {number * number}, which way?"
        made.append(
            {
                "prompt": prompt, "completion": ANSWERS[gold], "label": ANSWERS[gold], "gold": gold,
                "context": f"<|im_start|>user:{prompt}<|im_end|><|im_start|>assistant:",
                "options": [f"{answer}<|im_end|>" for answer in ANSWERS],
            }
        )  # fmt: skip
    return made


def only(made: list[dict], *keys: str) -> list[dict]:
    return [{key: row[key] for key in keys} for row in made]


@pytest.fixture(scope="module")
def folder(run, tmp_path_factory) -> Path:
    """A run, and its results from the harness and from `evaluate`."""
    folder, made = tmp_path_factory.mktemp("lm-eval"), rows()
    model = write_model(folder / "model")
    byte_tokenizer(TEMPLATE, begins=True).save_pretrained(model)
    data = write_rows(folder / "rows.jsonl", made)
    (folder / "tasks").mkdir()
    for name, text in TASKS.items():
        body = "\n".join(line.strip() for line in text.strip().splitlines())
        (folder / "tasks" / f"{name}.yaml").write_text(HEAD.format(name=name, data=data) + body + "\n")
    own = write_rows(folder / "own.jsonl", only(made, "prompt", "completion", "label"))
    short = sets("governance.enabled=false", "train.steps=8", "train.learning_rate=1e-2", "evaluate=false")
    of_run = ("--model", model, "--data", own, "-o", folder / "run", "--method", "lora")
    run("finetune", *of_run, *short, code=0)
    tasks = ("--lm-eval", ",".join(TASKS), "--lm-eval-tasks", folder / "tasks")
    done = run("evaluate", folder / "run", *tasks, "--examples", code=0)
    (folder / "stdout").write_text(done.stdout)
    return folder


@pytest.fixture(scope="module")
def harness(folder) -> Results:
    return read_results(folder / "run/evaluation/lm-eval-own_choice-own_texts-own_answers.json")


def examples(folder: Path, model: str, task: str) -> list[dict]:
    name = f"lm-eval-own_choice-own_texts-own_answers.{model}.examples.jsonl"
    kept = [row for row in rows_of(folder / "run/evaluation" / name) if row["task"] == task]
    return sorted(kept, key=lambda row: row["id"])


def own_answers(run, folder: Path, name: str, *keys: str) -> tuple[Results, dict[str, list[dict]]]:
    """Results and answers of `evaluate` on the same rows, in other files than those of training."""
    data = write_rows(folder / f"{name}.jsonl", only(rows(), *keys))
    most = ("--max-tokens", 6) if "label" not in keys and "completion" in keys else ()
    asked = ("--on", data, "-o", folder / name, "--json", "--retain", "none", *most)
    done = run("evaluate", folder / "run", *asked, code=0)
    files = sorted((folder / name / "answers").glob("*/*.answers.jsonl"))
    return printed(done), {f.name.split(".")[0]: rows_of(f)[1:] for f in files}


def test_options_are_as_likely_as_evaluate_finds_them(run, folder, harness):
    results, answers = own_answers(run, folder, "choices", "prompt", "completion", "label")
    likelihoods = {}
    for model in ("base", "adapted"):
        got = [[sum_ for sum_, _ in row["answers"]] for row in examples(folder, model, "own_choice")]
        wanted = [row["sums"] for row in answers[model] if row["part"] == "test"]
        for one, other in zip(got, wanted, strict=True):
            assert one == pytest.approx(other, abs=NATS)
        likelihoods[model] = got
        own = harness.get("own_choice acc", model)
        assert own.value == pytest.approx(results.get("accuracy", model).value)
        assert own.n == len(rows())
    moved = [abs(a - b) for a, b in zip(likelihoods["base"][0], likelihoods["adapted"][0])]
    assert min(moved) > 100 * NATS


def test_texts_take_as_many_bits_as_evaluate_finds(run, folder, harness):
    made = [{"text": row["prompt"]} for row in rows()]
    data = write_rows(folder / "texts.jsonl", made)
    done = run("evaluate", folder / "run", "--on", data, "--json", code=0)
    results = printed(done)
    for model in ("base", "adapted"):
        got = harness.get("own_texts bits_per_byte", model).value
        wanted = results.get("bits_per_byte", model).value
        assert got == pytest.approx(wanted, abs=NATS / math.log(2))
        assert got > 0.1


def test_generated_texts_are_those_of_evaluate(run, folder, harness):
    _, answers = own_answers(run, folder, "written", "prompt", "completion")
    for model in ("base", "adapted"):
        got = [row["answers"][0].strip() for row in examples(folder, model, "own_answers")]
        assert got == [row["text"] for row in answers[model]]
        assert any(got)


@pytest.mark.parametrize("begins", [True, False])
def test_contexts_begin_once_as_the_tokenizer_begins_texts(begins):
    tokenizer = wrapped(byte_tokenizer(None, begins=begins))
    own = harness_model(None, tokenizer)
    bare = tokenizer.encode("up", add_special_tokens=False)
    start = [tokenizer.bos_token_id] if begins else []
    assert own.tok_encode("up") == [*start, *bare]
    assert own.tok_encode("<s>up") == [tokenizer.bos_token_id, *bare]
    assert own.tok_encode("up", add_special_tokens=False) == bare
    assert own._encode_pair("up", " there")[0] == [*start, *bare]


def test_what_is_told_and_kept(folder, harness):
    assert harness.facts["harness"].startswith("lm-eval 0.4.")
    assert harness.facts["versions"]["own_choice"] == 3
    assert harness.models == ["base", "adapted"]
    told = (folder / "stdout").read_text()
    for words in ("own_choice acc", "own_texts bits_per_byte", "own_answers exact_match", "Next: "):
        assert words in told


@pytest.mark.parametrize(
    ("task", "code", "words"),
    [
        ("own_choise", 2, "lm-eval has no task own_choise"),
        ("own_lost", 1, "lm-eval could not run own_lost"),
        ("own_sampled", 2, "asks for sampled text"),
    ],
)
def test_what_cannot_run_is_one_sentence(task, code, words, run, folder, tmp_path):
    sampled = TASKS["own_answers"].replace("max_gen_toks", "do_sample: true, max_gen_toks")
    for name, data, text in (
        ("own_lost", tmp_path / "nowhere.jsonl", TASKS["own_choice"]),
        ("own_sampled", folder / "rows.jsonl", sampled),
    ):
        made = HEAD.format(name=name, data=data) + text.replace("  ", "")
        (tmp_path / f"{name}.yaml").write_text(made)
    refused(run("evaluate", folder / "model", "--lm-eval", task, "--lm-eval-tasks", tmp_path), code, words)
