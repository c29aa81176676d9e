"""Zero-shot evaluation: protocols, metrics, re-ranking."""
