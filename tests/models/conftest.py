"""What tests of published models share: the releases in small."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import vtr.models.official
from tests.helpers import WORDS
from vtr.data.text import Tokenizer
from vtr.encoders.base import EncoderConfig
from vtr.encoders.bert import BertConfig
from vtr.models.video_text import ModelConfig


@pytest.fixture
def small_release(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Tokenizer]:
    """Call it with the table of sizes, the small ones, and maybe the width of the text side (default: the video's).

    The published models get the same tensors with other widths; a cache folder of their own, no network.
    """

    def make(table: dict[str, EncoderConfig], sizes: dict[str, EncoderConfig], hidden: int = 0) -> Tokenizer:
        tokenizer = Tokenizer.train(WORDS, 90)
        for name, size in sizes.items():
            monkeypatch.setitem(table, name, size)

        def config(video: EncoderConfig) -> ModelConfig:
            text = BertConfig(
                vocab_size=tokenizer.vocab_size, hidden=hidden or video.dim, layers=3, fusion_layer=2, heads=4,
                intermediate=64, max_positions=64, vision_width=video.dim,
            )  # fmt: skip
            return ModelConfig(video=video, text=text, embed_dim=16)

        def no_network() -> None:
            raise OSError("no network")

        monkeypatch.setattr(vtr.models.official, "_retrieval_config", config)
        monkeypatch.setattr(vtr.models.official, "reach_hub", no_network)
        monkeypatch.setenv("VTR_CACHE", str(tmp_path / "cache"))
        monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
        (tmp_path / "cache").mkdir()
        tokenizer.save(tmp_path / "cache" / "tokenizer.json")
        return tokenizer

    return make
