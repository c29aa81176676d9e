"""The page of `vtr serve` in headless Chromium: first view, search, filters, player, exports, uploads, keyboard, phone, states.

VTR_SCREENSHOTS=FOLDER keeps pictures of what was seen.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import REPO
from tests.helpers import small_model, video_bytes, write_videos
from tests.library.serving import make_library, running
from vtr.library import Library
from vtr.library.settings import Work

pytest.importorskip("fastapi", reason="pip install -e '.[serve]'")
pytest.importorskip("playwright.sync_api", reason="pip install -e '.[dev]'")

from vtr.library.serve import ServerOptions, make_app
from vtr.library.serve import queries as serve_queries

MOMENTS = ".card:not(.ghost)"
HERE = Work(workers=0)  # a process takes longer to begin than these clips


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    make_library(folder, count=5)
    # MPEG-4 part 2 in AVI: a browser plays neither.
    import av
    import numpy as np

    with av.open(str(folder / "videos" / "old.avi"), "w") as file:
        stream = file.add_stream("mpeg4", rate=8)
        stream.width = stream.height = 48
        for i in range(16):
            image = np.full((48, 48, 3), 10 * i, np.uint8)
            file.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        file.mux(stream.encode())
    (folder / "videos" / "clip0.srt").write_text(
        "1\n00:00:00,500 --> 00:00:02,500\nThe brown foxes <i>jump</i> & rest.\n"
    )
    with Library.open(folder / "lib", small_model()) as library:
        library.add(
            folder / "videos",
            work=HERE,
            metadata={str(folder / "videos" / "clip1.mp4"): {"caption": "a cat on a roof"}},
        )
    return folder


@pytest.fixture(scope="module")
def address(made: Path) -> Iterator[str]:
    with running(make_app(made / "lib", small_model())) as address:
        yield address


@pytest.fixture
def visit(browser: Any, request: pytest.FixtureRequest) -> Iterator[Callable[..., Any]]:
    """Opens an address in a fresh browser window; the test fails if a script of the page failed."""
    contexts: list[Any] = []
    faults: list[str] = []

    def visited(url: str, before: Callable[[Any], None] = lambda page: None, **options: Any) -> Any:
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 800}, **options})
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(60_000)
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("console", lambda said: faults.append(said.text) if "Content Security" in said.text else None)
        page.on("request", lambda r: faults.append(f"asks {r.url}") if not r.url.startswith(own(url)) else None)
        before(page)
        page.goto(url)
        return page

    yield visited
    for context in contexts:
        if folder := os.environ.get("VTR_SCREENSHOTS"):
            Path(folder).mkdir(parents=True, exist_ok=True)
            context.pages[0].screenshot(path=Path(folder) / f"{request.node.name}.png")
        context.close()
    assert faults == []


def own(url: str) -> tuple[str, ...]:
    return "/".join(url.split("/")[:3]), "blob:", "data:"


def ask(page: Any, text: str) -> None:
    page.fill("#q", text)
    page.keyboard.press("Enter")
    page.wait_for_selector(MOMENTS)


def names(page: Any) -> list[str]:
    return page.locator(f"{MOMENTS} .text b").all_inner_texts()


def wait_until_playing(page: Any, start: float) -> float:
    """Waits for a picture of the video at the moment; gives its time."""
    page.wait_for_function("() => { const v = document.querySelector('#screen video'); return v && v.readyState >= 2 }")
    page.wait_for_function("start => document.querySelector('#screen video').currentTime >= start - 0.1", arg=start)
    return float(page.evaluate("() => document.querySelector('#screen video').currentTime"))


def start_of(page: Any, place: int) -> float:
    badge = page.locator(f"{MOMENTS} .badge").nth(place).inner_text()
    minutes, seconds = re.match(r"(\d+):([\d.]+)", badge).groups()  # type: ignore[union-attr]
    return 60 * int(minutes) + float(seconds)


def walk(page: Any, words: str, path_filter: str, clip: Path) -> None:
    """What a person does: words, a filter, playing a moment, more like it, a clip of one's own."""
    ask(page, words)
    everything = names(page)
    page.wait_for_function("() => [...document.images].slice(0, 3).every(i => i.complete && i.naturalWidth > 0)")

    page.click("summary")
    page.fill("#f-path", path_filter)
    page.press("#f-path", "Tab")
    page.select_option("#f-group", "all")
    page.wait_for_function("() => document.querySelectorAll('.card:not(.ghost)').length > 1 && !running")
    page.wait_for_function(
        "part => [...document.querySelectorAll('.card:not(.ghost) .text b')].length &&"
        " [...document.querySelectorAll('.card:not(.ghost) .text b')].every(b => b.textContent.includes(part))",
        arg=path_filter,
    )
    filtered = names(page)
    assert filtered
    assert len({*filtered}) < len({*everything})

    starts = [start_of(page, i) for i in range(len(filtered))]
    later = starts.index(max(starts))
    assert starts[later] > 0
    parts: list[int] = []
    page.on("response", lambda answer: parts.append(answer.status) if "/file" in answer.url else None)
    page.locator(f"{MOMENTS} .play").nth(later).click()
    at = wait_until_playing(page, starts[later])
    assert at < starts[later] + 5
    assert set(parts) == {206}  # the browser asks for byte ranges, and gets them
    page.keyboard.press("Escape")
    page.wait_for_selector("#player", state="hidden")
    page.wait_for_function("() => document.activeElement.className === 'play'")

    page.click("#clear")
    page.wait_for_function("() => document.querySelector('#filters-label').textContent === 'Filters'")
    page.wait_for_selector(MOMENTS)
    chosen = names(page)[0]
    page.locator(f"{MOMENTS} .like").first.click()
    page.wait_for_selector("#chip:not([hidden])")
    assert page.inner_text("#chip").startswith(f"like {chosen}")
    assert chosen not in names(page)

    page.set_input_files("#file", str(clip))
    page.wait_for_function("name => document.querySelector('#chip').textContent.includes(name)", arg=clip.name)
    page.wait_for_function("() => /moments? .*in/.test(document.querySelector('#status').textContent)")
    assert names(page)[0] == clip.name


