"""The page: page.html with its styles and scripts (page/) in it, one document whose parts are always of one version."""

from __future__ import annotations

import base64
import hashlib
import re

from fastapi import FastAPI, Request, Response
from fastapi.responses import HTMLResponse

from vtr.files import package_file

_STYLE = re.compile(r'<link rel="stylesheet" href="page/([\w.]+)">')
_SCRIPT = re.compile(r'<script src="page/([\w.]+)"></script>')


def add_page(app: FastAPI) -> None:
    """The route of the page. Its policy names the hashes of its styles and scripts: no others are run."""
    html = _part("page.html")
    styles = [_part("page", name) for name in _STYLE.findall(html)]
    scripts = [_part("page", name) for name in _SCRIPT.findall(html)]
    html = _STYLE.sub(lambda found: f"<style>{_part('page', found[1])}</style>", html)
    html = _SCRIPT.sub(lambda found: f"<script>{_part('page', found[1])}</script>", html)
    policy = (
        f"default-src 'none'; script-src {_hashes(scripts)}; style-src {_hashes(styles)}; img-src 'self' blob: data:; "
        "media-src 'self' blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    tag = f'"{hashlib.sha256(html.encode()).hexdigest()[:32]}"'
    headers = {"content-security-policy": policy, "cache-control": "no-cache", "etag": tag}

    @app.get("/", include_in_schema=False)
    async def page(request: Request) -> Response:
        if request.headers.get("if-none-match") == tag:
            return Response(status_code=304, headers=headers)
        return HTMLResponse(html, headers=headers)


def _part(*names: str) -> str:
    return package_file("vtr.library.serve", *names).read_text(encoding="utf-8")


def _hashes(texts: list[str]) -> str:
    """As sources of a Content-Security-Policy."""
    return " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(t.encode()).digest()).decode()}'" for t in texts)
