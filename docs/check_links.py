"""Checks the built site without a network: every local link with its anchor, nothing loaded from elsewhere; lists outer links.

python docs/check_links.py build/docs
"""

from __future__ import annotations

import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

_LOADED = {"link": "href", "script": "src", "img": "src", "source": "src", "iframe": "src", "video": "src"}


class Page(HTMLParser):
    """The anchors of a page, the links on it, and what a browser loads with it."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note what a tag names and what it points at."""
        named = {name: value or "" for name, value in attrs}
        self.anchors |= {named[name] for name in ("id", "name") if name in named}
        if tag == "a" and "href" in named:
            self.links.append(named["href"])
        if _LOADED.get(tag) in named:
            self.loaded.append(named[_LOADED[tag]])


def check(site: Path) -> tuple[list[str], dict[str, int], int, int]:
    """A line for each fault; outer links with how often they are named; how many pages and local links there are."""
    pages = {path: Page(path) for path in sorted(site.rglob("*.html"))}
    faults, outer, local = [], dict[str, int](), 0
    for path, page in pages.items():
        here = path.relative_to(site)
        for link in (*page.links, *page.loaded):
            parts = urlsplit(link)
            if link in ("http://", "https://"):  # a docstring that names schemes
                continue
            if parts.scheme or parts.netloc:
                if link in page.loaded and parts.scheme != "data":
                    faults.append(f"{here}: loads {link} from elsewhere")
                elif parts.scheme != "data":
                    outer[link] = outer.get(link, 0) + 1
                continue
            local += 1
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if not target.is_file():
                faults.append(f"{here}: {link}: no such file")
            elif parts.fragment and target in pages and unquote(parts.fragment) not in pages[target].anchors:
                faults.append(f"{here}: {link}: no such anchor")
    return faults, outer, len(pages), local


def main() -> int:
    """The command line; 1 if a link is broken."""
    faults, outer, pages, local = check(Path(sys.argv[1]).resolve())
    print(f"{pages} pages, {local} local links, {len(faults)} broken; {len(outer)} outer links, not fetched:")
    print("".join(f"  {link}\n" for link in sorted(outer)), end="")
    print("\n".join(faults), file=sys.stderr, end="\n" if faults else "")
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(main())