def test_a_walk_through_made_videos(visit: Callable[..., Any], tmp_path: Path) -> None:
    folder = tmp_path / "videos"
    write_videos(folder, 3)
    (folder / "long.mp4").write_bytes(video_bytes(8, frames=40))
    with Library.create(tmp_path / "lib", small_model(), window=2.0, stride=1.0) as library:
        library.add(folder, work=HERE)
    with running(make_app(tmp_path / "lib", small_model())) as address:
        walk(visit(address), "a dog runs", "long", folder / "clip1.mp4")


def test_a_walk_through_real_clips_with_the_demo_model(visit: Callable[..., Any], tmp_path: Path, shared: Path) -> None:
    import vtr.models.load

    demo = REPO / "runs" / "demo"
    if not (demo / "model").is_dir():
        pytest.skip("no demo model: make demo")
    model = vtr.models.load.load(demo)
    with Library.create(tmp_path / "lib", model, window=4.0, stride=4.0) as library:
        library.add(shared / "data" / "real_clips")
    with running(make_app(tmp_path / "lib", model)) as address:
        page = visit(address)
        walk(
            page,
            "a small red circle moves left",
            "skateboarding_dog",
            shared / "data" / "real_clips" / "sam2_01_dog.mp4",
        )


def test_the_address_keeps_the_question_for_reload_and_back(visit: Callable[..., Any], address: str) -> None:
    page = visit(address)
    ask(page, "a dog runs")
    page.locator(f"{MOMENTS} .like").first.click()
    page.wait_for_selector("#chip:not([hidden])")
    page.reload()
    page.wait_for_selector("#chip:not([hidden])")
    page.go_back()
    page.wait_for_selector("#chip", state="hidden")
    page.wait_for_selector(MOMENTS)
    assert page.input_value("#q") == "a dog runs"


