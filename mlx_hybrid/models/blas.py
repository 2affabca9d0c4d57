"""On Linux, use OpenBLAS for float32 matrix products when the system has it: about 15 times MLX's bundled BLAS."""

import ctypes
import os
import sys


def prefer_openblas() -> bool:
    """Load OpenBLAS ahead of MLX's own BLAS; works only before `mlx.core` is imported. Whether it was found."""
    if sys.platform != "linux" or "mlx.core" in sys.modules:
        return False
    os.environ.setdefault(
        "OPENBLAS_NUM_THREADS", "1"
    )  # two threads on two cores took 1.6 times as long a step
    try:
        ctypes.CDLL("libopenblas.so.0", mode=ctypes.RTLD_GLOBAL)
    except OSError:
        return False
    return True
