"""A file of the library as an HTTP answer: whole, or one byte range of it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from urllib.parse import quote

from fastapi import HTTPException, Request, Response
from starlette.types import Receive, Scope, Send

from vtr.library.serve.account import HEAD
from vtr.library.serve.media import TYPES, Opened, Refused, Video, byte_range

_PART = 256 << 10  # bytes of a file that are read at once


def unchanged(request: Request, tag: str) -> bool:
    """Whether a client has this already: a list of tags, weak ones too (RFC 9110, If-None-Match)."""
    known = {one.strip().removeprefix("W/") for one in request.headers.get("if-none-match", "").split(",")}
    return bool(known & {tag, "*"})


class FileAnswer(Response):
    """One open file, or a range of it, in parts; closed at the end whatever happens."""

    def __init__(self, request: Request, opened: Opened, video: Video, wanted: str | None, download: bool) -> None:
        size = opened.size
        kind = TYPES.get(Path(video.path).suffix.lower(), "application/octet-stream")
        tag = f'"{opened.tag}"'
        headers = {
            "accept-ranges": "bytes",
            "etag": tag,
            "cache-control": "private, no-cache",
            "content-security-policy": "default-src 'none'; media-src 'self'; img-src 'self'; "
            "style-src 'unsafe-inline'; sandbox; frame-ancestors 'none'",
        }
        place = "inline" if kind.startswith(("video/", "image/")) and not download else "attachment"
        name = Path(video.path).name
        headers["content-disposition"] = f"{place}; filename*=UTF-8''{quote(name, safe='')}"
        status = 200
        self._first, self._end = 0, size
        if unchanged(request, tag):
            status, self._end = 304, 0
        elif request.headers.get("if-range", tag) == tag and not request.scope.get(HEAD):
            try:
                found = byte_range(wanted, size)
            except Refused as error:
                raise HTTPException(416, str(error), {"content-range": f"bytes */{size}"}) from None
            if found:
                status, (self._first, self._end) = 206, found
                headers["content-range"] = f"bytes {self._first}-{self._end - 1}/{size}"
        if status != 304:
            headers["content-length"] = str(self._end - self._first)
        self._opened, self._request = opened, request
        super().__init__(None, status, headers, kind)
        if status == 304:
            del self.headers["content-length"]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            at = self._end if scope.get(HEAD) else self._first
            while at < self._end:
                part = await asyncio.to_thread(self._opened.read, min(_PART, self._end - at), at)
                if not part:
                    raise OSError(f"a file became shorter while it was served ({self._end - at} bytes are missing)")
                at += len(part)
                await send({"type": "http.response.body", "body": part, "more_body": at < self._end})
                if await self._request.is_disconnected():
                    return
            if self._first == self._end or scope.get(HEAD):
                await send({"type": "http.response.body", "body": b""})
        finally:
            self._opened.close()
