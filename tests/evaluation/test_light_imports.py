import subprocess
import sys
from pathlib import Path

import mlx_hybrid.evaluation

HEAVY = ("mlx_lm", "transformers", "torch", "sacrebleu", "sklearn", "scipy", "huggingface_hub")


def test_importing_the_modules_loads_nothing_heavy():
    folder = Path(mlx_hybrid.evaluation.__file__).parent
    names = [f"mlx_hybrid.evaluation.{path.stem}" for path in folder.glob("[a-z]*.py")]
    code = f"import sys, {', '.join(names)}; print([m for m in {HEAVY!r} if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
