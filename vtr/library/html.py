"""Contact sheet: queries and their hits as one HTML file that needs nothing else."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from vtr.errors import VtrError

if TYPE_CHECKING:
    from vtr.library.library import Hit, Library

_STYLE = """
:root{color-scheme:light dark;--back:#f6f6f4;--card:#fff;--ink:#1c1c1a;--soft:#6b6b66;--line:#dddcd6}
@media(prefers-color-scheme:dark){:root{--back:#161615;--card:#21211f;--ink:#ecebe6;--soft:#9a9992;--line:#34332f}}
*{box-sizing:border-box}body{margin:0;padding:2rem clamp(1rem,4vw,3rem);background:var(--back);color:var(--ink);
font:16px/1.45 system-ui,sans-serif}h1{font-size:1rem;font-weight:600;color:var(--soft);margin:0 0 2rem}
h2{font-size:1.35rem;margin:2.2rem 0 .8rem;overflow-wrap:anywhere}
ol{list-style:none;margin:0;padding:0;display:grid;gap:1rem;grid-template-columns:repeat(auto-fill,minmax(min(100%,17rem),1fr))}
li{background:var(--card);border:1px solid var(--line);border-radius:10px;overflow:hidden}
a{color:inherit;text-decoration:none;display:block}a:hover b,a:focus-visible b{text-decoration:underline}
a:focus-visible{outline:3px solid #3b82f6;outline-offset:-3px}.strip{display:grid;grid-template-columns:repeat(3,1fr);gap:1px;background:var(--line)}
.strip img{width:100%;height:100%;aspect-ratio:4/3;object-fit:contain;display:block}.strip p{grid-column:1/-1;margin:0;padding:2rem 1rem;background:var(--card);color:var(--soft);text-align:center}
.text{padding:.6rem .8rem .7rem}b{display:block;font-weight:600;overflow-wrap:anywhere}.row{display:flex;justify-content:space-between;color:var(--soft);font-size:.87rem;font-variant-numeric:tabular-nums}
.none{color:var(--soft)}
"""


def write_contact_sheet(path: str | Path, answers: Sequence[tuple[str, Sequence[Hit]]], library: Library) -> None:
    """Write queries and hits to one HTML file, with three frames of each moment.

    Raises:
        VtrError: The file cannot be written.
    """
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>",
        f"<title>{html.escape(answers[0][0] if answers else 'vtr')}</title><style>{_STYLE}</style>",
        f"<h1>{html.escape(library.path.name)}</h1>",
    ]
    for query, hits in answers:
        parts.append(f"<h2>{html.escape(query)}</h2>")
        if not hits:
            parts.append("<p class=none>Nothing found.</p>")
            continue
        parts.append("<ol>" + "".join(_card(hit) for hit in hits) + "</ol>")
    try:
        Path(path).write_text("\n".join(parts) + "\n", encoding="utf-8")
    except OSError as error:
        raise VtrError(f"--html {path}: cannot be written ({error.strerror})") from error


def _card(hit: Hit) -> str:
    link = html.escape(f"file://{quote(hit.path)}#t={hit.start:.2f}", quote=True)
    frames = (
        "".join(f"<img alt='' src='{source}'>" for source in _frames(hit)) or "<p>the file cannot be read any more</p>"
    )
    time = f"{_clock(hit.start)}\u2013{_clock(hit.end)}" if hit.end > hit.start else "image"
    return (
        f"<li><a href='{link}'><div class=strip>{frames}</div><div class=text><b>{html.escape(Path(hit.path).name)}</b>"
        f"<div class=row><span>{time}</span><span>{hit.score:.2f}</span></div></div></a></li>"
    )


def _frames(hit: Hit) -> list[str]:
    from PIL import Image

    from vtr.data.decode import read_frames
    from vtr.data.sampling import middle_frames

    whole = hit.end <= hit.start
    try:
        clip = read_frames(
            Path(hit.path),
            lambda n: middle_frames(n, 3),
            start=None if whole else hit.start,
            end=None if whole else hit.end,
        )
    except (VtrError, OSError):
        return []
    sources = []
    for frame in clip.frames[:3]:
        image = Image.fromarray(frame)
        image.thumbnail((320, 320))
        file = io.BytesIO()
        image.save(file, "JPEG", quality=82)
        sources.append("data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode())
    return sources


def _clock(seconds: float) -> str:
    minutes, rest = divmod(seconds, 60)
    return f"{int(minutes)}:{rest:04.1f}"
