"""The documentation's site: `make docs` builds it, strict and without a network; reference pages are filled from the code."""

from __future__ import annotations

import sys
from pathlib import Path

from sphinx.application import Sphinx

_DOCS = Path(__file__).resolve().parent
sys.path[:0] = [str(_DOCS.parent), str(_DOCS)]

import reference_pages  # noqa: E402 - beside this file

import vtr  # noqa: E402

project = "vtr"
author = "the vtr project"
copyright = "2026, the vtr project, Apache-2.0"
version = release = vtr.__version__
language = "en"

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
html_theme = "furo"
html_title = f"vtr {vtr.__version__}"
html_static_path = ["site"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False
exclude_patterns: list[str] = ["README.md", "site"]
highlight_language = "text"
smartquotes = False  # a flag begins with two dashes, in prose too

myst_heading_anchors = 4
myst_enable_extensions = ["colon_fence"]

# Docstrings are prose: what stands between single backticks is code, as it is in Markdown.
default_role = "literal"
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_class_signature = "separated"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True
python_maximum_signature_line_length = 90

# Every name of ours that is referred to must be on a page. Those of torch, numpy and Python have theirs elsewhere.
nitpicky = True
nitpick_ignore_regex = [("py:.*", r"(?!vtr\.).*"), ("py:.*", r".*\.(_\w+|T|Snapshot)")]


def setup(app: Sphinx) -> None:
    """Fill the reference pages while they are read."""
    app.connect("source-read", reference_pages.filled)
    app.connect("autodoc-process-docstring", reference_pages.one_field, priority=400)  # before napoleon's
