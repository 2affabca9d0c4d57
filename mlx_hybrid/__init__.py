"""mlx-hybrid: fine-tune multilingual language models on your own machine."""

__version__ = "0.1.0"
