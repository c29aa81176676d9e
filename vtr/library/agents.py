"""A library as tools of an agent, by the Model Context Protocol over stdin and stdout: `vtr mcp`.

An agent names moments and videos by their ids, never files; limits and checks are those of the server.
"""

from __future__ import annotations

import base64
import threading
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Annotated, Literal, ParamSpec, TypeVar

from mcp.server.mcpserver import Image, MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp.server.mcpserver.tools import Tool
from mcp.types import BlobResourceContents, EmbeddedResource
from pydantic import Field

import vtr
from vtr.errors import VtrError
from vtr.files import write_atomically
from vtr.library.files import shown
from vtr.library.found import hit_dict
from vtr.library.library import Library
from vtr.library.serve import queries
from vtr.library.serve.door import Door
from vtr.library.serve.media import TYPES, Files, Moment, Thumbnails, Video
from vtr.library.serve.schema import MAX_K, MAX_MOMENTS, MAX_QUERY, MAX_WHERE
from vtr.library.serve.taking import clip_of, with_ends
from vtr.library.where import parse_where

P = ParamSpec("P")
R = TypeVar("R")
_MOST_FRAMES = 8  # pictures of a moment
_WIDE = 640  # pixels of each
_MOST_LISTED = 200  # videos of an answer
_MOST_INLINE = 8 << 20  # bytes of a clip that is handed over as it is

Query = Annotated[str, Field(max_length=MAX_QUERY, description="what to look for, in words")]
Where = Annotated[str, Field(max_length=MAX_WHERE, description='a filter, as in: duration < 60 and path ~ "dog"')]
End = Annotated[float | None, Field(ge=0, description="seconds: that of the hit, which may not be that of its segment")]
Segment = Annotated[int, Field(ge=1, le=2**63 - 1, description="`segment` of a hit")]


class _Tools:
    """What an agent may ask of a library.

    Args:
        path: The library's folder.
        model: Its model, where it has moved.
        clips: Folder that clips are written to; None: they are handed over, if they are small.
        follow_links: Also show symbolic links that lead out of their folder.
    """

    def __init__(self, path: Path, model: str | None, clips: Path | None, follow_links: bool) -> None:
        self._door = Door(path, model)
        self._files = Files(follow_links=follow_links)
        self._pictures = Thumbnails(self._files)
        self._clips = clips
        self._one = threading.Lock()  # tools run in threads: one at a time loads the model, decodes and encodes
        self._door.library()

    def search(
        self,
        query: Query,
        k: Annotated[int, Field(ge=1, le=MAX_K, description="number of moments")] = 5,
        where: Where = "",
        by: Annotated[
            Literal["picture", "words", "both"] | None,
            Field(description="what answers: what is seen, what is said (subtitles), or both; default: what there is"),
        ] = None,
        moments: Annotated[int, Field(ge=1, le=MAX_MOMENTS, description="up to so many moments of a video")] = 1,
        then: Annotated[
            str | None, Field(max_length=MAX_QUERY, description="what happens after it in the same video")
        ] = None,
        within: Annotated[
            float | None, Field(ge=0, le=86_400, description="seconds between it and `then`: 60, if left out")
        ] = None,
        min_score: Annotated[
            float | None, Field(ge=0, le=1, description="leave out moments of a lower `confidence`")
        ] = None,
    ) -> list[dict[str, object]]:
        """Find moments of videos by what is seen or said in them, best first. `match` is between 0 and 1; times are seconds
        of the video; `segment`, with `start` and `end`, names a moment for the other tools. `notes`, at the end, say what
        could not be done."""
        options = {"where": where or None, "by": by, "moments": moments, "then": then, "within": within}
        answered = self._door.ask(queries.search, [query], k, min_score=min_score, **options)
        return _told(answered)

    def similar(
        self, segment: Segment, k: Annotated[int, Field(ge=1, le=MAX_K)] = 5, where: Where = ""
    ) -> list[dict[str, object]]:
        """Moments of other videos that look like one that was found."""
        return _told(self._door.ask(queries.search, (), k, more=segment, where=where or None))

    def frames(
        self,
        segment: Segment,
        count: Annotated[int, Field(ge=1, le=_MOST_FRAMES, description="pictures")] = 4,
        start: End = None,
        end: End = None,
    ) -> Image:
        """Look at a moment: frames of it, evenly spread in time, side by side in one JPEG picture."""
        moment = with_ends(self._moment(segment), start, end)
        return Image(data=self._pictures.get(moment, count, _WIDE), format="jpeg")

    def clip(
        self,
        segment: Segment,
        exact: Annotated[bool, Field(description="from the very frame; else a copy from the key frame before")] = True,
        start: End = None,
        end: End = None,
    ) -> EmbeddedResource | str:
        """Cut a moment out as a video file of its own."""
        moment = with_ends(self._moment(segment), start, end)
        data, ending = clip_of(self._files, moment, exact)
        times = "" if start is None and end is None else f"_{moment.start:.2f}-{moment.end:.2f}"
        name = f"clip_{segment}{times}{'_exact' if exact else ''}{ending}"
        if self._clips is not None:
            path = self._clips / name
            try:
                self._clips.mkdir(parents=True, exist_ok=True)
                with write_atomically(path) as partial:
                    partial.write_bytes(data)
            except OSError as error:
                raise VtrError(f"{path} cannot be written ({error.strerror})") from error
            return str(path.absolute())
        if len(data) > _MOST_INLINE:
            raise VtrError(
                f"the clip has {len(data) >> 20} MB, more than is handed over: start vtr mcp with --clips FOLDER"
            )
        blob = base64.b64encode(data).decode()
        return EmbeddedResource(
            type="resource", resource=BlobResourceContents(uri=f"vtr://clip/{name}", mime_type=TYPES[ending], blob=blob)
        )

    def videos(
        self,
        where: Where = "",
        first: Annotated[int, Field(ge=0, le=2**31, description="how many to pass over")] = 0,
        count: Annotated[int, Field(ge=1, le=_MOST_LISTED)] = 50,
    ) -> dict[str, object]:
        """The videos of the library by path: id, name, seconds, metadata; and how many there are."""
        return self._door.ask(_listed, where, first, count)

    def _moment(self, segment: int) -> Moment:
        return self._door.ask(queries.moment_of, segment)

    def said(self, function: Callable[P, R]) -> Callable[P, R]:
        """A tool, whose refusals reach the agent as one line."""

        @wraps(function)
        def call(*values: P.args, **more: P.kwargs) -> R:
            try:
                with self._one:
                    return function(*values, **more)
            except VtrError as error:
                raise ToolError(" ".join(str(error).split())) from error

        return call


