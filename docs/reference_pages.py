"""Reference pages out of the code: a page with `<!-- from the code: NAME -->` has there what the function NAME writes."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import json
import posixpath
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import vtr
from vtr.completion import flag_of, settings_of
from vtr.files import manifest_names, read_manifest
from vtr.launch import ENTRIES
from vtr.verbs import VERBS

if TYPE_CHECKING:
    from sphinx.application import Sphinx

_MARK = re.compile(r"<!-- from the code: (\w+) -->")
_FENCE = re.compile(r"(^```.*?^```$)", re.MULTILINE | re.DOTALL)
_CITED = re.compile(r"(?<![\w/(\[])`?docs/([\w/]+\.md)`?(?![\w\]])")


def filled(app: Sphinx, page: str, source: list[str]) -> None:
    """Put what the code says in the place of a page's marks, and make a link of every page that is cited as `docs/…`."""
    text = _MARK.sub(lambda mark: PAGES[mark[1]](), source[0])
    parts = _FENCE.split(text)
    parts[::2] = [_CITED.sub(lambda cited: _link(page, cited[1]), part) for part in parts[::2]]
    source[0] = "".join(parts)


def one_field(app: Sphinx, what: str, name: str, of: object, options: object, lines: list[str]) -> None:
    """Several names with one description (`start, end: Seconds`) as one, or napoleon takes them for a name and its type."""
    lines[:] = [re.sub(r"^ {4,}\w+(, \w+)+: ", lambda found: found[0].replace(", ", "/"), line) for line in lines]


def _link(page: str, target: str) -> str:
    return f"[{target.removesuffix('.md')}]({posixpath.relpath(target, posixpath.dirname(page) or '.')})"


