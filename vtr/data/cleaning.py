"""The field's caption cleaning; loads nothing, since lists of benchmarks need it too."""

from __future__ import annotations

_DELETE = str.maketrans({**dict.fromkeys(",.'!?\"()*#:;~"), "-": " ", "/": " "})


def clean_caption(caption: str) -> str:
    """A caption as the published models saw it: lower case, without punctuation, dashes and slashes as spaces.

    `<person>` (the face-blurred corpora's mark) becomes the word; runs of white space become one space.
    """
    text = caption.lower().translate(_DELETE).replace("<person>", "person")
    return " ".join(text.split())
