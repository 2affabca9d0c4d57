"""Tuning: as many trials for every method, past an end that is chosen, and finer where none is."""

import math

import pytest

from mlx_hybrid.study.tuning import ROUNDS, Trial, best, tune

RATES = (1e-4, 3e-4, 1e-3)


def valley(lowest: float, batch: int = 8):
    """A loss that is least at a rate and a batch size."""
    return lambda trial: abs(math.log(trial.rate / lowest)) + 0.1 * abs(math.log2((trial.batch or 8) / batch))


def tuned(lowest: dict[str, float], rates=RATES, batches=(), batch: int = 8) -> dict[str, dict[Trial, float]]:
    asked = []

    def losses(wanted):
        asked.extend(wanted)
        return [valley(lowest[method], batch)(trial) for method, trial in wanted]

    tried = tune(list(lowest), rates, batches, losses)
    assert len(asked) == len(set(asked)) == sum(map(len, tried.values()))  # nothing twice
    return tried


@pytest.mark.parametrize(
    "lowest",
    [
        {"inside": 3e-4, "as well": 2.9e-4},
        {"inside": 3e-4, "above": 5e-3},
        {"below": 2e-5, "above": 5e-3, "inside": 4e-4},
        {"far": 10.0, "inside": 3e-4},
    ],
    ids=["none at an end", "above", "both ways", "too far"],
)
def test_every_method_has_as_many_trials_and_ends_are_passed(lowest):
    tried = tuned(lowest)
    counts = {len(own) for own in tried.values()}
    assert len(counts) == 1
    assert counts.pop() <= len(RATES) + ROUNDS
    for method, own in tried.items():
        chosen, rates = best(own).rate, sorted(trial.rate for trial in own)
        assert own[best(own)] == min(own.values())
        if method == "far":
            assert (chosen, len(own)) == (max(rates), len(RATES) + ROUNDS)
        else:
            assert min(rates) < chosen < max(rates)
            assert abs(math.log(chosen / lowest[method])) <= math.log(3.4) / 2
    if set(lowest) == {"inside", "as well"}:
        assert all(len(own) == len(RATES) for own in tried.values())


def test_methods_that_wait_are_tuned_finer():
    tried = tuned({"inside": 4e-4, "above": 5e-3})
    finer = sorted(trial.rate for trial in tried["inside"])
    assert set(RATES) < set(finer)
    assert all(RATES[0] < rate < RATES[-1] for rate in set(finer) - set(RATES))


def test_batch_sizes_are_chosen_with_rates_and_go_one_step_past_an_end():
    tried = tuned({"one": 3e-4, "two": 3e-4}, batches=(4, 8), batch=16)
    for own in tried.values():
        assert {Trial(r, b) for r in RATES for b in (4, 8)} <= set(own)
        assert best(own) == Trial(3e-4, 16)
        assert max(trial.batch for trial in own) == 16
    alone = tuned({"one": 3e-4}, rates=(3e-4,), batches=(1, 2), batch=1)["one"]
    assert (best(alone), len(alone)) == (Trial(3e-4, 1), 2)
