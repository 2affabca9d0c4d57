"""Stopping and going on equals never having stopped, to the bit; and a spoilt checkpoint is stepped over."""

import dataclasses
import json
import shutil

import pytest
from scene import METHODS, changed, everything, material, run, same

from mlx_hybrid.adapters import store
from mlx_hybrid.errors import ConfigError, MlxHybridError
from mlx_hybrid.training import checkpoint as checkpoint_module
from mlx_hybrid.training.checkpoint import Progress, checkpoints, load_checkpoint, save_checkpoint
from mlx_hybrid.training.events import Finished, Interrupted, Note, Trained

HARD = changed(
    steps=4, validate_every=2, orthogonal_learning_rate=0.15, weight_decay=0.1
)  # far enough that butterflies fold


def stopped_at(step: int):
    calls = iter(range(1, 100))
    return lambda: next(calls) == step


@pytest.mark.parametrize(
    ("method", "accumulate"), [*((method, 1) for method in METHODS), ("hybrid", 2), ("hybrid-boft", 3)]
)
def test_stopped_and_resumed_is_never_stopped(method, accumulate, tmp_path):
    settings = changed(HARD, accumulate=accumulate, batch_size=2)
    drop = {} if method in ("hra", "boft", "full") else {"dropout": 0.2}
    straight = material(method, settings, **drop)
    progress = Progress()
    run(*straight, settings, progress=progress)

    first, before = material(method, settings, **drop), Progress()
    events = run(*first, settings, progress=before, stop=stopped_at(2))
    assert isinstance(events[-1], Interrupted)
    assert not same(everything(*first), everything(*straight))
    save_checkpoint(tmp_path / "checkpoints", *first, before)

    second = material(method, settings, **drop)  # a new process would start so
    after = load_checkpoint(tmp_path / "checkpoints", *second)
    assert (after.step, after.best_loss, after.best_step) == (2, before.best_loss, before.best_step)
    assert same(everything(*second), everything(*first))
    run(*second, settings, progress=after)
    assert same(everything(*second), everything(*straight))
    assert (after.step, after.best_loss, after.best_step) == (
        progress.step,
        progress.best_loss,
        progress.best_step,
    )


GUARDED = changed(steps=30, validate_every=2, patience=2, report_every=3, learning_rate=0.5)


@pytest.fixture(scope="module")
def guarded():
    """A run with early stopping, lifted languages and reports of three steps: its state, progress and reports."""
    pair, progress = material("hybrid", GUARDED), Progress()
    events = run(*pair, GUARDED, progress=progress, temperature=3.0)
    assert progress.ended == "patience"
    assert progress.step < 30
    return everything(*pair), progress, [(e.step, e.loss) for e in events if isinstance(e, Trained)]


@pytest.mark.parametrize("step", [1, 4])
def test_stopped_anywhere_a_guarded_run_ends_as_the_unbroken_one(step, guarded, tmp_path):
    """Also within the steps of a report; and it stays ended."""
    state, progress, reports = guarded
    first, before = material("hybrid", GUARDED), Progress()
    run(*first, GUARDED, progress=before, stop=stopped_at(step), temperature=3.0)
    assert before.step == step
    save_checkpoint(tmp_path / "checkpoints", *first, before)
    second = material("hybrid", GUARDED)
    after = load_checkpoint(tmp_path / "checkpoints", *second)
    again = run(*second, GUARDED, progress=after, temperature=3.0)
    assert same(everything(*second), state)
    assert unhurried(after) == unhurried(progress)
    told = [(e.step, e.loss) for e in again if isinstance(e, Trained)]
    assert told == [row for row in reports if row[0] > step]

    save_checkpoint(tmp_path / "checkpoints", *second, after)
    kept = load_checkpoint(tmp_path / "checkpoints", *second)
    assert [type(e) for e in run(*second, GUARDED, progress=kept)] == [Note, Finished]
    assert same(everything(*second), state)


def unhurried(progress: Progress) -> dict:
    """Everything but the seconds."""
    values = dataclasses.asdict(progress)
    return values | {"seconds": 0, "window": values["window"] | {"seconds": 0}}


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    """Three checkpoints of one run, and what adapter and optimiser were at each."""
    folder, pair, states = tmp_path_factory.mktemp("run") / "checkpoints", material("hybrid", layers=1), []
    for step in (1, 2, 3):
        run(*pair, changed(steps=step), progress=Progress(step=step - 1), held_back=[])
        save_checkpoint(folder, *pair, Progress(step=step, best_loss=1.0 / step))
        states.append(everything(*pair))
    return folder, states