def test_everything_can_be_done_with_the_keyboard(visit: Callable[..., Any], address: str) -> None:
    page = visit(address)
    page.wait_for_selector("h1")
    page.keyboard.press("/")
    page.keyboard.type("a dog runs")
    page.keyboard.press("Enter")
    page.wait_for_selector(MOMENTS)
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowRight")
    place = "() => [...document.querySelectorAll('.play')].indexOf(document.activeElement)"
    assert page.evaluate(place) == 1
    page.keyboard.press("Enter")
    page.wait_for_selector("#player[open]")
    first = page.inner_text("#title")
    page.keyboard.press("n")
    assert page.inner_text("#title") != first
    page.keyboard.press("p")
    assert page.inner_text("#title") == first
    page.keyboard.press("Escape")
    page.wait_for_function(f"() => ({place})() === 1")
    page.keyboard.press("m")
    page.wait_for_selector("#chip:not([hidden])")


def test_two_wishes_and_what_is_not_wanted_are_asked_for_together(
    visit: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vtr.library.found.CLOSE", -1.0)  # no two windows are of one scene
    (tmp_path / "long.mp4").write_bytes(video_bytes(8, frames=80))
    with Library.create(tmp_path / "lib", small_model(), window=2.0, stride=1.0) as library:
        library.add(tmp_path / "long.mp4", work=HERE)
    with running(make_app(tmp_path / "lib", small_model())) as address:
        _two_wishes(visit, address)


def _two_wishes(visit: Callable[..., Any], address: str) -> None:
    page = visit(address + "/?minus=water&group=4")
    with page.expect_response("**/api/search?*") as answer:
        ask(page, "a dog + a red car")
    assert answer.value.json()["query"] == "a dog + a red car − water"
    assert {h["moment"] for h in answer.value.json()["hits"]} > {1}
    assert page.locator(".others button").count() > 0


def test_names_and_metadata_are_shown_as_text_whatever_they_hold(visit: Callable[..., Any], tmp_path: Path) -> None:
    evil = "<img src=x onerror=document.title='broken'>"
    write_videos(tmp_path / "videos", 1)
    file = (tmp_path / "videos" / "clip0.mp4").rename(tmp_path / "videos" / f"{evil}.mp4")
    with Library.create(tmp_path / "lib", small_model()) as library:
        library.add(tmp_path / "videos", work=HERE, metadata={str(file): {"caption": f"{evil} a caption"}})
    with running(make_app(tmp_path / "lib", small_model())) as address:
        page = visit(address)
        ask(page, "a dog")
        assert names(page) == [f"{evil}.mp4"]
        page.locator(f"{MOMENTS} .play").click()
        page.wait_for_selector("#facts p")
        assert page.inner_text("#facts p") == f"{evil} a caption"
        assert "broken" not in page.title()


def test_the_pointer_over_a_picture_shows_its_frames_one_after_the_other(
    visit: Callable[..., Any], address: str
) -> None:
    page = visit(address)
    ask(page, "a dog runs")
    page.locator(f"{MOMENTS} .play").first.hover()
    page.wait_for_selector("canvas[data-frame='0']", state="attached")
    page.wait_for_selector("canvas[data-frame='2']", state="attached")
    page.hover("#q")
    page.wait_for_selector("canvas", state="detached")


def test_a_format_the_browser_cannot_play_is_said_and_offered_as_a_download(
    visit: Callable[..., Any], address: str, made: Path
) -> None:
    page = visit(address + "/?q=a&path=old.avi")
    page.locator(f"{MOMENTS} .play").click()
    page.wait_for_selector(".sorry canvas")
    assert "cannot play this AVI file" in page.inner_text(".sorry")
    with page.expect_download() as download:
        page.click(".sorry a")
    assert download.value.suggested_filename == "old.avi"
    assert Path(download.value.path()).read_bytes() == (made / "videos" / "old.avi").read_bytes()


def test_a_video_replaced_while_it_is_served_is_said(visit: Callable[..., Any], tmp_path: Path) -> None:
    make_library(tmp_path, count=1)
    with running(make_app(tmp_path / "lib", small_model())) as address:
        page = visit(address)
        ask(page, "a dog runs")
        (tmp_path / "videos" / "clip0.mp4").write_bytes(video_bytes(9))
        page.locator(f"{MOMENTS} .play").click()
        page.wait_for_selector(".sorry p")
        page.wait_for_function("() => document.querySelector('.sorry').textContent.includes('has changed')")


def test_nothing_found_offers_to_clear_the_filters(visit: Callable[..., Any], address: str) -> None:
    page = visit(address + "/?q=a+dog&path=no+such+file")
    page.wait_for_selector(".state.empty")
    assert "No moment passes the filters" in page.inner_text(".state")
    page.click(".state button")
    page.wait_for_selector(MOMENTS)


def test_an_empty_library_says_how_to_fill_it(visit: Callable[..., Any], tmp_path: Path) -> None:
    Library.create(tmp_path / "lib", small_model()).close()
    with running(make_app(tmp_path / "lib", small_model())) as address:
        page = visit(address)
        page.wait_for_selector("text=This library is empty")
        assert "vtr index add lib FOLDER" in page.inner_text(".state")


def test_a_filter_that_does_not_parse_and_a_clip_that_is_none_are_explained(
    visit: Callable[..., Any], address: str, tmp_path: Path
) -> None:
    page = visit(address + "/?q=a+dog&where=lenght+%3C+3")
    page.wait_for_selector(".state.bad")
    assert "where: unknown column 'lenght'" in page.inner_text(".state")
    assert page.inner_text(".state h2") == "The condition has an error"
    assert page.inner_text("#where-error").startswith("unknown column 'lenght'")  # at the field, which is open
    assert page.locator("#f-where[aria-invalid]").count() == 1
    (tmp_path / "notes.mp4").write_text("no video at all, but words")
    page.fill("#q", "")
    page.click("#clear")
    assert page.is_hidden("#where-error")
    page.set_input_files("#file", str(tmp_path / "notes.mp4"))
    page.wait_for_selector("text=notes.mp4 cannot be read")
    assert "is text, not media" in page.inner_text(".state")


def test_a_slow_answer_shows_that_it_is_under_way_and_can_be_cancelled(
    visit: Callable[..., Any], address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import threading

    go = threading.Event()
    real = serve_queries.search
    monkeypatch.setattr(serve_queries, "search", lambda *a, **kw: go.wait(30) and real(*a, **kw))
    page = visit(address)
    page.fill("#q", "a dog")
    page.keyboard.press("Enter")
    page.wait_for_selector(".ghost")
    page.wait_for_selector("text=Still searching")
    page.click("#cancel")
    page.wait_for_selector("text=Cancelled")
    go.set()
    ask(page, "a dog runs")


def test_a_server_that_has_gone_is_said(visit: Callable[..., Any], tmp_path: Path) -> None:
    make_library(tmp_path, count=1)
    with running(make_app(tmp_path / "lib", small_model())) as address:
        page = visit(address)
        page.wait_for_selector("h1")
    page.fill("#q", "a dog")
    page.keyboard.press("Enter")
    page.wait_for_selector("text=The server does not answer")


def test_the_token_is_asked_for_or_taken_from_the_address(visit: Callable[..., Any], made: Path) -> None:
    with running(make_app(made / "lib", small_model(), ServerOptions(token="geheim"))) as address:
        page = visit(address)
        page.wait_for_selector("text=This library needs a token")
        page.fill("input[type=password]", "falsch")
        page.keyboard.press("Enter")
        page.wait_for_selector("text=that is not the token")
        page.fill("input[type=password]", "geheim")
        page.keyboard.press("Enter")
        ask(page, "a dog runs")
        page = visit(address + "/#token=geheim")
        ask(page, "a dog runs")
        assert "geheim" not in page.url
        page.wait_for_function("() => [...document.images].every(i => i.complete && i.naturalWidth > 0)")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_on_a_phone_nothing_is_wider_than_the_screen(visit: Callable[..., Any], address: str, scheme: str) -> None:
    page = visit(
        address + "/?q=a+dog", viewport={"width": 360, "height": 740}, has_touch=True, is_mobile=True,
        color_scheme=scheme,
    )  # fmt: skip
    page.wait_for_selector(MOMENTS)
    page.tap("summary")
    wide = "() => [...document.querySelectorAll('body *')].filter(n => n.getClientRects().length && !n.closest('.out, .play') && n.getBoundingClientRect().right > innerWidth + 1).map(n => n.outerHTML.slice(0, 80))"
    assert page.evaluate(wide) == []
    nameless = "() => [...document.querySelectorAll('button, a, summary')].filter(n => n.checkVisibility() && !n.innerText.trim() && !n.ariaLabel).map(n => n.outerHTML)"
    assert page.evaluate(nameless) == []
    back = page.evaluate("() => getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", back)[:3])) < 200) == (scheme == "dark")
    page.locator(f"{MOMENTS} .play").first.tap()
    page.wait_for_selector("#player[open]")
    assert page.evaluate(wide) == []
    small = "() => [...document.querySelectorAll('#player button, #player a')].filter(n => n.offsetHeight && n.offsetHeight < 40).length"
    assert page.evaluate(small) == 0


