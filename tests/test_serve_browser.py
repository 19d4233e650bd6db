"""The page in a real browser: typing, reading, opening, pruning, keys, hostile texts, dark and narrow screens."""

import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from served import HOSTILE, make_collection, serving, shown

from splade_lit.web.answers import Answers
from splade_lit.web.server import Served, open_answers

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium or Chrome is installed")

QUERY = "song of the king"
FITS = "document.documentElement.scrollWidth <= innerWidth"

# What sticks out of the page sideways.
STICKS_OUT = """skipped => [...document.body.querySelectorAll("*")].filter(one => {
  const box = one.getBoundingClientRect();
  return box.width && !one.closest(skipped) && (box.right > innerWidth + 0.5 || box.left < -0.5);
}).map(one => one.outerHTML.slice(0, 80))"""

# The least contrast of a text with what is behind it, as WCAG has it; of texts that are not faded on purpose.
CONTRAST = """() => {
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const rgba = colour => {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = colour;
    canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data].map((value, place) => place < 3 ? value : value / 255);
  };
  const over = (top, below) => [0, 1, 2].map(n => top[n] * top[3] + below[n] * (1 - top[3]));
  const linear = v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
  const luminance = colour => {
    const [r, g, b] = colour.map(value => linear(value / 255));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = one => {
    if (!one) return [255, 255, 255];
    const own = rgba(getComputedStyle(one).backgroundColor);
    return own[3] === 1 ? own.slice(0, 3) : over(own, behind(one.parentElement));
  };
  const root = document.querySelector("dialog[open]") ?? document.body, faded = ".off, .unseen, noscript, :disabled";
  const walker = document.createTreeWalker(root, NodeFilter.SHOW_TEXT);
  let least = 21;
  while (walker.nextNode()) {
    const one = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim() || !one.getClientRects().length || one.closest(faded)) continue;
    const below = behind(one), text = over(rgba(getComputedStyle(one).color), below);
    const [a, b] = [luminance(text), luminance(below)].sort((x, y) => y - x);
    least = Math.min(least, (a + 0.05) / (b + 0.05));
  }
  return least;
}"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny_tokenizer) -> Path:
    folder = tmp_path_factory.mktemp("collection")
    make_collection(folder, tiny_tokenizer)
    return folder


@pytest.fixture(scope="module")
def answers(folder) -> Answers:
    served = Served(
        [str(folder / "index")], with_bm25=True, task=str(folder / "task"), model=str(folder / "model of index")
    )
    return open_answers(served)


@pytest.fixture(scope="module")
def address(answers) -> Iterator[str]:
    with serving(answers) as address:
        yield address


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


@pytest.fixture
def visit(browser, address) -> Iterator[Any]:
    """Opens the page; at the end there must have been no error and no request to another server."""
    contexts, problems = [], []

    def open_page(target: str = "/", width: int = 1280, dark: bool = False, at: str = address) -> Any:
        settings = {"viewport": {"width": width, "height": 800}, "color_scheme": "dark" if dark else "light"}
        contexts.append(browser.new_context(**settings))
        page = contexts[-1].new_page()
        page.on("console", lambda message: problems.append(message.text) if message.type in ("error", "warning") else 0)
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("dialog", lambda dialog: problems.append(dialog.message))
        page.on("request", lambda request: problems.append(request.url) if not request.url.startswith(at) else None)
        page.goto(at + target)
        return page

    open_page.problems = problems
    yield open_page
    for context in contexts:
        context.close()
    assert problems == []


def until(page: Any, condition: str) -> None:
    """Wait until a condition holds; the page's policy forbids the `eval` of playwright's own `wait_for_function`."""
    deadline = time.monotonic() + 20
    while not page.evaluate(condition):
        assert time.monotonic() < deadline, condition
        page.wait_for_timeout(20)


def hits(page: Any, column: int = 0) -> list[str]:
    """The ids that are shown."""
    return page.locator(".column").nth(column).locator(".open").all_inner_texts()


def search(page: Any, query: str) -> None:
    """Type a query, and wait for its hits."""
    with page.expect_response(lambda response: "/api/search" in response.url and "system=1" not in response.url):
        page.fill("#query", query)
    until(page, "!document.querySelector('.busy')")


def test_typing_shows_hits_that_are_the_servers(visit, answers):
    page = visit()
    until(page, "document.querySelectorAll('#empty button').length === 3")  # the queries of the task
    page.type("#query", QUERY, delay=10)
    until(page, "document.querySelectorAll('.column.shown > .chips li').length === 4")
    until(page, "!document.querySelector('.busy')")
    for number in range(2):
        expected = answers.search(QUERY, number, 10, None)
        assert hits(page, number) == [hit.id for hit in expected.hits]
        column = page.locator(".column").nth(number)
        asked = column.locator("> .chips li").all_text_contents()
        assert asked == [f"{term.token}{term.weight:.2f}" for term in expected.query_terms]
        assert re.search(r"nDCG@10 \d\.\d{3} · search [\d.]+ ms · round trip [\d.]+ ms", column.inner_text())
        for card, hit in zip(column.locator(".hit").all(), expected.hits, strict=True):
            shown = [text.split("\n") for text in card.locator(".chip").all_inner_texts()]
            assert [n for n, *_ in shown] == [f"({t.token})" if t.in_text is False else t.token for t in hit.terms]
            assert [float(share.split(",")[0]) for _, share, *_ in shown] == pytest.approx(
                [t.share for t in hit.terms], abs=0.006
            )
            assert card.locator("mark").count() == len(hit.excerpt.marks)
    assert "q=song+of+the+king" in page.url
    page.reload()
    page.wait_for_selector(".hit")
    assert hits(page) == [hit.id for hit in answers.search(QUERY, 0, 10, None).hits]
    page.locator(".badge.good").first.wait_for()  # what the task says is relevant
    page.fill("#query", "")
    page.wait_for_selector("#empty:not([hidden])")
    page.locator("#empty button").first.click()
    page.wait_for_selector(".hit")


def test_answers_of_earlier_queries_are_dropped(visit, answers):
    page = visit("/?q=city")
    page.wait_for_selector(".hit")

    def slow(route: Any) -> None:
        time.sleep(0.4)
        route.continue_()

    page.route(re.compile("query=river"), slow)
    page.fill("#query", "river")
    page.wait_for_timeout(150)
    assert hits(page) == [hit.id for hit in answers.search("city", 0, 10, None).hits]  # they stay meanwhile
    page.fill("#query", "heart disease")
    page.wait_for_timeout(1500)
    assert hits(page) == [hit.id for hit in answers.search("heart disease", 0, 10, None).hits]


def test_a_document_is_opened_in_full(visit, answers):
    page = visit("/?q=" + quote(QUERY))
    page.locator(".hit .open").nth(1).click()
    page.wait_for_selector(".dims li")
    hit = answers.search(QUERY, 0, 10, None).hits[1]
    document = answers.document(hit.id, QUERY, 0, None)
    assert page.locator("#title").inner_text() == hit.id
    assert page.locator("#sheet .text").first.inner_text().split() == document.text[: document.read_until].split()
    rows = [row.split("\t") for row in page.locator("#sheet tbody tr").all_inner_texts()]
    assert [row[0].strip() for row in rows] == [
        f"({term.token})" if term.in_text is False and term.document_weight else term.token for term in document.terms
    ]
    assert [row[4].strip() for row in rows] == [
        term.raised_by.token if term.raised_by else "" for term in document.terms
    ]
    page.get_by_role("button", name="added").click()
    assert page.locator(".dims li").count() == min(60, sum(dim.in_text is False for dim in document.dims))
    page.locator("tbody tr").first.hover()
    page.mouse.move(0, 0)
    page.evaluate("CSS.highlights.clear()")
    page.locator("td.word button").first.focus()
    assert page.evaluate("CSS.highlights.has('raising')")
    page.keyboard.press("ArrowRight")
    until(page, f"document.querySelector('#title').textContent === {hits(page)[2]!r}")
    page.keyboard.press("Escape")
    page.wait_for_selector("dialog:not([open])", state="attached")
    assert page.evaluate("document.activeElement.textContent") == hits(page)[2]


def first_cap(answers: Answers, number: int = 0) -> tuple[int, int]:
    """The least cap that leaves hits, and its place on the slider."""
    caps = [point.cap for point in answers.pruning(number).points]
    return next((place, cap) for place, cap in enumerate(caps) if answers.search(QUERY, number, 10, cap).hits)


def test_the_slider_prunes_and_shows_what_changes(visit, answers):
    page = visit("/?q=" + quote(QUERY))
    page.wait_for_selector(".hit")
    page.wait_for_selector("#pruning:not([hidden])")
    assert page.locator("#kept").inner_text() == "all"
    page.focus("#cap")
    page.keyboard.press("Home")
    until(page, "document.querySelector('#kept').textContent === 'largest 4'")
    place, cap = first_cap(answers)
    for _ in range(place):
        page.keyboard.press("ArrowRight")
    expected = answers.search(QUERY, 0, 10, cap)
    moved = sum(hit.whole_rank != hit.rank for hit in expected.hits)
    assert moved > 0
    until(page, f"document.querySelectorAll('.badge.up, .badge.down, .badge.new').length === {moved}")
    assert hits(page) == [hit.id for hit in expected.hits]
    assert page.locator(".left").inner_text().startswith(f"{moved} of {len(expected.hits)} hits moved. Left: ")
    while not answers.pruning(0).is_complete:
        page.wait_for_timeout(100)
    point, whole = answers.pruning(0).points[place], answers.pruning(0).points[-1]
    until(page, f"document.querySelector('#figures').textContent.includes('{point.ndcg:.3f}')")
    sizes = [f"{n / 1000:.1f} kB" if n >= 1000 else f"{n} bytes" for n in (point.num_bytes, whole.num_bytes)]
    bm25 = f"{answers.pruning(1).points[-1].ndcg:.3f}"
    assert page.locator("#figures section").nth(1).inner_text().split() == ["BM25", "nDCG@10", bm25]
    assert page.locator("#figures section").first.locator("dd").all_inner_texts() == [
        *(sizes[0], f"of {sizes[1]}"),
        *(f"{point.active_dims:.1f}", f"of {whole.active_dims:.1f}"),
        *(f"{point.ndcg:.3f}", f"of {whole.ndcg:.3f}"),
    ]
    assert f"cap={cap}" in page.url
    page.reload()
    page.wait_for_selector(".left")
    assert hits(page) == [hit.id for hit in expected.hits]


def test_keys_alone_are_enough(visit):
    page = visit()
    page.wait_for_selector("#empty:not([hidden])")
    page.keyboard.type(QUERY)  # the field has the focus
    page.wait_for_selector(".hit")
    until(page, "!document.querySelector('.busy')")
    focused = "document.activeElement.id || document.activeElement.textContent"
    for key, expected in (
        ("ArrowDown", hits(page)[0]), ("ArrowDown", hits(page)[1]), ("ArrowRight", hits(page, 1)[1]),
        ("ArrowUp", hits(page, 1)[0]), ("ArrowLeft", hits(page)[0]), ("ArrowUp", "query"),
        ("ArrowDown", hits(page)[0]), ("Escape", "query"), ("ArrowDown", hits(page)[0]), ("/", "query"),
        ("ArrowDown", hits(page)[0]),
    ):  # fmt: skip
        page.keyboard.press(key)
        assert page.evaluate(focused) == expected, key
    page.keyboard.press("ArrowDown")
    second = hits(page)[1]
    for query in ("song king", QUERY):  # the focus stays at the document while others move
        page.evaluate("query => { document.querySelector('#query').value = query; form.requestSubmit(); }", query)
        until(page, f"document.querySelectorAll('.column.shown > .chips li').length === {len(query.split())}")
        assert page.evaluate(focused) == second
    page.keyboard.press("ArrowUp")
    composed = "{ key: 'ArrowDown', bubbles: true, isComposing: true }"  # of an input method
    page.evaluate(f"document.activeElement.dispatchEvent(new KeyboardEvent('keydown', {composed}))")
    assert page.evaluate(focused) == hits(page)[0]
    page.keyboard.press("Enter")
    page.wait_for_selector(".dims li")
    assert page.evaluate(focused) == "sheet"
    page.focus("#next")
    for number in range(1, len(hits(page))):
        page.keyboard.press("Enter")
        until(page, f"document.querySelector('#title').textContent === {hits(page)[number]!r}")
        assert page.evaluate(focused) == ("next" if number < len(hits(page)) - 1 else "previous")
    for _ in range(12):  # the focus stays in it
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement === document.body || !!document.activeElement.closest('dialog')")
    page.keyboard.press("Escape")
    until(page, f"document.activeElement.textContent === {hits(page)[-1]!r}")
    assert page.input_value("#query") == QUERY


@pytest.mark.parametrize("width", [1280, 360])
def test_hostile_texts_are_shown_as_they_are(visit, width):
    page = visit("/?q=" + quote(QUERY), width=width)
    page.wait_for_selector(".hit")
    seen = set()
    if width == 360:
        page.get_by_role("button", name="BM25", exact=True).click()
    for id, text in HOSTILE.items():
        search(page, text if len(text) < 400 else f"{text[:300]} {text[-20:]}")
        assert page.evaluate(FITS)
        found = [name for name in hits(page, 1) if " ".join(name.split()) == " ".join(shown(id).split())]
        if not found or "\udce9" in id:  # no address can name it
            continue
        page.locator(".column").nth(1).locator(".open").nth(hits(page, 1).index(found[0])).click()
        until(page, "document.querySelectorAll('.dims li').length > 0")
        assert page.evaluate(FITS)
        sheet = " ".join(page.locator("#sheet .text").all_text_contents())
        assert sheet.replace("\ufeff", "").split() == text.replace("\ufeff", "").split()  # white space to JavaScript
        seen.add(id)
        page.locator("#close").click()
    made = "document.querySelectorAll('.columns script, .columns img, .columns svg, dialog img, dialog svg').length"
    assert page.evaluate(made) == 0
    search(page, "<img src=x onerror=alert(1)> \u202esong")
    assert page.evaluate("window.hacked") is None
    assert len(seen) == len(HOSTILE) - 1
    assert page.locator("bdi").first.evaluate("one => getComputedStyle(one).unicodeBidi") == "isolate"


def test_no_hits_and_unknown_words_and_a_server_that_is_gone_are_told(visit):
    page = visit()
    page.wait_for_selector("#empty:not([hidden])")
    search(page, "\u2028\ufeff\u200b")
    assert page.locator(".notice").first.inner_text() == "No word of this query is known."
    page.route("**/api/search*", lambda route: route.abort())
    page.fill("#query", "king")
    page.wait_for_selector(".notice.bad")
    assert "The server does not answer" in page.locator(".notice.bad").first.inner_text()
    page.unroute("**/api/search*")
    page.get_by_role("button", name="Try again").first.click()
    page.wait_for_selector(".hit")
    visit.problems[:] = [one for one in visit.problems if "ERR_FAILED" not in one]


@pytest.mark.parametrize(("width", "dark"), [(360, False), (800, True), (1280, False), (360, True)])
def test_nothing_sticks_out_and_colours_can_be_read(visit, width, dark):
    page = visit("/?q=" + quote(QUERY), width=width, dark=dark)
    page.wait_for_selector(".hit")
    page.wait_for_selector("#pruning:not([hidden])")
    assert (page.evaluate(FITS), page.evaluate(STICKS_OUT, ".unseen")) == (True, [])
    assert page.evaluate(CONTRAST) >= 4.5
    page.locator(".hit .open").first.click()
    page.wait_for_selector(".dims li")
    assert (page.evaluate(FITS), page.evaluate(STICKS_OUT, ".unseen, main, .top, footer")) == (True, [])
    assert page.evaluate(CONTRAST) >= 4.5
    colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", colour)[:3])) < 200) == dark


def test_a_narrow_screen_shows_one_side_at_a_time(visit):
    page = visit("/?q=" + quote(QUERY), width=360)
    page.wait_for_selector(".hit")
    shown = "[...document.querySelectorAll('.column')].map(one => one.offsetParent !== null)"
    assert page.evaluate(shown) == [True, False]
    page.get_by_role("button", name="BM25", exact=True).click()
    assert page.evaluate(shown) == [False, True]


def test_everything_has_a_name(visit):
    page = visit("/?q=" + quote(QUERY))
    page.wait_for_selector(".hit")
    unnamed = """() => [...document.querySelectorAll("button, input, a, section, dialog")].filter(one => {
      const by = one.getAttribute("aria-labelledby");
      return !(one.textContent.trim() || one.getAttribute("aria-label") || by && document.getElementById(by)
               || one.labels?.length);
    }).map(one => one.outerHTML)"""
    assert page.evaluate(unnamed) == []
    assert page.locator("#status").inner_text() == f"index: {len(hits(page))} hits; BM25: {len(hits(page, 1))} hits"
    assert page.locator("html").get_attribute("lang") == "en"


def test_two_indexes_beside_each_other(visit, folder):
    with serving(open_answers(Served([str(folder / "index"), str(folder / "other")]))) as two:
        page = visit("/?q=" + quote(QUERY), at=two)
        page.wait_for_selector(".hit")
        assert page.locator(".column h2").all_inner_texts() == ["index", "other"]
        page.focus("#cap")
        page.keyboard.press("ArrowLeft")
        until(page, "document.querySelectorAll('.left').length === 2")
        assert len(page.locator("#figures dt").all_inner_texts()) == 4
        same = set(hits(page)) & set(hits(page, 1))
        page.locator(".hit", has_text=next(iter(same))).first.hover()
        assert page.locator(".hit.twin").count() == 2


def test_the_page_of_the_api_works_on_its_own(visit):
    page = visit("/api")
    page.wait_for_selector(".operation")
    assert page.locator(".operation h2 code").all_inner_texts() == [
        *("GET /api/site", "GET /api/search", "GET /api/document", "GET /api/pruning")
    ]
    form = page.locator(".operation").nth(1)
    form.locator("input[name=query]").fill("the king's song")
    assert "--data-urlencode 'query=the king'\\''s song'" in form.locator("pre").first.inner_text()
    form.get_by_role("button").click()
    until(page, "document.querySelectorAll('.operation')[1].textContent.includes('search_ms')")
    assert page.locator(".record").count() >= 10
