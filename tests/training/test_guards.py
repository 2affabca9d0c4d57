"""Guards: what ends a run early, and what is only said."""

import pytest
from scene import changed, examples, material, run, same, state

from mlx_hybrid.errors import MlxHybridError
from mlx_hybrid.training.checkpoint import Progress
from mlx_hybrid.training.events import (
    CheckpointDue,
    Finished,
    Note,
    Orthogonality,
    Trained,
    Validated,
)
from mlx_hybrid.training.loop import Training


def test_patience_ends_the_run_after_as_many_validations():
    settings = changed(steps=40, validate_every=1, patience=3, learning_rate=0.5)
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
def test_a_step_without_a_number_names_its_records_and_the_rates_that_act(method, rates):
    settings = changed(learning_rate=1e30, orthogonal_learning_rate=1e30, clip=0.0)
    model, optimizer = material(method, settings)
    told = rf"stopped being a number at step \d, on records data\.jsonl:\d+.* Lower {rates}, or look"
    with pytest.raises(MlxHybridError, match=told):
        list(Training(model, optimizer, examples(), [], settings, 0, Progress()))


def test_guards_that_do_not_act_change_nothing():
    plain, guarded = changed(steps=3), changed(steps=3, patience=50, max_minutes=60.0, keep_checkpoints=7)
    states = []
    for settings in (plain, guarded):
        pair = material("hybrid", settings)
        run(*pair, settings)
        states.append(state(pair[0]))
    assert same(*states)