def test_the_link_with_the_token_works_in_a_tab_that_asks_for_it(visit: Callable[..., Any], made: Path) -> None:
    with running(make_app(made / "lib", small_model(), ServerOptions(token="secret"))) as address:
        page = visit(address)
        page.wait_for_selector("text=This library needs a token")
        page.evaluate("() => { location.hash = '#token=secret'; }")
        page.wait_for_selector("text=Describe a moment, and see it")
        assert "secret" not in page.url
        ask(page, "a dog runs")


def test_an_open_moment_has_an_address_and_back_closes_it(visit: Callable[..., Any], address: str) -> None:
    page = visit(address)
    ask(page, "a dog runs")
    asked = page.url
    page.locator(f"{MOMENTS} .play").nth(1).click()
    page.wait_for_selector("#player[open]")
    title, link = page.inner_text("#title"), page.url
    assert "at=" in link
    page.go_back()
    page.wait_for_selector("#player", state="hidden")
    assert page.url == asked
    assert page.locator(MOMENTS).count() > 0
    page.go_forward()
    page.wait_for_selector("#player[open]")
    assert page.inner_text("#title") == title
    page.keyboard.press("Escape")
    page.wait_for_function("asked => location.href === asked", arg=asked)
    other = visit(link)  # a link that was sent to somebody
    other.wait_for_selector("#player[open]")
    assert other.inner_text("#title") == title
    alone = visit(address + "/?" + "&".join(p for p in link.split("?")[1].split("&") if not p.startswith("q=")))
    alone.wait_for_selector("#player[open]")
    assert alone.inner_text("#title").split("\n")[0] == title.split("\n")[0]


