"""What a run's adapter gained on the records that it held out, and what a packed model keeps of that."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from mlx_hybrid.adapters.store import load_adapter
from mlx_hybrid.errors import ConfigError, DataError
from mlx_hybrid.evaluation.benchmarks.questions import held_back
from mlx_hybrid.evaluation.scoring import sequence_nll
from mlx_hybrid.exports.adapter import Source
from mlx_hybrid.models.base import load_base, tokenizer_for
from mlx_hybrid.records.files import find_sources
from mlx_hybrid.records.template import make_examples
from mlx_hybrid.run import Run

MOST = 200
"""Records that are measured: the loss of so many is known to a few per cent."""


def held_out_losses(source: Source, packed: Path) -> dict[str, float] | None:
    """Loss, nats a token, of base, adapter and the model in `packed` on what the adapter's run held out.

    None for an adapter outside of a run, and where the records are no longer there or have changed.
    """
    folder = source.folder.resolve().parent
    if not (folder / "run.json").is_file():
        return None
    run, base = Run(folder), str(source.base.folder)
    config = run.config_here()
    config = replace(config, model=replace(config.model, name=base))
    try:
        split = held_back(config, find_sources(config.data), run.info().get("data_identity", ""))
    except (ConfigError, DataError):
        return None
    limit = {"max_tokens": config.train.max_tokens, "too_long": config.train.too_long}
    tokenizer = tokenizer_for(config.model)
    examples = make_examples((split.test or split.valid)[:MOST], tokenizer, **limit).examples
    if not examples:
        return None
    model = load_base(base, tokenizer=tokenizer).model
    found = {"base": mean_loss(model, examples)}
    load_adapter(model, source.folder)
    found["adapter"] = mean_loss(model.eval(), examples)
    del model
    found["packed"] = mean_loss(load_base(str(packed), tokenizer=tokenizer).model, examples)
    return found | {"records": len(examples)}


def mean_loss(model: Any, examples: list) -> float:
    nats, counts = sequence_nll(model, [e.tokens for e in examples], [e.trained for e in examples])
    return float(nats.sum() / counts.sum())
