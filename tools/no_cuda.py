"""Fail when CUDA libraries got into the test environment on Linux: the CPU build of PyTorch needs none."""

import sys
from importlib import metadata

names = {(own.metadata["Name"] or "").lower() for own in metadata.distributions()}
found = ", ".join(sorted(name for name in names if name.startswith("nvidia-")))
if sys.platform == "linux" and found:
    sys.exit(f"CUDA libraries were installed: {found}. Ask pip for torch==2.13.0 in the same command.")
