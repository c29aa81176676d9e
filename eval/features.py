"""Features of a benchmark, computed once: split over ranks by fixed batches, one file a batch, so that memory stays
bounded, a stopped evaluation continues, and the numbers do not depend on the number of ranks.

V videos, Q texts, E joint width, Lv visual tokens, D their width, L text tokens, H width of the text states.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vtr.data.decode import DecodeError, read_frames
from vtr.data.sampling import middle_frames
from vtr.data.text import TokenBatch
from vtr.data.transforms import eval_frames
from vtr.data.whole import cut_off
from vtr.errors import VtrError
from vtr.eval.orders import SHOWN, ordered
from vtr.models.base import VideoTextEncoder
from vtr.ranks import Ranks

_VIDEO_BATCH = 16
_TEXT_BATCH = 256


@dataclass(frozen=True, kw_only=True)
class EncodeSettings:
    """How videos and texts become features."""

    frames: int
    antialias: bool
    max_text_tokens: int
    trim_seconds: float | None = None  # only the start of longer videos
    bf16: bool = False
    tokens: bool = True  # keep what re-ranking needs
    workers: int = 2  # decoding threads of a rank
    shown: str = SHOWN[0]
    backwards: bool = False


@dataclass(frozen=True, kw_only=True)
class Features:
    """What is needed of all videos and texts at once; the tokens stay in the work folder."""

    video: Tensor  # (V, E)
    text: Tensor  # (Q, E)
    lengths: Tensor  # (Q,) tokens of each text
    broken: dict[int, str]  # videos that could not be decoded, with the reason; their rows are 0
    cut: int  # texts longer than allowed


class WorkFolder:
    """The files of one evaluation: features and match scores by batch."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise VtrError(f"{folder}: cannot be created ({error.strerror})") from error
        self._texts: dict[int, dict[str, Tensor]] = {}

    def write(self, name: str, tensors: dict[str, Tensor], notes: dict[str, Any]) -> None:
        """Write one part, atomically."""
        from safetensors.torch import save_file

        partial = self.folder / f"{name}.{os.getpid()}.tmp"
        try:
            save_file({k: v.contiguous() for k, v in tensors.items()}, partial, {"notes": json.dumps(notes)})
            os.replace(partial, self.folder / f"{name}.safetensors")
        except (OSError, RuntimeError) as error:
            with contextlib.suppress(OSError):
                partial.unlink()
            text = f"{self.folder}: features cannot be written ({error})"
            raise VtrError(lambda say: f"{text}; {say.name('work')} names another folder") from error

    def notes(self, name: str) -> dict[str, Any] | None:
        """What was noted beside a part; None where the part is not there or is damaged."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(self.folder / f"{name}.safetensors", "pt") as file:
                return json.loads((file.metadata() or {})["notes"])
        except (OSError, SafetensorError, KeyError, json.JSONDecodeError):
            return None

    def read(self, name: str, *keys: str) -> dict[str, Tensor]:
        """Tensors of a part (all of them without `keys`)."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(self.folder / f"{name}.safetensors", "pt") as file:
                return {k: file.get_tensor(k) for k in (keys or file.keys())}
        except (OSError, SafetensorError) as error:
            text = f"{self.folder}/{name}.safetensors cannot be read ({str(error).splitlines()[0]})"
            raise VtrError(
                lambda say: (
                    f"{text}; the ranks of one evaluation need a folder that all of them see: name it with "
                    f"{say.name('work')}"
                )
            ) from error

    def text_states(self, rows: Sequence[int]) -> list[Tensor]:
        """Token states (L, H) of texts."""
        out = []
        for row in rows:
            batch, place = divmod(row, _TEXT_BATCH)
            if batch not in self._texts:
                self._texts[batch] = self.read(f"text-{batch:05d}")  # mapped, not copied into memory
            part = self._texts[batch]
            ends = part["ends"]
            first = int(ends[place - 1]) if place else 0
            out.append(part["states"][first : int(ends[place])])
        return out

    def need_space(self, size: int) -> None:
        """Refuse before hours of work what would not fit."""
        free = shutil.disk_usage(self.folder).free
        if size > free:
            raise VtrError(
                lambda say: (
                    f"{self.folder}: the visual tokens need {size / 2**30:.1f} GiB, {free / 2**30:.1f} are free; "
                    f"{say.name('work')} names another folder, {say.given('rerank', 0)} does without them"
                )
            )

    def remove(self) -> None:
        """Delete everything."""
        self._texts.clear()
        shutil.rmtree(self.folder, ignore_errors=True)
        with contextlib.suppress(OSError):
            self.folder.parent.rmdir()  # if nothing else is under way there


