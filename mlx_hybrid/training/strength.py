"""The strength at which a run's adapter is kept: the least that is as good, within noise, as the best."""

from collections.abc import Callable, Iterator

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten

from mlx_hybrid.adapters.attach import dequantise, hybrid_layers
from mlx_hybrid.adapters.store import put_adapter, read_adapter_config
from mlx_hybrid.adapters.strength import at_strength, write_at_strength
from mlx_hybrid.config import Config
from mlx_hybrid.files import new_directory
from mlx_hybrid.models.base import load_base
from mlx_hybrid.run import Run
from mlx_hybrid.training.events import RAW, Note
from mlx_hybrid.training.loop import total_steps
from mlx_hybrid.training.setup import Setup
from mlx_hybrid.training.validation import Validations, mean_loss, summed_losses

STRENGTHS = (0.25, 0.5, 0.75, 1.0)
"""What `train.strength: auto` chooses from."""


def keep_at_strength(config: Config, run: Run, setup: Setup) -> Iterator[Note]:
    """Keep the run's best adapter at `train.strength`, and say what is kept where it is not the plain one."""
    info, wanted = read_adapter_config(run.adapter), config.train.strength
    chosen = info.extra.get("strength", 1.0)
    if wanted != 1 and "strength" not in info.extra:
        put_adapter(setup.base.model, info, run.adapter)
        plain = values_before(config, setup)
        chosen = wanted
        if not wanted:
            sums = losses_by_strength(config, setup, plain)
            chosen, told = least_strength(sums)
            run.update(strengths={f"{t:g}": round(mean_loss(own), 6) for t, own in sums.items()})
            yield Note(told)
        with new_directory(run.adapter) as folder:
            write_at_strength(run.adapter, folder, chosen, plain)
    kept = run.info().get("best_form", RAW)
    run.update(strength=chosen)
    if (kept, chosen) != (RAW, 1.0) or config.train.average != "none" or wanted != 1:
        form = "the raw weights" if kept == RAW else f"their average ({kept})"
        yield Note(f"Kept: {form} of step {run.info().get('best_step')}, at strength {chosen:g}.")


def values_before(config: Config, setup: Setup) -> Callable[[str], mx.array]:
    """What a magnitude, or a weight of `full`, was before training, by its name."""
    if config.adapter.full:
        base = load_base(config.model.name, tokenizer=setup.base.tokenizer).model
        dequantise(base)
        return dict(tree_flatten(base.parameters())).__getitem__
    layers = hybrid_layers(setup.base.model)
    return lambda name: mx.sqrt(layers[name.rpartition(".")[0]]._squares)


def losses_by_strength(
    config: Config, setup: Setup, plain: Callable[[str], mx.array]
) -> dict[float, np.ndarray]:
    """What `summed_losses` gives of the validation records at each strength."""
    steps, sums = total_steps(config.train, len(setup.train)), {}
    records = Validations.plan(setup.valid, setup.train, steps, config.train).whole
    for t in STRENGTHS:
        with at_strength(setup.base.model, t, plain):
            sums[t] = summed_losses(setup.base.model, records, batch_size=config.train.batch_size)
    return sums


def least_strength(sums: dict[float, np.ndarray]) -> tuple[float, str]:
    """The least strength whose loss is within one standard error of the lowest, and why, as a sentence."""
    best = min(sums, key=lambda t: mean_loss(sums[t]))
    limit = mean_loss(sums[best]) + standard_error(sums[best])
    least = min(t for t in sums if mean_loss(sums[t]) <= limit)
    return least, (
        f"Strength {least:g}: validation loss {mean_loss(sums[least]):.3f}, the least strength within one standard "
        f"error ({standard_error(sums[best]):.3f}) of the lowest, {mean_loss(sums[best]):.3f} at {best:g}."
    )


def standard_error(sums: np.ndarray) -> float:
    """Of the mean over tokens, records being what varies: √(n / (n − 1) · Σ (lᵢ − μ cᵢ)²) / Σ cᵢ."""
    losses, counts = sums.T
    left = losses - mean_loss(sums) * counts
    return float(np.sqrt(len(sums) / max(1, len(sums) - 1) * np.sum(left**2)) / max(1.0, counts.sum()))
