"""Validation within its budget, averages beside the weights, and the strength that is kept."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from scene import changed, everything, material, run, same, state
from test_checkpoint import stopped_at

from mlx_hybrid.records.examples import Example
from mlx_hybrid.training.checkpoint import Progress, load_checkpoint, save_checkpoint
from mlx_hybrid.training.events import Note, Validated
from mlx_hybrid.training.validation import least_strength, plan, standard_error, stratified


def records(count: int, length: int = 20) -> list[Example]:
    """Three languages and two labels, unevenly."""
    return [
        Example(
            [5] * length, [True] * length, f"r:{n}", "sw" if n % 4 == 0 else "en", 9, label="ab"[n % 3 == 0]
        )
        for n in range(count)
    ]


@pytest.mark.parametrize(
    ("held_back", "given", "size", "every"),
    [
        (20, {}, 20, 10),  # 240 of 240 records: all of them, eleven times
        (40, {}, 32, 17),
        (128, {"validate_every": 5}, 32, 5),  # as often as it is asked for
        (128, {"validate_share": 0.0}, 128, 10),
        (128, {"validate_share": 1.0}, 128, 10),
        (128, {"average": "ema"}, 32, 50),
    ],
)
def test_a_tenth_of_the_time_pays_for_so_many_records_and_validations(held_back, given, size, every):
    config = changed(steps=100, batch_size=8, **({"validate_every": 0} | given))
    sample, found = plan(records(held_back), records(64), 100, config)
    assert (len(sample), found) == (size, every)


def test_a_sample_is_of_every_language_and_label_in_proportion_and_always_the_same():
    everyone = records(240)
    picked = stratified(everyone, 40)
    assert [e.where for e in picked] == [e.where for e in stratified(everyone, 40)]
    counts, whole = (Counter((e.language, e.label) for e in some) for some in (picked, everyone))
    assert counts.keys() == whole.keys()
    assert all(abs(counts[key] - whole[key] / 6) < 1 for key in whole)


RISING = changed(steps=10, validate_every=4, learning_rate=0.5, warmup=0.0, schedule="constant")


def test_a_run_whose_loss_rises_begins_again_as_a_run_of_half_the_rates():
    pair, progress = material("full", RISING), Progress()
    told = [e.text for e in run(*pair, RISING, progress=progress) if isinstance(e, Note)]
    again = [text for text in told if "begins again" in text]
    assert progress.halvings == len(again) >= 1
    assert "Step 1: the validation loss rose from" in again[0]
    assert "by more than 10 %; the run begins again with 0.5 of" in again[0]
    half = replace(RISING, learning_rate=0.5 * 0.5**progress.halvings)
    other, alone = material("full", half), Progress()
    run(*other, half, progress=alone)
    assert alone.halvings == 0
    assert same(state(pair[0]), state(other[0]))


@pytest.mark.parametrize("step", [1, 2, 9])
@pytest.mark.parametrize("average", ["ema", "last"])
def test_stopped_anywhere_it_begins_again_and_averages_as_the_unbroken_run(step, average, tmp_path):
    settings, folder = replace(RISING, average=average), tmp_path / "checkpoints"
    straight, progress = material("full", settings), Progress()
    wanted = [e.loss for e in run(*straight, settings, progress=progress) if isinstance(e, Validated)]
    first, before = material("full", settings), Progress()
    events = run(*first, settings, progress=before, stop=stopped_at(step))
    save_checkpoint(folder, *first, before)
    second = material("full", settings)
    after = load_checkpoint(folder, *second)
    events += run(*second, settings, progress=after)
    assert [e.loss for e in events if isinstance(e, Validated)] == wanted
    assert same(everything(*second), everything(*straight))
    assert after == replace(progress, seconds=after.seconds, window=after.window)
    assert after.halvings >= 1
    assert same(after.average, progress.average)


@pytest.mark.parametrize("method", ["lora", "dora", "hra", "hybrid-boft", "full"])
def test_the_average_is_validated_beside_the_weights_and_leaves_them_alone(method):
    settings = changed(steps=12, validate_every=6, validate_share=0.0)
    plain = material(method, settings)
    run(*plain, settings)
    averaging = replace(settings, average="ema")
    pair = material(method, averaging)
    progress = Progress()
    seen = [e for e in run(*pair, averaging, progress=progress) if isinstance(e, Validated)]
    assert [e.form for e in seen] == ["raw", "raw", "raw", "ema", "raw", "ema"]
    assert same(state(pair[0]), state(plain[0]))
    best = min(seen[1:], key=lambda e: e.loss)
    assert (progress.best_loss, progress.best_form, progress.best_step) == (best.loss, best.form, best.step)


def test_the_strength_is_the_least_within_a_standard_error_of_the_best():
    rng = np.random.default_rng(0)
    counts = rng.integers(1, 9, 50).astype(float)
    losses = counts * rng.uniform(0.5, 1.5, 50)
    far = {0.25: 1.5, 0.5: 1.02, 0.75: 1.0, 1.0: 1.01}
    sums = {t: np.stack([losses * times, counts], axis=1) for t, times in far.items()}
    mean = losses.sum() / counts.sum()
    exact = np.std(losses - mean * counts, ddof=1) * np.sqrt(50) / counts.sum()
    assert standard_error(sums[0.75]) == pytest.approx(exact)
    least, told = least_strength(sums)
    assert least == (0.5 if 0.02 * mean <= exact else 0.75)
    assert f"{mean:.3f} at 0.75" in told


def test_a_run_of_too_few_records_has_no_standard_error_and_keeps_the_best():
    sums = {t: np.array([[loss, 2.0]]) for t, loss in ((0.5, 3.0), (1.0, 2.0))}
    assert standard_error(sums[1.0]) == 0.0
    assert least_strength(sums)[0] == 1.0
