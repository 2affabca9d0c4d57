"""GGUF files: read, unpacked to the bit, and named as MLX names things (docs/gguf.md)."""
