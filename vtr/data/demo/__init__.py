"""The demo corpus: rendered on first use from a seed, kept in a folder, found again afterwards."""

from __future__ import annotations

from vtr.data.demo.captions import held_out_triples, warmup_triples
from vtr.data.demo.corpus import DemoCorpus, demo_texts, ensure_demo_corpus, open_demo_corpus

__all__ = ["DemoCorpus", "demo_texts", "ensure_demo_corpus", "held_out_triples", "open_demo_corpus", "warmup_triples"]