def test_equal_files_are_one_card_that_names_its_copies(visit: Callable[..., Any], tmp_path: Path) -> None:
    [video] = write_videos(tmp_path / "videos", 1)
    (tmp_path / "videos" / "copy of it.mp4").write_bytes(video.read_bytes())
    with Library.create(tmp_path / "lib", small_model()) as library:
        library.add(tmp_path / "videos", work=HERE)
    with running(make_app(tmp_path / "lib", small_model())) as address:
        smaller = altered(lambda answer: answer["hits"][0].update(near_copies=["/far/small.webm"]), "**/api/search?*")
        page = visit(address, smaller)
        ask(page, "a dog runs")
        assert page.locator(MOMENTS).count() == 1
        assert page.inner_text(".copies") == "2 copies of this file, 1 file looks the same"
        page.click(".copies summary")
        listed, alike = page.locator(".copies li").all_inner_texts()
        assert alike.endswith("small.webm, looks the same")
        assert Path(listed).name in ("copy of it.mp4", "clip0.mp4")
        assert Path(listed).name != names(page)[0]
        assert re.fullmatch(r"\d\.\d\d match", page.inner_text(".score"))  # too few segments to be sure of any
        assert "similarity to the words: " in page.locator(".score").get_attribute("title")


def altered(change: Callable[[dict[str, Any]], None], path: str, instead: str | None = None) -> Callable[[Any], None]:
    """For `visit`: answers of a path (or of an address instead) are changed on their way."""

    def answered(route: Any) -> None:
        answer = route.fetch(url=instead)
        body = answer.json()
        change(body)
        route.fulfill(response=answer, json=body)

    return lambda page: page.route(path, answered)


