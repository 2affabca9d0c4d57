"""Benchmarks as records, and real spelling variants."""
