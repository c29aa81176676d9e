"""Pretraining: entry script, loop, objectives, recipes and run state."""
