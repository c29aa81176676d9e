"""Vectors of the single frames of each segment, eight bits a number, in a file beside the vectors: row by row the same.

A row holds, for each of a segment's F frames, w numbers of one byte and the float32 they are multiplied by; a factor of 0
says that nothing is known of the frame. n segments, F frames, w width.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from vtr.errors import VtrError


def packed(frames: np.ndarray) -> np.ndarray:
    """Rows (n, F * (w + 4)) uint8 of vectors (n, F, w)."""
    factors = (np.abs(frames).max(-1, keepdims=True) / 127).astype(np.float32)
    numbers = np.rint(frames / np.where(factors > 0, factors, 1)).astype(np.int8)
    rows = np.concatenate([numbers.view(np.uint8), factors.view(np.uint8)], -1)
    return np.ascontiguousarray(rows.reshape(len(frames), -1))


def unpacked(rows: np.ndarray, width: int) -> np.ndarray:
    """Vectors (n, F, w) float32 of rows."""
    parts = np.ascontiguousarray(rows).reshape(len(rows), -1, width + 4)
    numbers, factors = parts[..., :width].view(np.int8), np.ascontiguousarray(parts[..., width:]).view(np.float32)
    return (numbers * factors).astype(np.float32)


def write_rows(path: Path, first: int, rows: np.ndarray) -> None:
    """Write rows durably from number `first` on; what stood behind them is cut off, what is missing before is unknown.

    Raises:
        VtrError: It cannot be written.
    """
    try:
        with path.open("r+b" if path.exists() else "w+b") as file:
            file.seek(first * rows.shape[1])
            file.truncate()
            file.write(rows.data)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise VtrError(f"{path} cannot be written ({error.strerror}); what was committed is safe") from error


def read_rows(path: Path, numbers: np.ndarray, size: int) -> np.ndarray:
    """Rows (n, size) of these numbers; zeros for those that are not there."""
    out = np.zeros((len(numbers), size), np.uint8)
    try:
        there = path.stat().st_size // size
        if there:
            mapped = np.memmap(path, np.uint8, "r", shape=(there, size))
            inside = numbers < there
            out[inside] = mapped[numbers[inside]]
    except FileNotFoundError:
        pass
    except OSError as error:
        raise VtrError(f"{path} cannot be read ({error.strerror})") from error
    return out
