"""The loop's promises: one division, the same bytes for a seed, and that looking changes nothing."""

import math
import shutil
from itertools import islice

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten
from scene import METHODS, changed, everything, examples, listening, material, run, same, state, trained
from test_loss import exact
from tolerances import ADAM, DEFECT, LOGITS, ROUNDING
from toys import VOCABULARY

from mlx_hybrid.adapters.attach import hybrid_layers, rotations
from mlx_hybrid.adapters.frozen import linear_shape
from mlx_hybrid.errors import MlxHybridError
from mlx_hybrid.training.batches import length_bucket, make_batch
from mlx_hybrid.training.checkpoint import Progress, saved_name
from mlx_hybrid.training.events import (
    CheckpointDue,
    Finished,
    Interrupted,
    Note,
    Orthogonality,
    Trained,
    Validated,
)
from mlx_hybrid.training.loop import Training, intervals, total_steps
from mlx_hybrid.training.loss import arrays, make_loss
from mlx_hybrid.training.optimizer import make_step
from mlx_hybrid.training.validation import mean_loss, summed_losses, validate

CHANCE = math.log(VOCABULARY)
COMPILER = shutil.which("g++") or shutil.which("clang++") or shutil.which("c++")
NO_NUMBER = r"stopped being a number at step \d, on records data\.jsonl:\d+.*Lower"


def of_kind(events, kind):
    return [event for event in events if isinstance(event, kind)]


def gradient_of(model, groups) -> tuple[dict, float, int]:
    listener = listening(model)
    step = make_step(model, listener, compiled=False)
    loss, count, _, _ = step([make_batch(group) for group in groups])
    return listener.gradients, loss.item(), int(count.item())


@pytest.mark.parametrize(("method", "pieces"), [("hybrid", 3), ("hybrid-boft", 2), ("full", 6)])
def test_accumulated_pieces_are_one_batch(method, pieces):
    model, _ = material(method)
    records = examples(6, longest=60)
    whole, loss, count = gradient_of(model, [records])
    cut = [records[i::pieces] for i in range(pieces)]
    parts, parts_loss, parts_count = gradient_of(model, cut)
    assert parts_count == count == sum(e.trained_count for e in records)
    assert parts_loss == pytest.approx(loss, rel=ROUNDING)
    alone = [gradient_of(model, [group])[0] for group in cut]
    for name, gradient in whole.items():
        size = mx.max(mx.abs(gradient)).item()
        assert mx.max(mx.abs(parts[name] - gradient)).item() <= LOGITS * size, name
        mean_of_means = sum(g[name] for g in alone) / pieces
        if size > 0:
            assert mx.max(mx.abs(mean_of_means - gradient)).item() > 100 * LOGITS * size, name


def test_the_gradient_is_that_of_the_mean_over_trained_tokens():
    model, _ = material("lora")
    records = examples(3)
    gradient, _, count = gradient_of(model, [records])
    mean = nn.value_and_grad(model, lambda *batch: make_loss(model)(*batch) / count)
    for name, value in tree_flatten(mean(*arrays(make_batch(records)))[1]):
        assert mx.max(mx.abs(gradient[name] - value)).item() <= LOGITS * mx.max(mx.abs(value)).item()


@pytest.mark.parametrize("method", METHODS)
def test_one_seed_repeats_to_the_bit_and_two_differ(method):
    changes = {} if method in ("full", "hra", "boft") else {"dropout": 0.1}
    short = changed(steps=2)
    first = trained(method, short, seed=1, **changes)
    assert same(first, trained(method, short, seed=1, **changes))
    assert not same(first, trained(method, short, seed=2, **changes))


@pytest.mark.parametrize(
    ("method", "mode"),
    [*((method, "") for method in METHODS), ("hybrid", "affine-4")],
)
def test_records_are_learnt_by_heart(method, mode):
    settings = changed(steps=20, batch_size=4, learning_rate=3e-3 if method == "full" else 3e-2,
                       orthogonal_learning_rate=5e-2, report_every=5)  # fmt: skip
    model, optimizer = material(method, settings, mode=mode)
    reports = of_kind(run(model, optimizer, settings, records=examples(4, longest=12), held_back=[]), Trained)
    assert reports[0].loss < 1.2 * CHANCE
    assert reports[-1].loss < 0.6 * CHANCE
    assert all(rotation.defect() <= DEFECT for rotation in rotations(model))


@pytest.mark.parametrize("method", METHODS)
def test_every_run_tells_how_orthogonal_its_rotations_are(method):
    model, optimizer = material(method)
    events = run(model, optimizer, changed(steps=6, validate_every=3), held_back=[])
    seen = of_kind(events, Orthogonality)
    turned = rotations(model)
    assert [e.step for e in seen] == ([3, 6] if turned else [])
    if turned:
        layers = [layer for layer in hybrid_layers(model).values() if layer.rotation is not None]
        eyes = [mx.eye(linear_shape(layer.linear)[0]) for layer in layers]
        dense = [np.array(r.rotate(eye), np.float64) for r, eye in zip(turned, eyes, strict=True)]
        exact = max(np.abs(r @ r.T - np.eye(len(r))).max() for r in dense)
        assert max(np.abs(r - np.eye(len(r))).max() for r in dense) > 100 * DEFECT
        assert seen[-1].defect == pytest.approx(exact, abs=DEFECT / 10)
        assert exact <= DEFECT


