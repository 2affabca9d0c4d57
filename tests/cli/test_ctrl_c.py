"""One Ctrl-C, whatever a job is doing: it stops, says what is kept, and how to go on."""

import json
import os
import signal

import pytest
from acting import sets

from mlx_hybrid.evaluation import answers
from mlx_hybrid.governance import govern as curate
from mlx_hybrid.jobs import finetune as job
from mlx_hybrid.run import Run
from mlx_hybrid.training.events import Finished, Started
from mlx_hybrid.training.stopping import StopRequest

pytestmark = pytest.mark.slow

UNMEASURED = sets("evaluate=false")


@pytest.fixture
def press(monkeypatch):
    """Press Ctrl-C when `module.name` is called for the n-th time; then it goes on as it would."""

    def arm(module, name: str, time: int = 1) -> None:
        real, calls = getattr(module, name), iter(range(1, 100))

        def pressed(*arguments, **named):
            if next(calls) == time:
                os.kill(os.getpid(), signal.SIGINT)
            return real(*arguments, **named)

        monkeypatch.setattr(module, name, pressed)

    return arm


@pytest.mark.parametrize(
    ("module", "name"),
    [(job, "prepare"), (job, "load_setup"), (answers, "answer"), (job, "start_from_records")],
)
def test_before_the_first_step_it_is_taken_and_saved(module, name, press, finetune, run, settings, tmp_path):
    press(module, name)
    done = finetune(*settings, *([] if name == "answer" else UNMEASURED), code=130)
    asked = "Stopping after the first step, so that it can be gone on with; once more to stop at once."
    for words in (asked, "Stopped after step 1; everything is saved."):
        assert words in done.stderr
    cut = Run(tmp_path / "trained")
    assert (cut.info()["status"], cut.saved_step()) == ("interrupted", 1)
    assert done.stdout == f"mlx-hybrid finetune --resume {cut.path}\n"


def test_twice_before_the_first_step_nothing_is_kept(press, finetune, settings, tmp_path):
    press(job, "prepare")
    press(job, "load_setup")
    done = finetune(*settings, code=130)
    assert "nothing is kept. Start again with the same command." in done.stderr
    assert "Stopped after step" not in done.stderr
    assert not list(tmp_path.iterdir())


def test_a_run_stopped_in_its_first_second_ends_as_one_never_stopped(
    press, finetune, finished, run, settings, tmp_path
):
    press(job, "find_data")
    finetune(*settings, *UNMEASURED, "--method", "hybrid", code=130)
    run("finetune", "--resume", tmp_path / "trained", code=0)
    paths = (tmp_path / "trained", finished("hybrid").path)
    cut, whole = ((path / "adapter" / "adapters.safetensors").read_bytes() for path in paths)
    assert cut == whole


def test_in_the_last_scoring_and_again_when_it_is_resumed(press, run, finished, finetune, settings, tmp_path):
    whole, cut = Run(finished("hybrid").path), Run(tmp_path / "trained")
    press(answers, "answer", 4)  # after the three sets that the base answered
    done = finetune(*settings, "--method", "hybrid", code=130)
    assert f"the adapter is trained, in {cut.adapter}" in done.stderr
    assert done.stdout == f"mlx-hybrid finetune --resume {cut.path}\n"
    assert cut.info()["status"] == "interrupted"
    assert not (cut.path / "evaluation" / "held-out.json").exists()
    press(job, "load_setup")
    done = run("finetune", "--resume", cut.path)
    assert (done.exit_code, cut.info()["status"]) == (130, "interrupted")
    assert done.stdout == f"mlx-hybrid finetune --resume {cut.path}\n"
    assert list(cut.checkpoints.iterdir())
    run("finetune", "--resume", cut.path, code=0)
    assert cut.info()["status"] == "finished"
    for name in ("adapter/adapters.safetensors", "evaluation/held-out.json"):
        assert (cut.path / name).read_bytes() == (whole.path / name).read_bytes()


def test_steps_are_ended_and_nothing_follows_the_last():
    told = []
    with StopRequest(told.append, "") as stop:
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
        stop.follow(Started(10, 0, 1, 1, 1))
        os.kill(os.getpid(), signal.SIGINT)
        assert stop()
        assert told == ["Stopping after this step; once more to stop at once."]
        with pytest.raises(KeyboardInterrupt):
            stop.follow(Finished(10, 1.0))


def test_json_says_that_it_was_interrupted(press, finetune, settings):
    press(job, "load_setup")
    done = finetune(*settings, *UNMEASURED, "--json", code=130)
    assert json.loads(done.stdout.splitlines()[-1])["status"] == "interrupted"


def test_govern_leaves_nothing_half_written(press, run, records, tmp_path):
    press(curate, "copy_lines")
    done = run("govern", records, "-o", tmp_path / "clean", code=130)
    assert done.stderr == "Stopped; what was written before is whole.\n"
    assert not list(tmp_path.iterdir())
