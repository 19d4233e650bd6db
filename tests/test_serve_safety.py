"""What the server of the page refuses, and what it tells browsers to refuse."""

import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import numpy as np
import pytest
from served import HOSTILE, fetch, make_collection, serving

from splade_lit import serve
from splade_lit.core.tokenisation import ReadText
from splade_lit.data.tasks import RetrievalTask
from splade_lit.web import app, systems
from splade_lit.web.answers import Answers
from splade_lit.web.bm25 import Bm25System
from splade_lit.web.judged import JudgedQueries
from splade_lit.web.server import Served, open_answers
from splade_lit.web.systems import KeptReads


@pytest.fixture(scope="module")
def address(tmp_path_factory, tiny_tokenizer) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("collection")
    make_collection(folder, tiny_tokenizer)
    with serving(open_answers(Served([str(folder / "index")], with_bm25=True)), ("my.name",)) as address:
        yield address


def test_every_answer_has_the_headers_that_keep_browsers_safe(address):
    for target in (
        "/",
        "/api",
        "/page.css",
        "/page.js",
        "/openapi.json",
        "/api/site",
        "/nothing",
        "/api/search",
        "/icon.svg",
    ):
        _, headers, _ = fetch(address, target)
        policy = headers["content-security-policy"]
        assert "unsafe" not in policy
        assert "default-src 'none'" in policy
        assert "script-src 'self'" in policy
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["x-frame-options"] == "DENY"
        assert headers["referrer-policy"] == "no-referrer"
        assert "server" not in headers
        assert "access-control-allow-origin" not in headers
    assert fetch(address, "/", "HEAD")[0] == 200


def test_pages_load_nothing_from_elsewhere_and_have_no_script_of_their_own():
    for path in Path(serve.__file__).parent.joinpath("web", "page").iterdir():
        text = path.read_text()
        assert "innerHTML" not in text
        assert "://" not in text.replace("http://www.w3.org/2000/svg", "")
        if path.suffix == ".html":
            assert " style=" not in text
            assert " on" not in "".join(part.split(">")[0] for part in text.split("<")[1:]).replace(" on=", "")


@pytest.mark.parametrize(
    ("target", "settings", "status", "what"),
    [
        ("/api/search?query=" + "a" * 2001, {}, 422, "query: String should have at most 2000 characters."),
        ("/api/search", {}, 422, "query: Field required."),
        ("/api/search?query=a&top=101", {}, 422, "top: Input should be less than or equal to 100."),
        ("/api/search?query=a&top=0", {}, 422, "top: Input should be greater than or equal to 1."),
        ("/api/search?query=a&cap=0", {}, 422, "cap: Input should be greater than or equal to 1."),
        ("/api/search?query=a&cap=x", {}, 422, "cap: Input should be a valid integer"),
        ("/api/search?query=a&system=2", {}, 404, "There is no system 2; there are 2, from 0."),
        ("/api/search?query=a&system=-1", {}, 422, "system: Input should be"),
        ("/api/document?id=" + "a" * 2001, {}, 422, "id: String should have at most 2000 characters."),
        ("/api/search?query=" + "a" * 50_000, {}, 414, "longer than 49152 bytes"),
        ("/nothing", {}, 404, "Not Found"),
        ("/../../etc/passwd", {}, 404, "Not Found"),
        ("/docs", {}, 404, "Not Found"),
        ("/api/search?query=a", {"method": "POST"}, 405, "Only GET is answered here."),
        ("/api/search?query=a", {"body": b"x" * 10}, 413, "Requests have no body here."),
        ("/", {"Host": "evil.example"}, 421, "This server has another name"),
        ("/", {"Host": "evil.example:8000"}, 421, "This server has another name"),
        ("/", {"Host": "localhost.evil.example"}, 421, "This server has another name"),
        ("/", {"Host": "127.0.0.1.evil.example"}, 421, "This server has another name"),
        ("/", {"Host": ""}, 421, "This server has another name"),
        ("/api/site", {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "cors"}, 403, "Pages of other sites"),
    ],
)
def test_what_is_not_to_be_answered_is_refused(address, target, settings, status, what):
    got, _, content = fetch(address, target, **settings)
    assert (got, what in json.loads(content)["detail"]) == (status, True), content


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST:1", "127.0.0.1", "127.0.0.1:99", "[::1]:80", "[::1]", "my.name", "My.Name.:80"]
)
def test_names_of_this_server_are_answered(address, host):
    assert fetch(address, "/", Host=host)[0] == 200