def test_the_first_view_shows_the_newest_videos_and_queries_that_find_something(
    visit: Callable[..., Any], address: str
) -> None:
    page = visit(address)
    page.wait_for_selector(".tile")
    titles = page.locator(".tile b").all_inner_texts()
    assert sorted(titles) == ["clip0", "clip1", "clip2", "clip3", "clip4", "old"]
    page.locator(".tile .play").nth(titles.index("clip1")).click()
    wait_until_playing(page, 0)
    assert page.inner_text(".caption") == "a cat on a roof"
    page.go_back()
    page.wait_for_selector("#player", state="hidden")
    assert page.locator(".tile").count() == 6
    page.click(".examples button >> text=a cat on a roof")
    page.wait_for_selector(MOMENTS)
    assert page.input_value("#q") == "a cat on a roof"
    assert "q=a+cat+on+a+roof" in page.url


def test_the_page_is_one_document_that_a_browser_keeps(address: str) -> None:
    import httpx

    page = httpx.get(address)
    assert page.text.count("</script>") == page.headers["content-security-policy"].split("style-src")[0].count(
        "sha256-"
    )
    assert "page-parts" not in page.text
    again = httpx.get(address, headers={"if-none-match": page.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")


def test_the_model_is_named_with_what_it_knows(visit: Callable[..., Any], address: str) -> None:
    little = {"model": "small", "trained_on": "shapes", "knows": "shapes alone"}
    page = visit(address, altered(lambda info: info.update(little), "**/api/info"))
    page.wait_for_selector("text=The model “small” knows shapes alone")
    assert "model small, trained on shapes" in page.inner_text("footer")


def test_weak_hits_are_divided_and_alone_they_are_nothing_like_that(visit: Callable[..., Any], address: str) -> None:
    sure = [0.99, 0.97, 0.4, 0.3, 0.2, 0.1]

    def judge(answer: dict[str, Any]) -> None:
        for hit, value in zip(answer["hits"], sure):
            hit.update(confidence=value, weak=value < 0.85, by=["picture"])

    page = visit(address + "/?q=a+dog&group=best", altered(judge, "**/api/search?*"))
    page.wait_for_selector(MOMENTS)
    order = page.eval_on_selector_all("#grid > li", "all => all.map(li => li.className)")
    assert order == ["card", "card", "divide", *["card weak"] * 4]
    assert page.locator(".score").first.inner_text() == "99 % sure"
    sure[:2] = [0.45, 0.41]
    ask(page, "a cat")
    page.wait_for_selector("#grid > .divide:first-child")
    assert page.inner_text(".divide").startswith("Nothing like that here")
    assert "55 % of unrelated queries find a moment as good" in page.inner_text(".divide")


def test_what_comes_then_is_asked_for_on_demand_and_shown_in_order(visit: Callable[..., Any], address: str) -> None:
    def steps(answer: dict[str, Any]) -> None:
        for hit in answer["hits"]:
            hit["steps"] = [{**hit, "text": "a dog"}, {**hit, "text": "it sits", "start": 1.0, "end": 3.0}]

    page = visit(
        address, altered(steps, "**/api/search?*", instead=f"{address}/api/search?q=a+dog&where=path+~+%22clip2%22")
    )
    page.wait_for_selector(".tile")
    assert page.is_hidden("#then")
    page.fill("#q", "a dog")
    page.click("#then-on")
    page.keyboard.type("it sits")
    page.fill("#f-within", "3")
    with page.expect_request("**/api/search?*") as asked:
        page.keyboard.press("Enter")
    assert "q=a+dog&then=it+sits&within=3" in asked.value.url
    page.wait_for_selector(MOMENTS)
    assert page.locator(f"{MOMENTS} .steps").first.locator("span").all_inner_texts() == ["a dog", "it sits"]
    page.locator(f"{MOMENTS} .play").first.click()
    page.click(".seek >> text=it sits")
    page.wait_for_function("() => document.querySelector('#screen video')?.currentTime >= 1")


def test_what_is_said_is_found_and_its_words_are_marked(visit: Callable[..., Any], address: str) -> None:
    page = visit(address + "/?q=fox+jumps&by=words")
    page.wait_for_selector(MOMENTS)
    assert names(page) == ["clip0.mp4"]
    assert page.locator(f"{MOMENTS} mark").all_inner_texts() == ["foxes", "jump"]
    assert page.inner_text(".score") == "100 % said"
    page.locator(f"{MOMENTS} .play").click()
    now = "() => document.querySelector('.seek.now span')?.innerText === 'The brown foxes jump & rest.'"
    page.wait_for_function(now)  # what is being said as it plays


def test_the_line_under_the_player_shows_the_curve_and_seeks(visit: Callable[..., Any], address: str) -> None:
    page = visit(address + "/?q=a+dog&path=clip2")
    page.locator(f"{MOMENTS} .play").first.click()
    page.wait_for_selector("#timeline .stroke[d^='M']", state="attached")
    assert page.locator("#timeline .moment:not(.other)").count() == 1
    wait_until_playing(page, 0)
    page.evaluate("() => document.querySelector('#screen video').pause()")
    box = page.locator("#timeline").bounding_box()
    page.mouse.click(box["x"] + 0.8 * box["width"], box["y"] + box["height"] / 2)
    page.wait_for_function("() => document.querySelector('#screen video').currentTime >= .79 * 3.75")
    start = start_of(page, 0)
    page.keyboard.press("r")
    page.wait_for_function("start => document.querySelector('#screen video').currentTime < start + 1", arg=start)


def test_moments_leave_as_lists_and_as_clips(visit: Callable[..., Any], address: str, tmp_path: Path) -> None:
    page = visit(address + "/?q=a+dog&path=clip2&group=best")
    page.wait_for_selector(MOMENTS)
    page.click("#export summary")
    with page.expect_download() as download:
        page.click("#export a >> text=CSV")
    assert download.value.suggested_filename == "hits.csv"
    rows = Path(download.value.path()).read_text().splitlines()
    assert len(rows) == 2  # the head, and the one moment that passes the filter
    assert "clip2.mp4" in rows[1]
    page.locator(f"{MOMENTS} .play").click()
    page.wait_for_selector("#player[open]")
    page.click("#save summary")
    with page.expect_download() as download:
        page.click("#clip-fast")
    page.wait_for_selector("text=is saved")
    assert Path(download.value.path()).read_bytes()[4:8] == b"ftyp"
