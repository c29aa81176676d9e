"""Small real videos and a small real model for tests."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import av
import numpy as np
import torch

from vtr.data.text import Tokenizer
from vtr.encoders.bert import BertConfig
from vtr.encoders.videomamba import VideoMambaConfig
from vtr.models.video_text import ModelConfig, VideoTextModel

WORDS = ["a red square moves left", "a blue circle moves right", "a green star grows on the grass", "a dog runs"]


@cache
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


def write_tar(path: Path, members: Iterable[tuple[str, bytes]], form: int = tarfile.USTAR_FORMAT) -> Path:
    """A tar of these members; its folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=form) as out:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            out.addfile(info, io.BytesIO(data))
    return path


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


def recognition_data(task: str, root: Path, count: int = 4) -> Path:
    """A few files of a recognition task, in that data set's own layout and annotation format."""
    import csv
    import json

    root.mkdir(parents=True, exist_ok=True)
    if task == "imagenet":
        from PIL import Image

        for split in ("train", "val"):
            for number in range(2):
                folder = root / split / f"n0{number}440764"
                folder.mkdir(parents=True)
                for i in range(count // 2):
                    pixels = np.full((70, 90, 3), 40 + 150 * number + 5 * i, np.uint8)
                    Image.fromarray(pixels).save(folder / f"{folder.name}_{i}.JPEG")
        return root
    if task == "own":
        write_videos(root / "videos", count + 2)
        for split, first, last in (("train", 0, count), ("test", count, count + 2)):
            rows = [f"videos/clip{i}.mp4,{('a dog', 'rain, heavy')[i % 2]!r}" for i in range(first, last)]
            (root / f"{split}.csv").write_text("\n".join(["video,class", *rows]).replace("'", '"') + "\n")
        return root
    if task == "k400":
        names = ("abseiling", "air drumming")
        for split in ("train", "val"):
            (root / split).mkdir()
            with (root / f"{split}.csv").open("w", newline="") as file:
                writer = csv.writer(file)
                writer.writerow(("label", "youtube_id", "time_start", "time_end", "split"))
                for i in range(count):
                    writer.writerow((names[i % 2], f"-id{i}", 10 + i, 20 + i, split))
                    path = root / split / names[i % 2] / f"-id{i}_{10 + i:06d}_{20 + i:06d}.mp4"
                    path.parent.mkdir(exist_ok=True)
                    path.write_bytes(video_bytes(i))
        return root
    if task == "ssv2":
        templates = ("Pushing something from left to right", "Pulling something from right to left")
        (root / "labels.json").write_text(json.dumps({t: str(i) for i, t in enumerate(templates)}))
        marked = [t.replace("something", "[something]") for t in templates]
        for first, split in ((0, "train"), (100, "validation")):
            rows = [{"id": str(first + i), "label": "x", "template": marked[i % 2]} for i in range(count)]
            (root / f"something-something-v2-{split}.json").write_text(json.dumps(rows))
            for row in rows:
                path = root / "20bn-something-something-v2" / f"{row['id']}.webm"
                path.parent.mkdir(exist_ok=True)
                path.write_bytes(video_bytes(int(row["id"])))
        return root
    if task == "coin":
        database = {}
        for i in range(2 * count):
            database[f"v{i}"] = {"recipe_type": i % 3, "subset": "training" if i < count else "testing"}
            path = root / "videos" / f"v{i}.mp4"
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(video_bytes(i))
        (root / "COIN.json").write_text(json.dumps({"database": database}))
        return root
    if task == "breakfast":
        for person in (3, 16):
            for i, meal in enumerate(("cereals", "tea") * (count // 2)):
                path = root / f"P{person:02d}" / f"cam0{i}" / f"P{person:02d}_{meal}.avi"
                path.parent.mkdir(parents=True)
                path.write_bytes(video_bytes(10 * person + i))
        return root
    part = task.partition("-")[2]
    (root / part).mkdir()
    for split in ("train", "val", "test"):
        lines = []
        for i in range(count):
            path = root / "videos" / f"{split}{i}.mp4"
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(video_bytes(i, frames=12 if i else 40))  # 8 fps
            label = i % 3 if part not in ("like", "view") else round(0.3 * i - 0.4, 2)
            lines.append(f"{split}{i}.mp4,{label},{1.5 if i else 5.0}")
        (root / part / f"{split}.csv").write_text("\n".join(lines) + "\n")
    return root