def table(titles: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Cells as a Markdown table."""
    lines = [list(titles), *([_cell(cell) for cell in row] for row in rows)]
    lines.insert(1, ["---"] * len(lines[0]))
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def code(value: object) -> str:
    """A value as code, in a cell too."""
    return f"`{value}`" if str(value) else ""


# What is said of a field: the string below it, else the comment behind it, else the comment above it.


@cache
def _said(kind: type) -> dict[str, str]:
    """What the source says of each field of a class."""
    lines = inspect.getsourcelines(kind)[0]
    node = ast.parse("".join(lines)).body[0]
    assert isinstance(node, ast.ClassDef)
    found: dict[str, str] = {}
    for here, below in zip(node.body, [*node.body[1:], None]):
        if not isinstance(here, ast.AnnAssign) or not isinstance(here.target, ast.Name):
            continue
        text = ""
        if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant):
            text = str(below.value.value)
        else:
            end = here.end_lineno or here.lineno
            text = lines[end - 1].partition("  # ")[2]
            above = here.lineno - 2
            while not text.strip() and above >= 0 and lines[above].strip().startswith("# "):
                found[here.target.id] = lines[above].strip()[2:] + " " + found.get(here.target.id, "")
                above -= 1
        if text.strip():
            found[here.target.id] = text
    return {name: " ".join(text.split()) for name, text in found.items()}


def said(kind: type, name: str) -> str:
    """What is said of a field where it is defined, its base classes included."""
    for base in kind.__mro__:
        if name in vars(base).get("__annotations__", {}) and base.__module__ != "builtins":
            try:
                return _said(base).get(name) or _attributes(inspect.getdoc(base) or "").get(name, "")
            except OSError:  # made at run time, of classes that follow
                continue
    return ""


def default(field: dataclasses.Field[object]) -> str:
    """A field's default as it is written in TOML or on the command line; nothing where there is none to see."""
    value = field.default
    if field.default_factory is not dataclasses.MISSING:
        value = field.default_factory()
    if value is dataclasses.MISSING:
        return "required"
    if value is None or value in ("", ()) or dataclasses.is_dataclass(value):
        return ""
    return code(json.dumps(value, default=str) if isinstance(value, bool | tuple) else value)


def explained(kind: type, name: str) -> str:
    """What is said of a key or a flag; the site is not built without."""
    text = said(kind, name)
    if not text.strip():
        raise ValueError(f"{kind.__module__}.{kind.__qualname__}.{name}: nothing is said of it")
    return text


def keys(kind: type) -> str:
    """A dataclass's or TypedDict's keys as a table."""
    if not dataclasses.is_dataclass(kind):
        names = vars(kind)["__annotations__"]
        return table(("key", "type", ""), ((code(n), code(_plain(t)), explained(kind, n)) for n, t in names.items()))
    fields = dataclasses.fields(kind)
    return table(
        ("key", "type", "default", ""),
        ((code(f.name), code(_plain(f.type)), default(f), explained(kind, f.name)) for f in fields),
    )


def _plain(kind: object) -> str:
    """A type in words of TOML's readers."""
    text = kind.__forward_arg__ if hasattr(kind, "__forward_arg__") else str(getattr(kind, "__name__", kind))
    text = re.sub(r"tyro\.conf\.\w+\[(.*)\]$", r"\1", re.sub(r"Annotated\[(.*?), tyro.*", r"\1", text))
    text = re.sub(r"Literal\[(.*?)\]", lambda found: found[1].replace('"', "").replace(", ", " | "), text)
    text = re.sub(r"tuple\[(\w+), \.\.\.\]", r"\1 …", text).removesuffix(" | None")
    return {"str": "text", "bool": "true | false"}.get(text, text.replace("str", "text"))


def _metavar(kind: str) -> str:
    """A type as it stands behind a flag."""
    names = {"text": "TEXT", "int": "N", "float": "X", "Path": "PATH"}
    return " ".join(names.get(word, word) for word in kind.split())


def verbs() -> str:
    """Every verb with its flags."""
    return "\n".join(_verb(verb) for verb in VERBS)


def _verb(verb: str) -> str:
    kind = settings_of(verb)
    fields = sorted(dataclasses.fields(kind), key=lambda f: flag_of(f) != "")
    rows = []
    for f in fields:
        value = "" if str(f.type) == "bool" else f" {_metavar(_plain(f.type))}"
        shown = f"{flag_of(f)}{value}" if flag_of(f) else f.name.upper()
        rows.append((code(shown), "" if f.default is False else default(f), explained(kind, f.name)))
    about = inspect.getdoc(kind) or VERBS[verb][1]
    if verb in ENTRIES:
        about = VERBS[verb][1][0].upper() + VERBS[verb][1][1:] + "."
    return f"## vtr {verb}\n\n{about}\n\n" + (table(("flag", "default", ""), rows) if rows else "No flags.\n")


def entries() -> str:
    """The commands that the entry scripts show at their head."""
    out = []
    for verb, entry in ENTRIES.items():
        about = (importlib.import_module(entry.module).__doc__ or "").strip()
        out.append(
            f"`vtr {verb}` (`{entry.module.removeprefix('vtr.').replace('.', '/')}.py`):\n\n```text\n{about}\n```\n"
        )
    return "\n".join(out)


_MEMBERS = (
    "   :members:",
    "   :inherited-members: Module, tuple, list, dict, Exception",
    "   :exclude-members: __init__, __new__",
    "",
)
# What the public functions take and give.
_SHAPES = (
    "library.found.Step",
    "data.subtitles.Cue",
    "library.settings.Info",
    "library.settings.Compacted",
    "library.index_types.Description",
    "models.base.VideoTextEncoder",
    "models.video_text.ModelConfig",
    "encoders.video_text.VideoFeatures",
    "encoders.video_text.TextFeatures",
    "encoders.base.EncoderConfig",
    "encoders.bert.BertConfig",
    "data.text.Tokenizer",
    "data.text.TokenBatch",
    "errors.Speech",
)


def python() -> str:
    """The public names, by their docstrings."""
    lines = []
    for name in vtr.__all__:
        value = getattr(vtr, name)
        kind = "autofunction" if inspect.isfunction(value) else "autoclass"
        kind = "autoexception" if isinstance(value, type) and issubclass(value, BaseException) else kind
        lines += [f".. {kind}:: vtr.{name}"]
        lines += [""] if kind == "autofunction" else _MEMBERS
    return f"```{{eval-rst}}\n{chr(10).join(lines)}\n```\n"


def shapes() -> str:
    """What the public names take and give."""
    lines = [line for name in _SHAPES for line in (f".. autoclass:: vtr.{name}", *_MEMBERS)]
    return f"```{{eval-rst}}\n{chr(10).join(lines)}\n```\n"


def rest() -> str:
    """The paths of the REST API out of its own OpenAPI description."""
    from fastapi import FastAPI

    app_module = importlib.import_module("vtr.library.serve.app")
    with patch.object(app_module, "Engine"):  # no library is opened: only the routes are asked
        app = app_module.make_app("any.library", None, None)
    while not isinstance(app, FastAPI):  # what looks at requests before it does
        app = app.app
    schema = app.openapi()
    out = []
    for path, methods in schema["paths"].items():
        for method, operation in methods.items():
            out.append(f"## {method.upper()} {path}\n\n{_prose(operation)}\n")
            out += [*_parameters(operation, schema), *_answers(operation)]
    shapes = schema["components"]["schemas"]
    out.append("## What is answered\n")
    for name, shape in shapes.items():
        if "properties" in shape and not name.startswith(("Body_", "HTTPValidation", "Validation")):
            out.append(f"### {name}\n\n{shape.get('description', '')}\n")
            must = shape.get("required", ())
            out.append(
                table(
                    ("field", "type", "always there", ""),
                    (
                        (code(n), code(_json_type(p)), "yes" if n in must else "", str(p.get("description", "")))
                        for n, p in shape["properties"].items()
                    ),
                )
            )
    return "\n".join(out)


def _prose(operation: Mapping[str, Any]) -> str:
    return str(operation.get("description") or operation.get("summary", ""))


def _parameters(operation: Mapping[str, Any], schema: Mapping[str, Any]) -> Iterator[str]:
    rows = [
        (
            code(p["name"]),
            p["in"],
            code(_json_type(p["schema"])),
            str(p.get("description", p["schema"].get("description", ""))),
        )
        for p in operation.get("parameters", ())
    ]
    for content in operation.get("requestBody", {}).get("content", {}).values():
        body = schema["components"]["schemas"][content["schema"]["$ref"].rpartition("/")[2]]
        rows += [
            (code(n), "body", code(_json_type(p)), str(p.get("description", ""))) for n, p in body["properties"].items()
        ]
    if rows:
        yield table(("parameter", "in", "type", ""), rows)


def _answers(operation: Mapping[str, Any]) -> Iterator[str]:
    refused = []
    for status, answer in operation["responses"].items():
        shapes = [_json_type(c.get("schema", {})) for c in answer.get("content", {}).values()]
        if shapes == ["Problem"]:
            refused.append(status)
        else:
            kinds = ", ".join(filter(None, shapes)) or ", ".join(answer.get("content", {})) or "nothing"
            yield f"{status}: {code(kinds)}. "
    yield f"Refused with {code('Problem')}: {', '.join(sorted(refused))}.\n" if refused else "\n"


def _json_type(shape: Mapping[str, Any]) -> str:
    if "$ref" in shape:
        return str(shape["$ref"]).rpartition("/")[2]
    if "anyOf" in shape:
        return " | ".join(t for part in shape["anyOf"] if (t := _json_type(part)) != "null")
    if "enum" in shape:
        return " | ".join(map(str, shape["enum"]))
    if shape.get("type") == "array":
        return f"{_json_type(shape.get('items', {}))} …"
    return str(shape.get("format") or shape.get("type", ""))


def corpora() -> str:
    """Keys of a corpus file, and the corpora that come with vtr."""
    from vtr.data.manifests import MemberTable

    rows = []
    for name in manifest_names("corpora"):
        content = read_manifest("corpora", name)
        members = [m["name"] for m in content.get("member", ())]
        rows.append((code(name), ", ".join([*members, *(f"all of {n}" for n in content.get("include", ()))])))
    return f"{keys(MemberTable)}\n## Corpora that come with vtr\n\n{table(('--corpus', 'members'), rows)}"


def benchmarks() -> str:
    """Keys of a benchmark file, and the benchmarks that come with vtr."""
    from vtr.eval.benchmarks import AnnotationFile, Protocol, Published

    parts = (("At the top", Protocol), ("[[annotation]]", AnnotationFile), ("[[published]]", Published))
    text = "\n".join(f"## {title}\n\n{keys(kind)}" for title, kind in parts)
    rows = []
    for name in manifest_names("benchmarks"):
        content = read_manifest("benchmarks", name)
        files = dict.fromkeys(a["file"].rpartition("/")[2] for a in content["annotation"])
        counts = (str(content.get("paper_videos", "")), str(content.get("paper_queries", "")))
        rows.append((code(name), code(content.get("captions", "each")), *counts, ", ".join(map(code, files))))
    titles = ("--data", "captions", "videos", "queries", "annotation, any of")
    return f"{text}\n## Benchmarks that come with vtr\n\n{table(titles, rows)}"


def recipes() -> str:
    """Keys of a fine-tuning recipe, and the recipes that come with vtr."""
    from vtr.pretrain.recognition.tasks import TuneRecipe, load_task, task_names

    rows = [(code(name), (task := load_task(name)).about, code(task.layout), task.sources) for name in task_names()]
    return (
        f"{keys(TuneRecipe)}\n## Tasks that come with vtr\n\n{table(('--task', 'what', 'layout', 'recipe from'), rows)}"
    )


def _attributes(doc: str) -> dict[str, str]:
    """What a docstring's `Attributes:` says of each."""
    found: dict[str, str] = {}
    for names, text in re.findall(r"^    ([\w, ]+): (.+(?:\n {8}.+)*)", doc, re.MULTILINE):
        found |= {name.strip(): " ".join(text.split()) for name in names.split(",")}
    return found


def settings() -> str:
    """What `--set` of pretraining reaches, with the defaults of the recipe `clean` for the paper's sizes."""
    from vtr.pretrain.recipes import Optim, Recipe, Stage, TextWarmup

    parts = (("Of the whole run", Recipe), ("STAGE.", Stage), ("STAGE.optim.", Optim), ("warmup.", TextWarmup))
    return "\n".join(f"### {title}\n\n{keys(kind)}" for title, kind in parts)


def differences() -> str:
    """Where the two pretraining recipes differ."""
    from vtr.pretrain.recipes import DIFFERENCES

    rows = ((d.what, d.clean, d.official, d.why, code(d.setting)) for d in DIFFERENCES)
    return table(("what", "clean", "official", "why", "key"), rows)


PAGES: dict[str, Callable[[], str]] = {
    f.__name__: f for f in (verbs, entries, python, shapes, rest, corpora, benchmarks, recipes, settings, differences)
}

if __name__ == "__main__":  # what one of them writes, to look at
    print(PAGES[sys.argv[1]]())
