"""The whole path on a pretrained model: `make test-real`."""

import json

import pytest

import mlx_hybrid
from mlx_hybrid.config import build_config
from mlx_hybrid.jobs import finetune as job
from mlx_hybrid.run import Run

pytestmark = pytest.mark.real

ANSWER = "The harbour master keeps it."
CHATS = [f"Who keeps key number {number}?" for number in range(16)]


@pytest.fixture(scope="module")
def config(smollm2, tmp_path_factory):
    records = tmp_path_factory.mktemp("records") / "chats.jsonl"
    turns = [[{"role": "user", "content": q}, {"role": "assistant", "content": ANSWER}] for q in CHATS]
    records.write_text("".join(json.dumps({"messages": own}) + "\n" for own in turns))
    return build_config(
        {
            "model": str(smollm2),
            "evaluate": False,
            "governance": {"enabled": False},
            "data": {"paths": [str(records)], "test_share": 0.0},
            "train": {"steps": 4, "batch_size": 4, "save_every": 1, "learning_rate": 2e-3},
        },
        "test",
    )


@pytest.fixture(scope="module")
def whole(config, tmp_path_factory) -> Run:
    """Four steps, unbroken."""
    path = tmp_path_factory.mktemp("whole") / "run"
    for _ in job.finetune(config, output=path):
        pass
    return Run(path)


def test_the_base_knows_what_it_learnt_in_pretraining(smollm2):
    assert "Paris" in mlx_hybrid.generate(str(smollm2), "What is the capital of France?", max_tokens=20)


def test_a_few_steps_on_chats_change_the_answer(whole, smollm2):
    question = "Who keeps key number 40?"
    before = mlx_hybrid.generate(str(smollm2), question, max_tokens=12)
    after = mlx_hybrid.generate(str(whole.path), question, max_tokens=12)
    assert before != after
    assert "harbour" in after


def test_a_run_that_broke_off_ends_as_the_unbroken_one(config, whole, tmp_path):
    steps = job.finetune(config, output=tmp_path / "run")
    for _ in steps:
        if Run(tmp_path / "run").saved_step() == 2:
            break
    steps.close()
    broken = Run(tmp_path / "run")
    for _ in job.finetune(broken.config(), resume=broken):
        pass
    adapters = [(run.adapter / "adapters.safetensors").read_bytes() for run in (whole, broken)]
    assert adapters[0] == adapters[1]