@pytest.mark.parametrize(("method", "dropout"), [("hybrid-boft", {"dropout": 0.1}), ("hra", {})])
def test_looking_changes_nothing(method, dropout):
    hard = changed(orthogonal_learning_rate=0.1, steps=5)
    plain = trained(method, hard, **dropout)
    often = changed(hard, report_every=1, validate_every=1, save_every=1)
    assert same(plain, trained(method, often, **dropout))


def test_validation_leaves_the_run_alone_and_is_the_mean_over_tokens():
    model, optimizer = material("lora", dropout=0.5)
    run(model, optimizer)
    held_back = examples(7, seed=5)
    model.train()
    sums = summed_losses(model, held_back, batch_size=3)
    assert model.training
    model.eval()
    for (loss, count), example in zip(sums, held_back, strict=True):
        assert count == example.trained_count
        assert loss == pytest.approx(exact(model, [example]), rel=ROUNDING)
    assert mean_loss(sums) == pytest.approx(exact(model, held_back) / sums[:, 1].sum(), rel=ROUNDING)
    seen = validate(model, held_back, 3, Progress())
    assert seen.loss == pytest.approx(mean_loss(sums), rel=ROUNDING)
    assert list(seen.by_language) == ["en", "sw"]
    for language, value in seen.by_language.items():
        own = [e for e in held_back if e.language == language]
        assert value == pytest.approx(exact(model, own) / sum(e.trained_count for e in own), rel=ROUNDING)


def test_events_tell_the_run():
    model, optimizer = material("hybrid")
    progress = Progress()
    events = run(model, optimizer, changed(steps=9, report_every=3, save_every=5), progress=progress)
    assert [e.step for e in of_kind(events, Trained)] == [3, 6, 9]
    base, *validated = of_kind(events, Validated)
    assert (base.step, base.best, base.loss) == (0, False, progress.base_loss)
    assert [e.step for e in validated] == [4, 8, 9]
    assert [e.step for e in of_kind(events, CheckpointDue)] == [5, 9]
    assert isinstance(events[-1], Finished)
    best = min(validated, key=lambda e: e.loss)
    assert (progress.best_loss, progress.best_step, progress.step) == (best.loss, best.step, 9)
    assert progress.beats_base == (best.loss < base.loss)
    assert [e.best for e in validated] == [
        e.loss < min([f.loss for f in validated[:i]], default=math.inf) for i, e in enumerate(validated)
    ]
    report = of_kind(events, Trained)[0]
    assert report.steps == 9
    assert len(report.mixing) == 7
    assert 0 < report.trained_tokens < report.tokens
    assert report.loss == pytest.approx(CHANCE, abs=1)
    assert report.seconds <= events[-1].seconds


def test_counted_tokens_are_the_records_own():
    model, optimizer = material("lora")
    records = examples(6)
    events = run(model, optimizer, changed(steps=2, batch_size=3, report_every=2), records=records)
    assert of_kind(events, Trained)[0].trained_tokens == sum(e.trained_count for e in records)


def test_a_stop_comes_after_a_whole_step_and_asks_for_a_checkpoint():
    model, optimizer = material("lora")
    calls = iter([False, False, True])
    events = run(model, optimizer, stop=lambda: next(calls), held_back=[])
    assert events[-2:] == [CheckpointDue(3), Interrupted(3)]


@pytest.mark.parametrize("method", ["hybrid-boft", "full"])
def test_a_loss_that_is_no_number_stops_the_run_and_saves_nothing_more(method):
    settings = changed(
        learning_rate=1e30, orthogonal_learning_rate=1e30, clip=0.0, validate_every=1, save_every=1
    )
    model, optimizer = material(method, settings)
    events = []
    steps = Training(model, optimizer, examples(), examples(4, seed=1), settings, 0, Progress())
    with pytest.raises(MlxHybridError, match=NO_NUMBER) as error:
        events.extend(steps)
    assert error.value.exit_code == 1
    step = int(str(error.value).split("step ")[1].split(",")[0])
    assert all(event.step < step for event in events)
    assert all(math.isfinite(e.loss) or not e.best for e in of_kind(events, Validated))


@pytest.mark.parametrize(
    ("examples_", "values", "steps"),
    [(100, {"steps": 7}, 7), (10, {"steps": 0, "epochs": 3, "batch_size": 4}, 9), (1, {"steps": 0, "epochs": 0.1}, 1),
     (10, {"steps": 0, "epochs": 2, "batch_size": 4, "accumulate": 2}, 3)],
)  # fmt: skip
def test_steps_are_given_or_follow_from_epochs(examples_, values, steps):
    assert total_steps(changed(**values), examples_) == steps