@pytest.fixture
def saved(three, tmp_path):
    """A copy of them to spoil."""
    folder, states = three
    return shutil.copytree(folder, tmp_path / "checkpoints"), states


def test_the_newest_ones_are_kept(saved):
    folder, states = saved
    assert [path.name for path in checkpoints(folder)] == ["step-0000002", "step-0000003"]
    assert sorted(path.name for path in folder.iterdir()) == ["step-0000002", "step-0000003"]
    fresh = material("hybrid", layers=1, seed=9)
    assert load_checkpoint(folder, *fresh) == Progress(step=3, best_loss=1.0 / 3)
    assert same(everything(*fresh), states[2])


@pytest.mark.parametrize(("keep", "left"), [(1, [4]), (3, [2, 3, 4]), (9, [2, 3, 4])])
def test_as_many_are_kept_as_asked_for(keep, left, saved):
    folder, _ = saved
    save_checkpoint(folder, *material("hybrid", layers=1), Progress(step=4), keep=keep)
    assert [path.name for path in checkpoints(folder)] == [f"step-{n:07d}" for n in left]


def cut_off(path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def say(folder, **changes) -> None:
    saved = json.loads((folder / "progress.json").read_text())
    (folder / "progress.json").write_text(json.dumps(saved | changes))


SPOILT = {
    "adapter cut off": lambda f: cut_off(f / "adapter.safetensors"),
    "optimiser cut off": lambda f: cut_off(f / "optimizer.safetensors"),
    "progress cut off": lambda f: cut_off(f / "progress.json"),
    "progress without a step": lambda f: say(f, step=None),
    "progress of another format": lambda f: say(f, format=1),
    "progress with a crooked window": lambda f: say(f, window=3),
    "progress that is a list": lambda f: (f / "progress.json").write_text("[]"),
    "adapter missing": lambda f: (f / "adapter.safetensors").unlink(),
    "optimiser missing": lambda f: (f / "optimizer.safetensors").unlink(),
    "progress missing": lambda f: (f / "progress.json").unlink(),
    "optimiser empty": lambda f: (f / "optimizer.safetensors").write_bytes(b""),
}


@pytest.mark.parametrize("fault", SPOILT)
def test_a_spoilt_newest_checkpoint_falls_back_to_the_one_before(fault, saved):
    folder, states = saved
    SPOILT[fault](checkpoints(folder)[-1])
    fresh = material("hybrid", layers=1, seed=9)
    assert load_checkpoint(folder, *fresh).step == 2
    assert same(everything(*fresh), states[1])


def test_without_any_checkpoint_it_says_so(saved, tmp_path):
    folder, _ = saved
    pair = material("hybrid", layers=1)
    with pytest.raises(ConfigError, match="no checkpoint there"):
        load_checkpoint(tmp_path / "none" / "checkpoints", *pair)
    for path in checkpoints(folder):
        cut_off(path / "adapter.safetensors")
    with pytest.raises(
        ConfigError, match=r"none of its checkpoints can be read: step-0000003 .*step-0000002"
    ):
        load_checkpoint(folder, *pair)


def test_a_checkpoint_of_another_configuration_is_refused(saved):
    folder, _ = saved
    for other in (material("lora", layers=1), material("hybrid", layers=1, rank=4)):
        with pytest.raises(ConfigError, match="none of its checkpoints can be read"):
            load_checkpoint(folder, *other)


def test_a_save_that_fails_leaves_the_checkpoints_as_they_were(saved, monkeypatch):
    folder, states = saved
    pair = material("hybrid", layers=1)

    def full_disk(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint_module, "write_json", full_disk)
    with pytest.raises(MlxHybridError, match="the disk is full"):
        save_checkpoint(folder, *pair, Progress(step=4))
    monkeypatch.undo()
    fresh = material("hybrid", layers=1, seed=9)
    assert load_checkpoint(folder, *fresh).step == 3
    assert same(everything(*fresh), states[2])
    save_checkpoint(folder, *pair, Progress(step=4))  # what was left half-written is in nobody's way
    assert [path.name for path in checkpoints(folder)] == ["step-0000003", "step-0000004"]
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]


def test_a_half_written_folder_is_never_taken_for_a_checkpoint(saved):
    folder, _ = saved
    shutil.copytree(folder / "step-0000003", folder / ".step-0000009.tmp")
    assert [path.name for path in checkpoints(folder)] == ["step-0000002", "step-0000003"]
    assert (
        json.loads((folder / "step-0000003" / "progress.json").read_text())["format"]
        == checkpoint_module.FORMAT
    )
    assert store.FORMAT == 2
