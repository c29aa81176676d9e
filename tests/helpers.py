"""Small real videos and a small real model for tests."""

from __future__ import annotations

import io
from pathlib import Path

import av
import numpy as np
import torch

from vtr.data.text import Tokenizer
from vtr.encoders.bert import BertConfig
from vtr.encoders.videomamba import VideoMambaConfig
from vtr.model import ModelConfig, VideoTextModel

WORDS = ["a red square moves left", "a blue circle moves right", "a green star grows on the grass", "a dog runs"]


def video_bytes(seed: int = 0, frames: int = 12, size: int = 48) -> bytes:
    """An H.264 clip of a bright square on a dark, seeded background; 8 fps."""
    rng = np.random.default_rng(seed)
    back = rng.integers(0, 90, 3)
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as file:
        stream = file.add_stream("libx264", rate=8)
        stream.width = stream.height = size
        stream.pix_fmt = "yuv420p"
        for i in range(frames):
            image = np.full((size, size, 3), back, np.uint8)
            image[10:26, i : i + 16] = rng.integers(180, 255, 3)
            file.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        file.mux(stream.encode())
    return buffer.getvalue()


def write_videos(folder: Path, count: int, frames: int = 12) -> list[Path]:
    """`count` different clips in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"clip{i}.mp4" for i in range(count)]
    for i, path in enumerate(paths):
        path.write_bytes(video_bytes(i, frames))
    return paths


def small_model(seed: int = 0) -> VideoTextModel:
    """An untrained model that encodes in milliseconds."""
    torch.manual_seed(seed)
    tokenizer = Tokenizer.train(WORDS, 120)
    config = ModelConfig(
        video=VideoMambaConfig(image_size=32, dim=32, depth=2, num_frames=4, pool_norm=True, align_dim=16),
        text=BertConfig(
            vocab_size=tokenizer.vocab_size, hidden=32, layers=3, fusion_layer=2, heads=4, intermediate=64,
            max_positions=32, dropout=0.0, vision_width=32,
        ),
        embed_dim=16, pixel_mean=(0.5, 0.5, 0.5), pixel_std=(0.5, 0.5, 0.5),
    )  # fmt: skip
    return VideoTextModel(config, tokenizer).eval()