def load_clip(path: str | Path, model: VideoTextEncoder, settings: EncodeSettings) -> Tensor:
    """Middle frames of a video, resized to the model's input: uint8 (T, 3, S, S)."""
    clip = read_frames(path, lambda n: middle_frames(n, settings.frames), end=settings.trim_seconds)
    frames = eval_frames(clip.frames, model.config.video.image_size, antialias=settings.antialias)
    return ordered(frames, settings.shown, Path(path).name, backwards=settings.backwards)


def clips_of(
    batches: Sequence[Sequence[Path]], model: VideoTextEncoder, settings: EncodeSettings
) -> Iterator[list[Tensor | str]]:
    """Decoded batches in order, two ahead of their use; in the place of a video that can't be decoded, the reason."""

    def one(path: Path) -> Tensor | str:
        why = cut_off(path)
        if why:
            return f"{path}: {why}"
        try:
            return load_clip(path, model, settings)
        except (DecodeError, OSError) as error:
            return str(error)

    with ThreadPoolExecutor(settings.workers) as pool:
        ahead: deque[list[Future[Tensor | str]]] = deque()
        try:
            for batch in batches:
                ahead.append([pool.submit(one, path) for path in batch])
                if len(ahead) > 2:
                    yield [f.result() for f in ahead.popleft()]
            while ahead:
                yield [f.result() for f in ahead.popleft()]
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def autocast(model: VideoTextEncoder, bf16: bool) -> Any:
    """The context in which features and scores are computed."""
    return torch.autocast(model.device.type, torch.bfloat16, enabled=bf16)


def encode_all(
    model: VideoTextEncoder,
    videos: Sequence[Path],
    captions: Sequence[str],
    settings: EncodeSettings,
    work: WorkFolder,
    team: Ranks,
) -> Features:
    """Encode what is not yet in the work folder, each rank its batches, and collect the embeddings."""
    model.eval()
    tokens, cut = tokenised(model, captions, settings.max_text_tokens)
    team.together(lambda: _encode_texts(model, tokens, settings, work, team))
    team.together(lambda: _encode_videos(model, videos, settings, work, team))
    return team.together(lambda: _collect(videos, len(captions), tokens, cut, work))


def tokenised(model: VideoTextEncoder, captions: Sequence[str], most: int) -> tuple[list[TokenBatch], int]:
    """Token batches of all captions, and how many captions were cut."""
    parts = [captions[i : i + _TEXT_BATCH] for i in range(0, len(captions), _TEXT_BATCH)]
    return [model.tokenise(part, most) for part in parts], sum(model.cut(part, most) for part in parts)


@torch.inference_mode()
def _encode_texts(
    model: VideoTextEncoder, batches: list[TokenBatch], settings: EncodeSettings, work: WorkFolder, team: Ranks
) -> None:
    for number in _own(len(batches), team, "encode texts"):
        if work.notes(f"text-{number:05d}") is not None:
            continue
        with autocast(model, settings.bf16):
            out = model.encode_text(batches[number])
        parts = {"embedding": out.embedding.float().cpu()}
        if settings.tokens:
            mask = out.mask.bool()
            parts["states"] = _stored(out.tokens[mask], settings)
            parts["ends"] = mask.sum(1).cumsum(0).cpu()
        work.write(f"text-{number:05d}", parts, {})


