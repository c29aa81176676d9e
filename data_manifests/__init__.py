"""Corpora and benchmarks as TOML data files."""
