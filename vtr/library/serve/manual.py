"""/docs: the API as one page without scripts, made of the schema; /metrics."""

from __future__ import annotations

import base64
import hashlib
import html
from collections.abc import Iterator, Mapping
from typing import cast

from fastapi import FastAPI, Response
from fastapi.responses import HTMLResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from vtr.library.library import Library
from vtr.library.serve.account import Metrics
from vtr.library.serve.engine import Engine
from vtr.library.serve.schema import METRICS, problems

Tree = Mapping[str, object]
_STYLE = """
:root { color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif }
body { max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
h2 { margin: 2.5rem 0 .25rem; font: 600 1.1rem ui-monospace, monospace; overflow-wrap: anywhere }
h2 b { display: inline-block; min-width: 4rem }
table { border-collapse: collapse; width: 100% }
th, td { text-align: left; vertical-align: top; padding: .25rem .75rem .25rem 0; border-bottom: 1px solid #8884 }
code { font-size: .9em }
"""


def add_manual(app: FastAPI, engine: Engine, metrics: Metrics) -> None:
    """Routes of the manual and of the metrics."""
    style = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; style-src 'sha256-{style}'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )

    @app.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        return HTMLResponse(manual(app.openapi()), headers={"content-security-policy": policy})

    @app.get("/metrics", response_class=Response, responses={**problems(503), **METRICS}, operation_id="metrics")
    async def measured() -> Response:
        """Counts and times of requests, the size of the library, memory: for Prometheus."""
        videos, segments = await engine.lookup.ask(_sizes)
        metrics.videos.set(videos)
        metrics.segments.set(segments)
        return Response(generate_latest(metrics.registry), headers={"content-type": CONTENT_TYPE_LATEST})


def _sizes(library: Library) -> tuple[int, int]:
    return library.read(lambda: (library.store.totals()[0], library.store.segments()))


def manual(schema: Tree) -> str:
    """An OpenAPI schema as a page."""
    about = _tree(schema, "info")
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>",
        f"<title>{_text(about['title'])} API</title><style>{_STYLE}</style>",
        f"<h1>{_text(about['title'])} {_text(about['version'])}</h1><p>{_text(about['description'])}",
        "<p>The same for programs: <a href=openapi.json>openapi.json</a>. The page: <a href='.'>search</a>.",
    ]
    for path, methods in _tree(schema, "paths").items():
        for method, operation in cast(Tree, methods).items():
            parts += _operation(path, method, cast(Tree, operation), schema)
    return "\n".join(parts)


def _operation(path: str, method: str, operation: Tree, schema: Tree) -> Iterator[str]:
    yield f"<h2 id={_text(operation['operationId'])}><b>{_text(method.upper())}</b> {_text(path)}</h2>"
    yield f"<p>{_text(operation.get('description', ''))}"
    rows = [
        (p["name"], p["in"], _kind(_tree(p, "schema")), "yes" if p.get("required") else "", p.get("description", ""))
        for p in cast(list[Tree], operation.get("parameters", []))
    ]
    body = _tree(_tree(operation, "requestBody"), "content")
    for kind, content in body.items():
        form = _found(_tree(cast(Tree, content), "schema"), schema)
        needed = cast(list[str], form.get("required", []))
        rows += [
            (
                name,
                kind,
                _kind(cast(Tree, field)),
                "yes" if name in needed else "",
                cast(Tree, field).get("description", ""),
            )
            for name, field in _tree(form, "properties").items()
        ]
    if rows:
        yield "<table><tr><th>name<th>in<th>what<th>needed<th></tr>"
        for name, *cells in rows:
            yield f"<tr><td><code>{_text(name)}</code>" + "".join(f"<td>{_text(cell)}" for cell in cells)
        yield "</table>"
    for status, answer in _tree(operation, "responses").items():
        if status.startswith("2"):
            yield f"<p>{_text(status)}: {_text(_answer(cast(Tree, answer), schema))}"


def _answer(answer: Tree, schema: Tree) -> str:
    """The fields of what comes back, or its media types."""
    content = _tree(answer, "content")
    fields = _tree(_found(_tree(_tree(content, "application/json"), "schema"), schema), "properties")
    return ", ".join(fields) or ", ".join(content) or str(answer.get("description", ""))


def _found(what: Tree, schema: Tree) -> Tree:
    """A part of the schema, where only its name stands."""
    name = str(what.get("$ref", "")).rpartition("/")[2]
    return _tree(_tree(_tree(schema, "components"), "schemas"), name) if name else what


def _kind(what: Tree) -> str:
    """A type and its bounds."""
    options = cast(list[Tree], what.get("anyOf", [what]))
    named = [
        " | ".join(map(str, cast(list[object], o["enum"]))) if "enum" in o else str(o.get("format", o.get("type", "")))
        for o in options
        if o.get("type") != "null"
    ]
    words = {"minimum": "from", "maximum": "to", "maxLength": "up to", "maxItems": "up to", "default": "default"}
    told = [f"{word} {what[key]}" for key, word in words.items() if what.get(key) not in (None, "", [])]
    return ", ".join([*filter(None, named), *told])


def _tree(what: Tree, key: str) -> Tree:
    return cast(Tree, what.get(key, {}))


def _text(value: object) -> str:
    return html.escape(str(value))