@torch.inference_mode()
def _encode_videos(
    model: VideoTextEncoder, videos: Sequence[Path], settings: EncodeSettings, work: WorkFolder, team: Ranks
) -> None:
    starts = list(range(0, len(videos), _VIDEO_BATCH))
    todo = []
    for number in range(team.rank, len(starts), team.size):
        files = _signature(videos[starts[number] : starts[number] + _VIDEO_BATCH])
        notes = work.notes(f"video-{number:05d}")
        # A batch with a broken video is done again: the file may be whole by now.
        if notes is None or notes["files"] != files or notes["broken"]:
            todo.append((number, files))
    if settings.tokens and todo:
        count, width = model.visual_shape(settings.frames)
        work.need_space(len(todo) * _VIDEO_BATCH * count * width * (2 if settings.bf16 else 4))
    batches = [videos[starts[n] : starts[n] + _VIDEO_BATCH] for n, _ in todo]
    any_broken = False
    with _bar(len(videos) if team.size == 1 else sum(map(len, batches)), "encode videos", "video", team) as bar:
        if team.size == 1:
            bar.update(len(videos) - sum(map(len, batches)))
        for (number, files), clips in zip(todo, clips_of(batches, model, settings)):
            broken = {i: c for i, c in enumerate(clips) if isinstance(c, str)}
            whole = [c for c in clips if isinstance(c, Tensor)]
            parts: dict[str, Tensor] = {}
            if whole:
                with autocast(model, settings.bf16):
                    out = model.encode_video(torch.stack(whole))
                parts["embedding"] = out.embedding.float().cpu()
                if not torch.isfinite(parts["embedding"]).all():
                    raise VtrError("the model gives embeddings that are not finite: is it a trained one?")
                if settings.tokens:
                    parts["tokens"] = _stored(out.tokens, settings)
            else:
                parts["embedding"] = torch.zeros(0, 1)
            work.write(f"video-{number:05d}", parts, {"files": files, "broken": broken})
            any_broken = any_broken or bool(broken)
            bar.update(len(clips))


def _collect(videos: Sequence[Path], texts: int, tokens: list[TokenBatch], cut: int, work: WorkFolder) -> Features:
    text = torch.cat([work.read(f"text-{n:05d}", "embedding")["embedding"] for n in range(len(tokens))])
    video = torch.zeros(len(videos), text.shape[1])
    broken: dict[int, str] = {}
    for number, start in enumerate(range(0, len(videos), _VIDEO_BATCH)):
        name = f"video-{number:05d}"
        notes = work.notes(name) or {}
        bad = {int(i): reason for i, reason in notes.get("broken", {}).items()}
        broken.update({start + i: reason for i, reason in bad.items()})
        size = min(_VIDEO_BATCH, len(videos) - start)
        whole = [start + i for i in range(size) if i not in bad]
        if whole:
            video[whole] = work.read(name, "embedding")["embedding"]
    lengths = torch.cat([t.mask.sum(1) for t in tokens])
    assert len(lengths) == len(text) == texts
    return Features(video=video, text=text, lengths=lengths, broken=broken, cut=cut)


def video_tokens(work: WorkFolder, number: int) -> tuple[list[int], Tensor]:
    """The whole videos of a batch, by their place in the benchmark, and their tokens (n, Lv, D)."""
    notes = work.notes(f"video-{number:05d}") or {"files": [], "broken": {}}
    whole = [i for i in range(len(notes["files"])) if str(i) not in notes["broken"]]
    if not whole:
        return [], torch.zeros(0)
    return [number * _VIDEO_BATCH + i for i in whole], work.read(f"video-{number:05d}", "tokens")["tokens"]


def video_batches(count: int) -> int:
    """Number of batches that `count` videos make."""
    return -(-count // _VIDEO_BATCH)


def _stored(tokens: Tensor, settings: EncodeSettings) -> Tensor:
    # Under autocast the decoder's projections would round to bf16 anyway, so half the space loses nothing.
    return tokens.to(torch.bfloat16 if settings.bf16 else torch.float32).cpu()


def _signature(paths: Sequence[Path]) -> list[list[Any]]:
    out: list[list[Any]] = []
    for path in paths:
        try:
            status = path.stat()
            out.append([str(path), status.st_size, status.st_mtime_ns])
        except OSError:
            out.append([str(path), -1, -1])
    return out


def _own(count: int, team: Ranks, words: str) -> Iterator[int]:
    numbers = range(team.rank, count, team.size)
    with _bar(len(numbers), words, "batch", team) as bar:
        for number in numbers:
            yield number
            bar.update(1)


def _bar(total: int, words: str, unit: str, team: Ranks) -> Any:
    from tqdm import tqdm

    if team.size > 1:
        words += f" (rank 0 of {team.size})"
    return tqdm(total=total, desc=words, file=sys.stderr, unit=unit, leave=False, disable=not team.main)
