"""Guards: what ends a run early, and what is only said."""

import numpy as np
import pytest
from scene import changed, examples, material, run, same, state

from mlx_hybrid.errors import MlxHybridError
from mlx_hybrid.training.batches import make_batch
from mlx_hybrid.training.events import (
    CheckpointDue,
    Finished,
    Note,
    NotFinite,
    Orthogonality,
    Trained,
    Validated,
)
from mlx_hybrid.training.loop import train
from mlx_hybrid.training.progress import SETTLING, LossLevel, Progress, out_of_patience, out_of_time, spike

BATCHES = [make_batch(examples(2))]
RATE = "train.learning_rate"


def notes(losses, level=None) -> list[int]:
    """At which of the steps a warning comes."""
    level = level or LossLevel()
    return [i for i, loss in enumerate(losses) if spike(level, float(loss), BATCHES, i, RATE)]


def test_an_ordinary_loss_gives_no_warning():
    rng = np.random.default_rng(0)
    falling = 3 * np.exp(-np.arange(1000) / 300) + 0.2 * rng.normal(size=1000)
    assert notes(falling) == []


@pytest.mark.parametrize("height", [3.0, 30.0, 1e6])
def test_every_jump_is_told_even_after_another(height):
    losses = 2 + 0.1 * np.random.default_rng(1).normal(size=100)
    losses[60] = losses[63] = 2 + height
    assert notes(losses) == [60, 63]


def test_nothing_is_said_before_there_is_a_level():
    assert notes([2.0, 2.1] * (SETTLING // 2 - 1) + [9.0]) == []


def test_a_warning_names_step_losses_and_records():
    level = LossLevel(mean=2.0, deviation=0.1, steps=50)
    note = spike(level, 9.0, BATCHES, 51, "train.orthogonal_learning_rate")
    assert (
        "Step 51: the loss jumped to 9.00 from 2.00 ± 0.10, on records data.jsonl:1, data.jsonl:2"
        in note.text
    )
    assert note.text.endswith("if it stays there, lower train.orthogonal_learning_rate.")
    assert level.mean < 2.1


def test_limits_of_zero_never_end_a_run():
    assert not out_of_time(Progress(seconds=1e9), 0.0)
    assert not out_of_patience(Progress(stale=1000), 0)
    assert out_of_time(Progress(seconds=61.0), 1.0)
    assert out_of_patience(Progress(stale=2), 2)


def test_patience_ends_the_run_after_as_many_validations():
    settings = changed(steps=40, validate_every=2, patience=3, learning_rate=0.5)
    progress = Progress()
    events = run(*material("hybrid", settings), settings, progress=progress)
    validations = [e for e in events if isinstance(e, Validated)]
    assert [e.best for e in validations[-3:]] == [False] * 3
    assert progress.best_step == validations[-4].step
    assert [type(e) for e in events[-3:]] == [CheckpointDue, Note, Finished]
    assert f"3 validations without a lower loss than {progress.best_loss:.3f}" in events[-2].text
    assert progress.step < 40


def test_time_ends_the_run_validated_and_saved():
    settings = changed(steps=40, validate_every=30, max_minutes=1e-4)
    progress = Progress()
    events = run(*material("hybrid", settings), settings, progress=progress)
    assert progress.ended == "time"
    assert progress.step < 40
    kinds = [type(e) for e in events if not isinstance(e, Note)]
    assert kinds == [Validated, Trained, Orthogonality, Validated, CheckpointDue, Finished]
    notes = [e.text for e in events if isinstance(e, Note)]
    assert "train.max_minutes" in notes[0]
    assert len(notes) == 1 + (not progress.beats_base)


@pytest.mark.parametrize(
    ("method", "rates"),
    [
        ("lora", "train.learning_rate"),
        ("hra", "train.orthogonal_learning_rate"),
        ("hybrid", "train.learning_rate and train.orthogonal_learning_rate"),
    ],
)
def test_a_step_without_a_number_hands_over_its_batches_and_names_the_rates_that_act(method, rates):
    settings = changed(learning_rate=1e30, orthogonal_learning_rate=1e30, clip=0.0)
    model, optimizer = material(method, settings)
    seen = []
    events = train(model, optimizer, examples(), [], settings, seed=0, progress=Progress())
    with pytest.raises(MlxHybridError, match=f"stopped being a number.* Lower {rates}, or look"):
        seen.extend(events)
    assert isinstance(seen[-1], NotFinite)
    assert seen[-1].batches[0].where


def test_guards_that_do_not_act_change_nothing():
    plain, guarded = changed(steps=5), changed(steps=5, patience=50, max_minutes=60.0, keep_checkpoints=7)
    states = []
    for settings in (plain, guarded):
        pair = material("hybrid", settings)
        run(*pair, settings)
        states.append(state(pair[0]))
    assert same(*states)