def _told(answered: queries.Answered) -> list[dict[str, object]]:
    """The moments of an answer, and what could not be done as asked; of one that has none, that it has none and why."""
    found: list[dict[str, object]] = [
        {"name": shown(Path(h.path).name), "video": video, **hit_dict(h)} for h, video in answered.pairs
    ]
    if not found:
        return [{"found": 0, "notes": answered.notes}]
    return [*found, {"notes": answered.notes}] if answered.notes else found


def _listed(library: Library, where: str, first: int, count: int) -> dict[str, object]:
    def read() -> dict[str, object]:
        condition, values = parse_where(where, library.columns()) if where.strip() else ("", [])
        total, rows = library.store.listed(condition, values, first, count)
        videos = [
            {
                "video": row.id,
                "name": Video(id=row.id, path=row.path, bytes=None, modified=None, sha256=None).name,
                "path": shown(row.path),
                "duration": round(row.duration, 3),
                "metadata": row.metadata,
            }
            for row in rows
        ]
        return {"total": total, "first": first, "videos": videos}

    return library.read(read)


def make_server(
    path: str | Path, model: str | None = None, *, clips: Path | None = None, follow_links: bool = False
) -> MCPServer:
    """The server of a library; `run()` serves it over stdin and stdout.

    Args:
        path: The library's folder.
        model: Its model, where it has moved since.
        clips: Folder that clips are written to; None: they are handed over, up to 8 MB.
        follow_links: Also show symbolic links that lead out of their folder.

    Raises:
        VtrError: It is no library.
    """
    tools = _Tools(Path(path), model, clips, follow_links)
    made = [_strict(tools.said(t)) for t in (tools.search, tools.similar, tools.frames, tools.clip, tools.videos)]
    told = "Search a library of videos for moments."
    return MCPServer("vtr", version=vtr.__version__, instructions=told, tools=made)


def _strict(function: Callable[..., object]) -> Tool:
    """A tool that refuses arguments which it does not have: what is misspelt must not be ignored."""
    tool = Tool.from_function(function, structured_output=False)
    arguments = tool.fn_metadata.arg_model
    arguments.model_config["extra"] = "forbid"
    arguments.model_rebuild(force=True)
    tool.parameters["additionalProperties"] = False
    return tool