@pytest.mark.parametrize(
    "query", [*HOSTILE.values(), "%00", "' OR 1=1 --", "\ud800", "a" * 2000, "中" * 2000, "😀" * 2000, " ", "\n\t", ""]
)
def test_any_query_is_answered(address, query):
    target = "/api/search?" + urlencode({"query": query[:2000]}, errors="surrogatepass")
    for system in "01":
        status, _, content = fetch(address, f"{target}&system={system}")
        assert status == 200, content
        assert len(json.loads(content)["hits"]) <= 10


def test_the_longest_query_and_id_are_taken(address):
    target = "/api/document?" + urlencode({"query": "😀" * 2000, "id": "😀" * 2000, "cap": 100})
    assert fetch(address, target)[0] == 404


def test_answers_that_are_given_up_keep_their_threads(monkeypatch):
    end, lock, begun = threading.Event(), threading.Lock(), []

    class Slow(Answers):
        def search(self, *arguments: Any) -> Any:
            with lock:
                begun.append(arguments)
            end.wait()
            return super().search(*arguments)

    monkeypatch.setattr(app, "_SECONDS", 0.2)
    monkeypatch.setattr(app.os, "cpu_count", lambda: 1)
    bm25 = Bm25System(["a", "b"], ["song of a king", "river"], "here")
    with serving(Slow([bm25])) as address:
        try:
            for _ in range(2):
                with ThreadPoolExecutor(5) as pool:
                    told = list(pool.map(fetch, [address] * 5, ["/api/search?query=song"] * 5))
                assert {status for status, _, _ in told} == {503}
            assert len(begun) == 3
        finally:
            end.set()
        monkeypatch.setattr(app, "_SECONDS", 30.0)
        assert json.loads(fetch(address, "/api/search?query=song")[2])["hits"][0]["id"] == "a"


def test_long_texts_of_many_places_are_read_in_part():
    texts = ["aa song " * 100_000 + "king", "song of a king"]
    bm25 = Bm25System(["long", "short"], texts, "here")
    answers = Answers([bm25])
    found = answers.search("aa song king", 0, 10, None)
    hit = next(hit for hit in found.hits if hit.id == "long")
    assert {term.token: term.in_text for term in hit.terms} == {"aa": True, "song": True, "king": True}
    assert hit.excerpt.text.startswith("aa song")
    document = answers.document("long", "king", 0, None)
    assert (document.is_whole, len(document.text), document.marks) == (False, 200_000, [])
    assert {dim.in_text for dim in document.dims} == {True}


def test_what_cannot_be_measured_is_not_waited_for():
    class Failing(Bm25System):
        def encode(self, query: str) -> Any:
            raise MemoryError

    bm25 = Failing(["a"], ["song of a king"], "here")
    judged = JudgedQueries(RetrievalTask("task", {"a": "song"}, {"q": "song"}, {"q": {"a": 1}}), [bm25])
    judged.start()
    deadline = time.monotonic() + 20
    while not judged.is_complete(0):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert Answers([bm25], judged).pruning(0).points[0].ndcg is None


def test_what_was_read_is_kept_up_to_a_size(monkeypatch):
    monkeypatch.setattr(systems, "_KEPT_TOKENS", 100)
    kept, texts = KeptReads(), []

    def read(text: str) -> ReadText:
        texts.append(text)
        return ReadText(np.zeros(40, np.int32), [None] * 40)

    for text in ("a", "b", "a", "c", "a", "b"):
        kept.get(text, read)
    assert texts == ["a", "b", "c", "b"]
    kept.get("long " * 10_000, read)
    kept.get("long " * 10_000, read)
    assert len(texts) == 6
