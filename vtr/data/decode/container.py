"""A file opened by FFmpeg, as bytes alone: no name to read meaning into, no other file, and a time limit in its reads."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from vtr.data.decode.types import Deadline, Source, opened

if TYPE_CHECKING:
    from av.container import InputContainer

_BLOCK = 1 << 20  # reading this much more of a file is progress


class _Input(io.RawIOBase):
    """A file as FFmpeg sees it: no name to read meaning into (dashes, `%03d`, `http:`), and a time limit in reads."""

    def __init__(self, source: Source, deadline: Deadline) -> None:
        self._file = opened(source, buffering=0)
        self._deadline = deadline
        self._blocks: set[int] = set()

    def read(self, size: int = -1) -> bytes:
        self._deadline.check()
        block = self._file.tell() // _BLOCK
        data = self._file.read(size) or b""
        if data and block not in self._blocks:
            self._blocks.add(block)
            self._deadline.progress()
        return data

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def close(self) -> None:
        self._file.close()


def open_container(source: Source, deadline: Deadline) -> InputContainer:
    """A file opened by FFmpeg, which closes it with the container.

    Raises:
        FFmpegError, ValueError, RuntimeError: As PyAV says.
    """
    import av

    file = _Input(source, deadline)
    try:
        # A playlist inside an upload must not make FFmpeg open other files or addresses: no protocol is allowed.
        # In a transport stream that was glued together, a programme whose tracks have new numbers goes on with them.
        options = {"protocol_whitelist": "none", "merge_pmt_versions": "1"}
        if int(av.__version__.partition(".")[0]) >= 19:  # which takes metadata that is no UTF-8 as it is
            return av.open(file, "r", options=options, buffer_size=65536)
        return av.open(file, "r", options=options, buffer_size=65536, metadata_errors="replace")
    except BaseException:
        file.close()
        raise
