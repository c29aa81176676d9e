"""The library benchmark's parts on a few hundred vectors, exact and indexed."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench import library as bench
from vtr.data.text import Tokenizer
from vtr.encoders.bert import BertConfig
from vtr.encoders.videomamba import VideoMambaConfig
from vtr.library import index
from vtr.models.video_text import ModelConfig, VideoTextModel


@pytest.fixture
def embeddings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """400 vectors of width 16, and a small model that they claim to be of."""

    def model(width: int, folder: Path) -> VideoTextModel:
        text = BertConfig(vocab_size=60, hidden=32, layers=2, fusion_layer=1, heads=2, intermediate=32, vision_width=32)
        video = VideoMambaConfig(image_size=32, dim=32, depth=1, pool_norm=True)
        made = VideoTextModel(ModelConfig(video=video, text=text, embed_dim=width), Tokenizer.train(["a dog"], 60))
        made.eval().save_pretrained(folder)
        return made

    monkeypatch.setattr(bench, "_model", model)
    bench.generate(tmp_path, 400, 16, 20)
    return tmp_path


@pytest.mark.parametrize("kind", ["flat", "ivf-flat"])
def test_every_part_of_the_benchmark_runs(embeddings: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    if kind != "flat":
        monkeypatch.setattr(index, "EXACT_UP_TO", 100)
    built = bench._build(embeddings, None)
    assert built["index"]["type"] == kind
    assert bool(bench._raw(embeddings)) == (kind != "flat")
    asked = bench._query(embeddings, 400, 20, 5)
    assert asked["recall_at_10"] >= 0.9
    assert asked["hits"]["p50_ms"] > 0
    assert set(bench._against_raw(embeddings, 400, 20, 5)) == (set() if kind == "flat" else {"ids", "raw_ids"})
