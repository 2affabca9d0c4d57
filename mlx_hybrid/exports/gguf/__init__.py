"""Adapters and models as GGUF files for llama.cpp, ollama and LM Studio."""
