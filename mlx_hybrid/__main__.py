"""`python -m mlx_hybrid` is `mlx-hybrid`."""

from mlx_hybrid.cli import main

main(prog_name="mlx-hybrid")
