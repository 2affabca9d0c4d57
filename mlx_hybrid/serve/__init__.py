"""An OpenAI-compatible server on this machine."""
