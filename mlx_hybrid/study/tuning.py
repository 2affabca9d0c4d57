"""Which rate and batch size each method trains with: those of least validation loss, of as many trials for each."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

ROUNDS = 4  # trials that each method gets beyond the grid, while some method's best is at an end of its own


@dataclass(frozen=True, order=True)
class Trial:
    """A learning rate and a batch size; 0 is the config's own."""

    rate: float
    batch: int = 0


Tried = Mapping[Trial, float]


def tune(
    methods: Sequence[str],
    rates: Sequence[float],
    batches: Sequence[int],
    losses: Callable[[list[tuple[str, Trial]]], list[float]],
) -> dict[str, dict[Trial, float]]:
    """The loss of every trial of each method.

    All begin with every rate and batch size. While the best of some method is at an end, each gets one trial more: past
    that end, or for a method whose best is not at one, between the best and its better neighbour.
    """
    tried: dict[str, dict[Trial, float]] = {method: {} for method in methods}
    wanted = [(method, Trial(r, b)) for method in methods for b in batches or (0,) for r in rates]
    for left in range(ROUNDS, -1, -1):
        for (method, trial), loss in zip(wanted, losses(wanted), strict=True):
            tried[method][trial] = loss
        ahead = {method: beyond(own, rates, batches) for method, own in tried.items()}
        if not left or not any(ahead.values()):
            return tried
        wanted = [(method, ahead[method] or between(tried[method])) for method in methods]
    return tried


def best(tried: Tried) -> Trial:
    return min(tried, key=tried.get)


def beyond(tried: Tried, rates: Sequence[float], batches: Sequence[int]) -> Trial | None:
    """The trial past the end that the best is at, None where it is at none; a batch size goes one step past."""
    chosen = best(tried)
    others = sorted(trial.rate for trial in tried if trial.batch == chosen.batch)
    if len(rates) > 1 and chosen.rate in (others[0], others[-1]):
        low = chosen.rate == others[0]
        step = rates[0] / rates[1] if low else rates[-1] / rates[-2]
        return Trial(rounded(chosen.rate * step), chosen.batch)
    if len(batches) > 1 and chosen.batch in (batches[0], batches[-1]):
        batch = chosen.batch // 2 if chosen.batch == batches[0] else chosen.batch * 2
        return Trial(chosen.rate, batch) if batch and Trial(chosen.rate, batch) not in tried else None
    return None


def between(tried: Tried) -> Trial:
    """A trial between the best and the better of its neighbours in rate; where there is none, a little above it."""
    chosen = best(tried)
    beside = [trial for trial in tried if trial.batch == chosen.batch and trial != chosen]
    below, above = ([t for t in beside if (t.rate < chosen.rate) == lower] for lower in (True, False))
    near = sorted(below)[-1:] + sorted(above)[:1]
    other = min(near, key=tried.get).rate if near else 1.5 * chosen.rate
    return Trial(rounded((chosen.rate * other) ** 0.5), chosen.batch)


def rounded(rate: float) -> float:
    """Three digits: a folder is named by it."""
    return float(f"{rate:.3g}")