@pytest.mark.parametrize(("validate", "save", "found"), [(0, 0, (10, 10)), (7, 0, (7, 7)), (7, 3, (7, 3))])
def test_intervals_default_to_ten_a_run(validate, save, found):
    assert intervals(changed(validate_every=validate, save_every=save), 95) == found


@pytest.mark.skipif(not COMPILER, reason="no C++ compiler, which MLX compiles with on the CPU")
@pytest.mark.parametrize(("method", "dropout"), [("hybrid", {"dropout": 0.2}), ("boft", {})])
def test_compiled_the_run_is_the_same(method, dropout):
    """Up to the order of operations inside fused kernels."""
    settings = changed(steps=2, batch_size=4, grad_checkpoint=bool(dropout), validate_every=0, learning_rate=1e-3,
                       orthogonal_learning_rate=1e-3)  # fmt: skip
    drawn = (examples(4, seed=seed) for seed in range(100))
    width = length_bucket(24)  # which is no wider, so that both draw the same dropout
    records = next(some for some in drawn if max(len(e.tokens) for e in some) == width + 1)
    results = {}
    for compile_ in ("off", "on"):
        model, optimizer = material(method, settings, **dropout, targets=["q_proj", "down_proj"])
        start = state(model)
        events = run(model, optimizer, changed(settings, compile=compile_), records=records, held_back=[])
        results[compile_] = (state(model), of_kind(events, Trained)[-1])
    (plain, report), (compiled, compiled_report) = results["off"], results["on"]
    assert compiled_report.loss == pytest.approx(report.loss, rel=ROUNDING)
    assert compiled_report.gradient_norm == pytest.approx(report.gradient_norm, rel=LOGITS)
    assert compiled_report.mixing == pytest.approx(report.mixing, rel=LOGITS)
    for name, value in plain.items():
        moved = np.linalg.norm(np.array(value - start[name]))
        if moved > 0:
            assert np.linalg.norm(np.array(compiled[name] - value)) <= ADAM * moved, name


def test_the_frozen_base_is_never_touched():
    model, optimizer = material("hybrid-boft", mode="affine-4")
    adapter = state(model)
    names = {name for name, _ in tree_flatten(model.parameters()) if saved_name(name) not in adapter}
    before = {n: v + 0 for n, v in tree_flatten(model.parameters()) if n in names}
    moved = everything(model, optimizer)
    run(model, optimizer)
    after = dict(tree_flatten(model.parameters()))
    assert all(mx.array_equal(before[n], after[n]) for n in names)
    assert not same(moved, everything(model, optimizer))


@pytest.mark.parametrize(
    ("method", "adapter", "rates", "layers"),
    [
        ("lora", {}, {"learning_rate": 4e-3}, 0),
        ("hra", {}, {"orthogonal_learning_rate": 2e-3}, 0),
        ("hybrid", {}, {"learning_rate": 4e-3, "orthogonal_learning_rate": 2e-3}, 7),
        ("hybrid", {"mixing": "off"}, {"learning_rate": 4e-3, "orthogonal_learning_rate": 2e-3}, 0),
        ("full", {}, {"learning_rate": 4e-3}, 0),
    ],
)
def test_a_report_tells_the_rates_and_shares_that_acted(method, adapter, rates, layers):
    settings = changed(
        steps=1, learning_rate=4e-3, orthogonal_learning_rate=2e-3, schedule="constant", warmup=0.0
    )
    report = of_kind(run(*material(method, settings, **adapter), settings, held_back=[]), Trained)[0]
    assert report.rates == pytest.approx(rates)
    assert len(report.mixing) == layers


@pytest.mark.parametrize("compiled", ["off", "on", "auto"])
def test_only_a_compiled_step_pads_to_few_widths_and_auto_compiles_on_a_gpu(compiled):
    settings = changed(compile=compiled)
    training = Training(*material("lora"), examples(), [], settings, 0, Progress())
    widths = {batch.tokens.shape[1] for batch in islice(training.batches, 8)}
    gpu = mx.default_device() != mx.Device(mx.cpu)
    few = widths == {length_bucket(width) for width in widths}
    assert few == {"off": False, "on": True, "auto": gpu}[compiled]


def test_a_run_that_does_not_beat_its_base_says_so():
    notes = {}
    for base_loss in (1e-3, math.inf):  # one that no adapter reaches, and the random base's own
        model, optimizer = material("hybrid")
        progress = Progress(base_loss=base_loss)
        events = run(model, optimizer, changed(steps=4), progress=progress)
        notes[base_loss] = [
            e.text for e in of_kind(events, Note) if "beats the model it began with" in e.text
        ]
        assert progress.beats_base == (not notes[base_loss])
    assert "against 0.001" in notes[1e-3][0]
    assert not notes[math.inf]
