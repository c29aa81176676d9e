"""The page: page.html with its styles and scripts (page-parts/) in it, one document whose parts are always of one version."""

from __future__ import annotations

import base64
import hashlib
import re

from fastapi import FastAPI, Request, Response
from fastapi.responses import HTMLResponse

from vtr.files import package_file
from vtr.library.serve.file_answer import unchanged

_PARTS = "page-parts"  # no name of a Python package, which setuptools would take it for
_STYLE = re.compile(rf'<link rel="stylesheet" href="{_PARTS}/([\w.]+)">')
_SCRIPT = re.compile(rf'<script src="{_PARTS}/([\w.]+)"></script>')


def add_page(app: FastAPI) -> None:
    """The route of the page. Its policy names the hashes of its styles and scripts: no others are run."""
    html = package_file("vtr.library.serve", "page.html").read_text(encoding="utf-8")
    html, styles = _joined(html, _STYLE, "style")
    html, scripts = _joined(html, _SCRIPT, "script")
    policy = (
        f"default-src 'none'; script-src {_hashes(scripts)}; style-src {_hashes(styles)}; img-src 'self' blob: data:; "
        "media-src 'self' blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    tag = f'"{hashlib.sha256(html.encode()).hexdigest()[:32]}"'
    headers = {"content-security-policy": policy, "cache-control": "no-cache", "etag": tag}

    @app.get("/", include_in_schema=False)
    async def page(request: Request) -> Response:
        if unchanged(request, tag):
            return Response(status_code=304, headers=headers)
        return HTMLResponse(html, headers=headers)


def _joined(html: str, named: re.Pattern[str], tag: str) -> tuple[str, list[str]]:
    """The page with the parts that it names in their places, and these parts."""
    parts = [package_file("vtr.library.serve", _PARTS, n).read_text(encoding="utf-8") for n in named.findall(html)]
    texts = iter(parts)
    return named.sub(lambda _: f"<{tag}>{next(texts)}</{tag}>", html), parts


def _hashes(texts: list[str]) -> str:
    """As sources of a Content-Security-Policy."""
    return " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(t.encode()).digest()).decode()}'" for t in texts)
