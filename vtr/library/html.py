"""Contact sheet: queries and their hits as one HTML file that needs nothing else."""

from __future__ import annotations

import html
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from vtr.errors import VtrError
from vtr.files import write_atomically
from vtr.library import thumbnails
from vtr.library.files import shown
from vtr.library.found import match_text

if TYPE_CHECKING:
    from vtr.library.found import Hit
    from vtr.library.search import Searcher

_AFTER = 0.001  # seconds: browsers cut a time to microseconds, and may show the frame before the one of that stamp
_STYLE = """
:root{color-scheme:light dark;--back:#f5f5f2;--card:#fff;--ink:#1c1c1a;--soft:#66665f;--line:#dddcd5;--hole:#ecebe6}
@media(prefers-color-scheme:dark){:root{--back:#141413;--card:#1f1f1d;--ink:#ecebe6;--soft:#a09f97;--line:#34332f;
--hole:#0c0c0b}}
*{box-sizing:border-box}
body{margin:0 auto;max-width:100rem;padding:clamp(1rem,3vw,2.5rem);background:var(--back);color:var(--ink);
font:16px/1.45 system-ui,sans-serif}
header{color:var(--soft);font-size:.87rem;overflow-wrap:anywhere}
section{margin-top:2rem}
h2{font-size:1.35rem;line-height:1.3;margin:0 0 .9rem;overflow-wrap:anywhere}
ol{list-style:none;margin:0;padding:0;display:grid;gap:1rem;grid-template-columns:repeat(auto-fill,minmax(min(100%,17rem),1fr))}
li{background:var(--card);border:1px solid var(--line);border-radius:10px;overflow:hidden}
a{color:inherit;text-decoration:none;display:block;height:100%}
a:hover b,a:focus-visible b{text-decoration:underline}
a:focus-visible{outline:3px solid #3b82f6;outline-offset:-3px}
.big,.small img{display:block;width:100%;object-fit:contain;background:var(--hole)}
.big{aspect-ratio:16/9}
.small{display:grid;grid-template-columns:1fr 1fr;gap:1px;margin-top:1px}.small img{aspect-ratio:16/9}
.gone{margin:0;aspect-ratio:16/9;display:grid;place-items:center;padding:1rem;background:var(--hole);color:var(--soft);
text-align:center}
.text{padding:.6rem .8rem .75rem}
b{display:block;font-weight:600;overflow-wrap:anywhere}
.row{display:flex;justify-content:space-between;gap:1rem;font-variant-numeric:tabular-nums;font-size:.9rem;white-space:nowrap}
small{display:block;color:var(--soft);font-size:.78rem;line-height:1.35;overflow-wrap:anywhere;margin-top:.15rem}
.none{color:var(--soft)}
"""


def write_contact_sheet(path: str | Path, answers: Sequence[tuple[str, Sequence[Hit]]], library: Searcher) -> None:
    """Write queries and hits to one HTML file, with three frames of each moment.

    Raises:
        VtrError: The file cannot be written.
    """
    model = library.settings.model or "of no stored path"
    parts = [
        "<!doctype html><html lang=en><head><meta charset=utf-8>",
        "<meta name=viewport content='width=device-width,initial-scale=1'>",
        f"<title>{_text(answers[0][0] if answers else 'no query')} - vtr</title><style>{_STYLE}</style></head><body>",
        f"<header>{_text(_place(library))}<br>model {_text(str(model))} "
        f"({_text(library.settings.fingerprint[:12])})</header><main>",
    ]
    for query, hits in answers:
        cards = "<ol>" + "".join(map(_card, hits)) + "</ol>" if hits else "<p class=none>Nothing found.</p>"
        parts.append(f"<section><h2>{_text(query)}</h2>{cards}</section>")
    parts.append("</main></body></html>")
    path = Path(path)
    try:
        with write_atomically(path) as partial:
            partial.write_text("\n".join(parts) + "\n", encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise VtrError(
            lambda say, why=error.strerror: f"{say.given('html', path)}: cannot be written ({why})"  # type: ignore[misc]
        ) from error


def _place(library: Searcher) -> str:
    return os.path.abspath(library.path) if isinstance(library.path, Path) else str(library.path)


def _text(text: str) -> str:
    return html.escape(shown(text), quote=True)


def _card(hit: Hit) -> str:
    still = hit.end <= hit.start
    link = f"file://{quote(hit.path)}" + ("" if still else f"#t={hit.start + _AFTER:.3f}")
    frames, lacking = thumbnails.pictures(hit.path, hit.start, hit.end, hit.duration)
    time = "image" if still else f"{_clock(hit.start)} \u2013 {_clock(hit.end)}"
    if frames:
        name = _text(f"{Path(hit.path).name}, {time}")
        pictures = f"<img class=big alt='{name}' src='{frames[0]}'>"
        if len(frames) > 1:
            pictures += "<div class=small>" + "".join(f"<img alt='' src='{f}'>" for f in frames[1:]) + "</div>"
    else:
        pictures = f"<p class=gone>No picture: {_text(lacking)}</p>"
    detail = f"<br>re-ranked; similarity {hit.similarity:.3f}" if hit.reranked else ""
    if hit.copies:
        detail += f"<br>the same file: {_text(', '.join(Path(p).name for p in hit.copies[:5]))}"
        detail += f" and {len(hit.copies) - 5} more" if len(hit.copies) > 5 else ""
    if hit.near_copies:
        detail += f"<br>looks the same: {_text(', '.join(Path(p).name for p in hit.near_copies[:5]))}"
    return (
        f"<li><a href='{html.escape(link, quote=True)}'>{pictures}<div class=text>"
        f"<b>{hit.rank}. {_text(Path(hit.path).name)}</b>"
        f"<div class=row><span>{time}</span><span>{hit.measure} {_text(match_text(hit))}</span></div>"
        f"<small>{_text(str(Path(hit.path).parent))}<br>#{hit.segment}{detail}</small></div></a></li>"
    )


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds, 1), 60)
    hours, minutes = divmod(int(minutes), 60)
    return f"{hours}:{minutes:02d}:{rest:04.1f}" if hours else f"{minutes}:{rest:04.1f}"
