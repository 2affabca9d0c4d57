"""Fail when CUDA libraries got into the test environment on Linux: the CPU build of PyTorch needs none."""

import sys
from importlib import metadata

found = sorted(
    {
        name
        for d in metadata.distributions()
        if (name := (d.metadata["Name"] or "").lower()).startswith("nvidia-")
    }
)
if sys.platform == "linux" and found:
    sys.exit(
        f"CUDA libraries were installed: {', '.join(found)}. Ask pip for torch==2.13.0 in the same command."
    )
