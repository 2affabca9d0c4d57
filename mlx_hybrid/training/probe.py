"""Measure a run's peak memory by its longest batch, in a process of its own: running out ends that process alone."""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from mlx_hybrid.config import Config, build_config, to_tree
from mlx_hybrid.errors import MlxHybridError
from mlx_hybrid.records.template import Example
from mlx_hybrid.training.memory.estimate import Load

STEPS = 2  # the second has moments to update


def probe(config: Config, load: Load) -> int:
    """Peak bytes of the gradient start and of two steps on a batch of `load`, of random tokens.

    Raises MlxHybridError when the process dies, with what it said last.
    """
    task = {"config": to_tree(config), "load": [load.rows, load.tokens, load.targets]}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "task.json"
        path.write_text(json.dumps(task), encoding="utf-8")
        done = subprocess.run(
            [sys.executable, "-m", "mlx_hybrid.training.probe", str(path)],
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode:
        said = (done.stderr.strip().splitlines() or ["nothing"])[-1]
        raise MlxHybridError(
            f"The probe ended with code {done.returncode} before it was done, as it does out of memory; it said: {said}"
        )
    return int(json.loads(done.stdout.splitlines()[-1])["peak_bytes"])


def random_examples(load: Load, vocabulary: int) -> list[Example]:
    """A record of each row's size; its last tokens are trained."""
    import numpy as np

    rng = np.random.default_rng(0)
    length, learnt = load.tokens + 1, -(-load.targets // load.rows)
    return [
        Example(
            rng.integers(0, vocabulary, length).tolist(),
            [i >= length - learnt for i in range(length)],
            f"probe:{number}",
            "",
            length,
        )
        for number in range(1, load.rows + 1)
    ]


def measure_peak(config: Config, load: Load) -> int:
    """In this process: load the base, attach, start and step. Peak bytes since the base was there."""
    import mlx.core as mx

    from mlx_hybrid.models.base import load_base
    from mlx_hybrid.training.batches import make_batch
    from mlx_hybrid.training.material import Material, attach_adapter, start_from_examples
    from mlx_hybrid.training.memory.limits import set_limits
    from mlx_hybrid.training.packing import make_packed_batch, packs_exactly
    from mlx_hybrid.training.step import compiles, make_step

    base = load_base(config.model)
    set_limits()
    vocabulary = (base.config | base.config.get("text_config", {}))["vocab_size"]
    examples = random_examples(load, vocabulary)
    material = Material(base, None, examples, [], [])
    attach_adapter(config, material)
    mx.eval(base.model.parameters(), material.optimizer.state)
    mx.clear_cache()
    mx.reset_peak_memory()
    for _ in start_from_examples(config, material):
        pass
    base.model.train()
    settings = config.train
    packed = settings.packing == "auto" and packs_exactly(base.model)
    lay_out = make_packed_batch if packed else make_batch
    step = make_step(
        base.model, material.optimizer, accumulate=settings.accumulate, compiled=compiles(settings.compile)
    )
    for _ in range(STEPS):
        step([lay_out(examples)] * settings.accumulate)
    return mx.get_peak_memory()


def main(path: str) -> None:
    from mlx_hybrid.models.blas import prefer_openblas

    prefer_openblas()
    task = json.loads(Path(path).read_text(encoding="utf-8"))
    print(
        json.dumps({"peak_bytes": measure_peak(build_config(task["config"], "probe"), Load(*task["load"]))})
    )


if __name__ == "__main__":
    main(sys.argv[1])
