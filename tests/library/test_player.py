"""The library's clock against a browser's: what is on display at a moment's start is the moment's thumbnail."""

from __future__ import annotations

import io
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.data.media import film, plain, remuxed
from tests.helpers import small_model
from tests.library.serving import running
from vtr.library import Library
from vtr.library.html import write_contact_sheet

pytest.importorskip("fastapi", reason="pip install -e '.[serve]'")

from vtr.library.serve import make_app

STARTS = (1.0, 2.0, 3.0)
# Slow motion through the start: every frame that is shown, with its time on the browser's timeline. A jump would not do:
# Chromium enters a file by decoding stamps and mean frame lengths, and may then show a neighbour until it plays on.
PLAY = """async ([source, start]) => {
  const video = document.createElement("video");
  Object.assign(video, {muted: true, preload: "auto", src: source});
  document.body.append(video);
  await new Promise(done => { video.onloadeddata = video.onerror = done; });
  if (!video.videoWidth) return null;
  const canvas = Object.assign(document.createElement("canvas"), {width: 16, height: 12});
  const brush = canvas.getContext("2d", {willReadFrequently: true});
  const frames = [];
  await new Promise(done => {
    const shown = (_, about) => {
      brush.drawImage(video, 0, 0, 16, 12);
      frames.push([about.mediaTime, [...brush.getImageData(0, 0, 16, 12).data]]);
      if (about.mediaTime > start + .0005) done(); else video.requestVideoFrameCallback(shown);
    };
    video.onseeked = () => { video.playbackRate = .2; video.play(); };
    video.onended = done;
    video.requestVideoFrameCallback(shown);
    video.currentTime = Math.max(.001, start - .35);
  });
  video.remove();
  return frames;
}"""

# What a media file shows that is opened by itself: the stamps of the frames on display.
OPENED = """new MutationObserver((_, me) => {
  const video = document.querySelector("video");
  if (!video) return;
  me.disconnect();
  window.stamps = [];
  const shown = (_, about) => { window.stamps.push(about.mediaTime); video.requestVideoFrameCallback(shown); };
  video.requestVideoFrameCallback(shown);
}).observe(document, {childList: true, subtree: true});"""


def grey(count: int) -> list[np.ndarray]:
    """Frames of which no two neighbours are alike."""
    return [plain((30 + 53 * i % 200,) * 3) for i in range(count)]


def films() -> dict[str, bytes]:
    uneven = [0.0, 0.9, 1.0, *np.arange(1.2, 2.0, 0.1), *np.arange(2.0, 2.5, 0.05), *np.arange(2.5, 6.0, 0.125)]
    between = film(grey(72), fps=12, gop=12, options={"bf": "2", "b-adapt": "0", "sc_threshold": "0"})
    return {
        "plain.mp4": film(grey(72), fps=12),
        "late.webm": film(grey(60), fmt="webm", codec="libvpx", fps=12, begin=1.5, sound=(0.0, 6.5)),
        "late.mp4": film(grey(60), fps=12, begin=1.5),
        "uneven.mp4": film(grey(len(uneven)), times=[float(t) for t in uneven]),
        "between.mp4": between,
        "no_edit_list.mp4": remuxed(between, "mp4", muxer={"use_editlist": "0"}),
        "old.ts": film(grey(72), fmt="mpegts", codec="mpeg2video", fps=12, begin=7.0),
    }


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("player")
    (folder / "films").mkdir()
    for name, data in films().items():
        (folder / "films" / name).write_bytes(data)
    with Library.create(folder / "lib", small_model(), window=2.0, stride=1.0) as library:
        assert not library.add(folder / "films").failed
    with running(make_app(folder / "lib", small_model())) as address:
        yield address


@pytest.fixture
def page(browser: Any, address: str) -> Iterator[Any]:
    context = browser.new_context()
    page = context.new_page()
    page.set_default_timeout(30_000)
    page.goto(address)
    yield page
    context.close()


def moments(page: Any, name: str) -> list[dict[str, Any]]:
    answer = page.evaluate("() => fetch('/api/search?q=a&k=100&all_moments=true&unmerged=true').then(a => a.json())")
    found = [h for h in answer["hits"] if h["name"] == name and h["start"] in STARTS]
    assert found
    return found


def picture(address: str, segment: int, kind: str = "thumbnail") -> Image.Image:
    with urllib.request.urlopen(f"{address}/api/segments/{segment}/{kind}.jpg") as answer:
        return Image.open(io.BytesIO(answer.read())).convert("RGB")


@pytest.mark.parametrize("name", [n for n in films() if not n.endswith(".ts")])
def test_the_picture_on_display_at_the_start_is_the_thumbnail(page: Any, address: str, name: str) -> None:
    for hit in moments(page, name):
        played = page.evaluate(PLAY, [f"/api/videos/{hit['video']}/file", hit["start"]])
        assert played is not None, f"Chromium cannot play {name}"
        # Before the first picture there is nothing on display: the thumbnail is that picture.
        shown = [f for f in played if f[0] <= hit["start"] + 0.0005] or played[:1]
        browser = np.array(shown[-1][1], int).reshape(12, 16, 4)[..., :3]
        ours = np.asarray(picture(address, hit["segment"]).resize((16, 12)), int)
        assert np.abs(browser - ours).mean() < 8, (name, hit["start"], [f[0] for f in played])


def test_what_stands_in_for_a_film_that_no_browser_plays_begins_with_the_thumbnail(page: Any, address: str) -> None:
    for hit in moments(page, "old.ts"):
        strip = picture(address, hit["segment"], "preview")
        first = np.asarray(strip.crop((0, 0, strip.width // 6, strip.height)), int).mean()
        moment = [30 + 53 * i % 200 for i in range(72)][int(12 * hit["start"]) :][:2]
        thumbnail = np.asarray(picture(address, hit["segment"]), int).mean()
        assert abs(thumbnail - moment[0]) < 8
        assert min(abs(first - level) for level in moment) < 8, (first, moment)


def test_a_link_of_the_contact_sheet_opens_at_the_picture_of_the_start(browser: Any, tmp_path: Path) -> None:
    (tmp_path / "films").mkdir()
    # Without an edit list Chromium enters two frames late, at whatever time it is given.
    late = {name: 2 / 12 if name.startswith("no_edit_list") else 0.0 for name in films() if not name.endswith(".ts")}
    for name in late:
        (tmp_path / "films" / name).write_bytes(films()[name])
    with Library.create(tmp_path / "lib", small_model(), window=2.0, stride=1.0) as library:
        library.add(tmp_path / "films")
        hits = library.search("a", k=100)
        write_contact_sheet(tmp_path / "hits.html", [("a", hits)], library)
    context = browser.new_context()
    context.add_init_script(OPENED)
    page = context.new_page()
    page.goto(f"file://{tmp_path}/hits.html")
    links = page.eval_on_selector_all("a", "all => all.map(a => a.href)")
    assert len(links) == len(hits) == len(late)
    for hit, link in zip(hits, links):
        page.goto(link)
        page.wait_for_function(f"() => window.stamps && window.stamps.some(t => t >= {hit.start - 0.0005})")
        name, stamps = Path(hit.path).name, page.evaluate("() => window.stamps")
        before = [t for t in stamps if t < hit.start - 0.0005]
        assert len(before) <= 1, (name, stamps)  # a busy machine shows the film's first picture before it enters
        assert stamps[len(before)] - hit.start <= late[name] + 0.001, (name, stamps)
    context.close()
