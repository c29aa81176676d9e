"""Takes the picture of the page in README.md and docs/index.md: a demo's library, served, one question asked.

python -m bench.screenshot                                       # docs/images/page.png, after `make demo`
python -m bench.screenshot --library my.library --query "a dog catches a frisbee" --out dog.png
"""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.command import flags_of
from vtr.errors import VtrError, reports_errors

_IMAGES = Path(__file__).resolve().parent.parent / "docs" / "images"


@contextmanager
def served(library: Path) -> Iterator[str]:
    """The address of a server over a library, until it is left."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen([sys.executable, "-m", "vtr.cli", "serve", str(library), "--port", str(port)])
    url = f"http://127.0.0.1:{port}/"
    try:
        for _ in range(600):
            if process.poll() is not None:
                raise VtrError(f"the server of {library} ended with exit code {process.returncode}")
            try:
                urllib.request.urlopen(url, timeout=5).close()
                break
            except OSError:
                time.sleep(0.2)
        yield url
    finally:
        process.terminate()
        process.wait(60)


def take(url: str, out: Path, width: int, height: int, scale: float) -> None:
    """A picture of what a browser of this size shows at an address, once it has nothing left to load."""
    from playwright.sync_api import sync_playwright

    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        raise VtrError("no Chromium is here: apt-get install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": width, "height": height}, device_scale_factor=scale)
        page.goto(url, wait_until="networkidle")
        out.parent.mkdir(parents=True, exist_ok=True)
        page.screenshot(path=out)
        browser.close()


@reports_errors
def main(argv: list[str] | None = None) -> int:
    """The command line."""
    parser = flags_of(__doc__)
    parser.add_argument(
        "--library", type=Path, default=Path("runs/demo/benchmark.library"), help="default: %(default)s"
    )
    parser.add_argument(
        "--query", default="a huge yellow ball moving to the right on the grass", help="default: %(default)s"
    )
    parser.add_argument("--url", help="a page that is served already, or a file://, instead of a library")
    parser.add_argument("--out", type=Path, default=_IMAGES / "page.png", help="default: docs/images/page.png")
    parser.add_argument("--width", type=int, default=1100, help="of the window (default: %(default)s)")
    parser.add_argument("--height", type=int, default=760, help="of the window (default: %(default)s)")
    parser.add_argument("--scale", type=float, default=1.0, help="pixels of one of the page (default: %(default)s)")
    options = parser.parse_args(argv)
    if options.url:
        take(options.url, options.out, options.width, options.height, options.scale)
    else:
        with served(options.library) as url:
            asked = f"{url}?q={urllib.request.quote(options.query)}"
            take(asked, options.out, options.width, options.height, options.scale)
    print(options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
