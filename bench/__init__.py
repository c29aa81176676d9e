"""Measurements and drills, run from a checkout: python -m bench.NAME. Not part of the installed package."""
