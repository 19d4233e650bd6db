"""The server of the page, over HTTP: answers are the index's own, and what is not to be answered is refused."""

import json
import math
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from command_runs import call, environment
from served import TEXTS, ask, fetch, make_collection, serving, shown

from splade_lit import load_query_side, serve
from splade_lit.core.bm25 import read_words, word_weights
from splade_lit.data.tasks import RetrievalTask, load_task
from splade_lit.encoder.explain import TermShare
from splade_lit.encoder.rows import keep_largest
from splade_lit.engines.exact import ExactIndex
from splade_lit.engines.index import Hit
from splade_lit.evaluation.bm25 import bm25_result
from splade_lit.evaluation.metrics import rank_metrics
from splade_lit.evaluation.results import TaskResult, evaluate_vectors
from splade_lit.web.answers import Answers
from splade_lit.web.bm25 import Bm25System
from splade_lit.web.judged import JudgedQueries
from splade_lit.web.server import Served, open_answers
from splade_lit.web.snippets import Place, excerpt

QUERIES = ["song of the king", "the river", "heart disease", "water of a country", "city", "zebra ?", "a cell"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("collection")


@pytest.fixture(scope="module")
def encoder(folder, tiny_tokenizer):
    return make_collection(folder, tiny_tokenizer)


@pytest.fixture(scope="module")
def answers(folder, encoder):
    made = open_answers(
        Served([str(folder / "index")], with_bm25=True, task=str(folder / "task"), model=str(folder / "model of index"))
    )
    while not all(made.judged.is_complete(number) for number in range(2)):
        time.sleep(0.01)
    return made


@pytest.fixture(scope="module")
def address(answers) -> Iterator[str]:
    with serving(answers, ("my.name",)) as address:
        yield address


def found(answer: Any) -> list[Hit]:
    return [Hit(hit["id"], hit["score"]) for hit in answer["hits"]]


@pytest.fixture(scope="module")
def index(folder, encoder) -> ExactIndex:
    return ExactIndex(folder / "index")


@pytest.fixture(scope="module")
def side(folder, encoder):
    return load_query_side(folder / "model of index")


def test_hits_and_terms_are_those_of_index_and_model(address, index, side, encoder):
    for query in QUERIES:
        answer = ask(address, "/api/search", query=query, top=20)
        (expected,) = index.search(side.encode(query), 20)
        assert found(answer) == [Hit(shown(id), score) for id, score in expected]
        assert {term["token"]: term["weight"] for term in answer["query_terms"]} == side.terms(query)
        for hit, (id, score) in zip(answer["hits"], expected, strict=True):
            assert (hit["rank"], hit["whole_rank"]) == (expected.index((id, score)) + 1, None)
            shares = [term for term in encoder.explain(query, shown(TEXTS[id])) if term.share]
            assert [term["share"] for term in hit["terms"]] == pytest.approx([t.share for t in shares], rel=1e-4)
            assert [term["in_text"] for term in hit["terms"]] == [term.in_text for term in shares]
            part = hit["excerpt"]
            assert part["text"] in shown(TEXTS[id])
            for mark in part["marks"]:
                token = hit["terms"][mark["term"]]["token"].removeprefix("##")
                assert part["text"][mark["start"] : mark["end"]].lower() == token


def test_a_cap_is_that_of_an_index_of_cut_documents(address, index, side, tmp_path):
    (part,) = (segment.left() for segment in index.segments)
    for cap in (3, 10):
        cut = ExactIndex.build(
            tmp_path / str(cap), lambda cap=cap: [(part[0], keep_largest(part[1], cap), None)], index.vocab_size
        )
        for query in QUERIES:
            vector = side.encode(query)
            answer = ask(address, "/api/search", query=query, cap=cap)
            assert found(answer) == [Hit(shown(id), score) for id, score in cut.search(vector, 10)[0]]
            whole = [shown(id) for id, _ in index.search(vector, 100)[0]]
            assert [hit["whole_rank"] for hit in answer["hits"]] == [whole.index(h["id"]) + 1 for h in answer["hits"]]
            assert {one["id"] for one in answer["left"]} == set(whole[:10]) - {hit["id"] for hit in answer["hits"]}
            for hit in answer["hits"]:
                assert sum(term["share"] for term in hit["terms"]) == pytest.approx(hit["score"], rel=1e-5)


def of_matching(task: RetrievalTask, result: TaskResult) -> float:
    """nDCG@10 where documents that share no term with a query are not found."""
    matched = {query: {id: score for id, score in hits.items() if score} for query, hits in result.run.items()}
    return rank_metrics(matched, task.qrels, task.graded).means["ndcg@10"]


def test_figures_of_caps_are_those_of_evaluation(address, index, side, folder, answers):
    task = load_task(str(folder / "task"))[0]
    (ids, vectors, _) = index.segments[0].left()
    queries = side.encode(list(task.queries.values()))
    curve = ask(address, "/api/pruning")
    assert curve["is_complete"]
    assert [point["cap"] for point in curve["points"]][-1] is None
    for point in curve["points"]:
        cut = keep_largest(vectors, point["cap"])
        result = evaluate_vectors(task, list(task.queries), queries, ids, cut)
        assert point["ndcg"] == pytest.approx(of_matching(task, result), abs=1e-9)
        assert point["active_dims"] == pytest.approx(result.metrics["corpus_active_dims"])
        assert (point["num_postings"], point["num_bytes"]) == (cut.nnz, 8 * cut.nnz)
    (bm25,) = ask(address, "/api/pruning", system=1)["points"]
    everything = replace(task, corpus={id: shown(text) for id, text in TEXTS.items()})
    assert bm25["ndcg"] == pytest.approx(of_matching(task, bm25_result(everything)), abs=1e-9)
    answer = ask(address, "/api/search", query="song of the king")
    per_query = evaluate_vectors(task, list(task.queries), queries, ids, vectors).rank_metrics.per_query["ndcg@10"]
    assert answer["ndcg"] == pytest.approx(per_query[0])
    assert {hit["id"]: hit["grade"] for hit in answer["hits"] if hit["grade"]}.items() <= {"d0": 1, "d24": 2}.items()
    assert ask(address, "/api/search", query="of the king")["ndcg"] is None


def test_a_document_in_full(address, index, side, encoder):
    query = "song of the king"
    for id, text in TEXTS.items():
        if "\udce9" in id:
            continue
        got = ask(address, "/api/document", id=id, query=query)
        assert (got["id"], got["text"]) == (id, text)
        read = side.tokenisation.read_document(text)
        last = max((span[1] for span in read.spans if span), default=0)
        assert (got["read_from"], got["read_until"]) == (0, last if len(read.ids) == 48 else None)
        every = range(index.vocab_size)
        expected = dict(zip(side.tokens(every), index.weights(id, every), strict=True))
        assert {dim["token"]: dim["weight"] for dim in got["dims"]} == {t: w for t, w in expected.items() if w}
        assert got["num_dims"] == len(got["dims"])
        explained = {term.token: term for term in encoder.explain(query, text)}
        for term in got["terms"]:
            same: TermShare = explained[term["token"]]
            raised = same.raised_by and same.raised_by._asdict()
            assert (term["in_text"], term["raised_by"]) == (same.in_text, raised)
        for mark in got["marks"]:
            assert text[mark["start"] : mark["end"]].lower() == got["terms"][mark["term"]]["token"].removeprefix("##")
    capped = ask(address, "/api/document", id="d0", query=query, cap=4)
    long = ask(address, "/api/document", id="d24", query=query)
    assert 0 < long["read_until"] < len(long["text"])
    assert (len(capped["dims"]), capped["num_dims"]) == (4, 4)
    assert fetch(address, "/api/document?id=nothing")[0] == 404


def test_where_reading_begins_is_told(folder, encoder, tmp_path):
    shutil.copytree(folder / "index", tmp_path / "index")
    for settings in (tmp_path / "index").rglob("tokenizer_config.json"):
        settings.write_text(json.dumps(json.loads(settings.read_text()) | {"truncation_side": "left"}))
    answers = open_answers(Served([str(tmp_path / "index")]))
    document = answers.document("d24", "song", 0, None)
    assert document.read_until is None
    assert 0 < document.read_from <= min(mark.start for mark in document.marks)
    whole = answers.document("d0", "song", 0, None)
    assert (whole.read_from, whole.read_until) == (0, None)


def test_queries_of_a_task_as_they_are_typed():
    corpus = {f"{number:02}": "song of a king" for number in range(12)} | {"12": "river"}
    queries = {"00": " song of a king\n", "q2": "r" * 2001, "q3": "river "}
    task = RetrievalTask(
        "task", corpus, queries, {"00": {"10": 1}, "q2": {"01": 1}, "q3": {"12": 1}}, leave_out_queries=True
    )
    bm25 = Bm25System(list(corpus), list(corpus.values()), "here")
    answers = Answers([bm25], JudgedQueries(task, [bm25]))
    assert set(answers.site.queries) == {"song of a king", "river"}
    answer = answers.search("song of a king", 0, 10, None)
    assert [hit.id for hit in answer.hits] == list(corpus)[:10]
    assert answer.ndcg == pytest.approx(1 / math.log2(11))  # tenth, as the query's own document does not count
    assert answers.search(" river", 0, 10, None).hits[0].grade == 1


def test_bm25_beside_it(address):
    weights, numbers = word_weights("here", list(TEXTS.values()))
    for query, words in (("songs of the king", ["song", "king"]), ("rivers", ["river"])):
        answer = ask(address, "/api/search", query=query, system=1, top=20)
        columns = [numbers[word] for word in words]
        scores = dict(zip(map(shown, TEXTS), weights[:, columns].sum(axis=1), strict=True))
        expected = sorted(((id, s) for id, s in scores.items() if s > 0), key=lambda hit: (-hit[1], hit[0]))[:20]
        assert [hit.id for hit in found(answer)] == [id for id, _ in expected]
        assert [hit.score for hit in found(answer)] == pytest.approx([score for _, score in expected], rel=1e-5)
        for hit in answer["hits"]:
            assert {term["token"] for term in hit["terms"]} <= set(words)
            assert all(term["in_text"] for term in hit["terms"])
            for mark in hit["excerpt"]["marks"]:
                word = hit["terms"][mark["term"]]["token"]
                assert hit["excerpt"]["text"][mark["start"] : mark["end"]].lower().startswith(word)
    document = ask(address, "/api/document", id="d24", query="song", system=1)
    assert document["dims"]
    assert document["read_until"] is None  # it reads whole texts


@pytest.mark.parametrize("text", [*TEXTS.values(), "The THE ÉTATS 's queries it_is don't 12 İstanbul", ""])
def test_words_are_those_of_bm25(text):
    words = list(read_words(text))
    _, numbers = word_weights("here", [text, "one"])
    assert {word for word, _, _ in words} - {"one"} == numbers.keys() - {"one"}
    for word, start, end in words:
        assert text[start:end].lower().startswith(word[:1]) or "İ" in text


def test_200_requests_at_once_are_answered_right(address, index, side):
    jobs = [(QUERIES[number % len(QUERIES)], (None, 3, 10, 25)[number % 4], number % 3) for number in range(200)]

    def one(job: tuple[str, int | None, int]) -> Any:
        query, cap, kind = job
        parameters = {"query": query} | ({} if cap is None else {"cap": cap})
        if kind == 2:
            return ask(address, "/api/document", id="d24", **parameters)
        return ask(address, "/api/search", system=kind, **parameters)

    alone = {job: one(job) for job in set(jobs)}
    with ThreadPoolExecutor(200) as pool:
        together = list(pool.map(one, jobs))
    for job, answer in zip(jobs, together, strict=True):
        expected = alone[job]
        assert answer | {"search_ms": 0} == expected | {"search_ms": 0}
        if job[2] == 0 and job[1] is None:
            (hits,) = index.search(side.encode(job[0]), 10)
            assert found(answer) == [Hit(shown(id), score) for id, score in hits]


def test_the_api_is_described(address):
    told = json.loads(fetch(address, "/openapi.json")[2])
    assert list(told["paths"]) == ["/api/site", "/api/search", "/api/document", "/api/pruning"]
    assert {"Answer", "Document", "PruningCurve", "Site", "Problem"} <= told["components"]["schemas"].keys()
    site = ask(address, "/api/site")
    assert [(one["name"], one["kind"], one["num_documents"]) for one in site["systems"]] == [
        ("index", "index", len(TEXTS)),
        ("BM25", "bm25", len(TEXTS)),
    ]
    assert (site["task"], site["num_queries"]) == ("task", 3)
    schemas = told["components"]["schemas"]
    assert ("raised_by" in schemas["Term"]["properties"], "raised_by" in schemas["RaisedTerm"]["properties"]) == (0, 1)


class Counted(Sequence[Place]):
    """Places that count how often they are looked at."""

    def __init__(self, places: list[Place]) -> None:
        self.places, self.looks = places, 0

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, place: Any) -> Any:
        self.looks += 1
        return self.places[place]


def test_excerpts_show_the_best_terms_and_whole_words():
    text = "word " * 100 + "song of the king " + "word " * 100
    terms = [
        TermShare(1, "king", 2.0, 1.0, True),
        TermShare(2, "song", 1.0, 1.0, True),
        TermShare(3, "word", 0.1, 1.0, True),
    ]
    places = [Place(0, 4, 2), Place(500, 504, 1), Place(512, 516, 0)]
    start, end = excerpt(text, places, terms, 60)
    assert "song of the king" in text[start:end]
    assert end - start <= 60
    assert (text[start - 1], text[end]) == (" ", " ")
    many = [Place(start, start + 2, 2) for start in range(0, 3000, 3)] + [Place(3000, 3004, 0), Place(3004, 3008, 1)]
    for length in (60, 300, 3000):
        starts = [0, *(max(place.start - 40, 0) for place in many[:200])]
        worth = [
            sum(terms[n].share for n in {at.term for at in many if start <= at.start and at.end <= start + length})
            for start in starts
        ]
        places = Counted(many)
        shown = excerpt("ab " * 1100, places, terms, length)
        assert shown[0] - starts[worth.index(max(worth))] in range(3)  # whole words
        assert places.looks < 10 * len(many)  # not each place from each start
    assert excerpt("ab " * 1100, many[:1000], terms, 300) == excerpt("ab " * 1100, many, terms, 300)
    assert excerpt("x" * 500, [], [], 60) == (0, 60)
    assert excerpt("short", [], [], 60) == (0, 5)


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (["--index", "nothing"], "nothing holds no index"),
        (["--index", "INDEX", "--index", "OTHER", "--with", "bm25"], "Two systems fit beside each other"),
        (["--index", "INDEX", "--index", "OTHER", "--index", "OTHER"], "Two systems fit beside each other"),
        (["--index", "INDEX", "--port", "70000"], "--port is 70000; it must be 65535 at most."),
        (["--index", "INDEX", "--host", "192.0.2.1"], "192.0.2.1, port 0:"),
        (["--index", "INDEX", "--task", "nothing"], "neither a folder nor a known task"),
        (["--index", "INDEX", "--port", "TAKEN"], "address already in use; give another --port"),
        ([], "the following arguments are required: --index"),
    ],
)
def test_what_cannot_be_served_is_told(folder, encoder, address, arguments, what):
    places = {"INDEX": folder / "index", "OTHER": folder / "other", "TAKEN": urlsplit(address).port}
    given = [places.get(word, word) for word in arguments]
    outcome = call(serve.main, *given, *([] if "--port" in arguments else ["--port", 0]))
    assert (outcome.code, what in outcome.errors[0]) == (2, True), outcome.err


def test_what_does_not_belong_together_is_told(folder, encoder, index, tmp_path):
    (tmp_path / "task" / "qrels").mkdir(parents=True)
    (tmp_path / "task" / "corpus.jsonl").write_text('{"_id": "z", "text": "song"}\n')
    (tmp_path / "task" / "queries.jsonl").write_text('{"_id": "q", "text": "song"}\n')
    (tmp_path / "task" / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq\tz\t1\n")
    told = call(serve.main, "--index", folder / "index", "--task", tmp_path / "task", "--port", 0)
    assert "no judgement names a document of index" in told.errors[0]
    ids, vectors, texts = index.segments[0].left()
    parts = [(ids, vectors, texts)]
    copy = partial(shutil.copytree, index.query_folder, dirs_exist_ok=True)
    ExactIndex.build(tmp_path / "theirs", lambda: parts, index.vocab_size, copy, model="another")
    model = folder / "model of index"
    told = call(serve.main, "--index", tmp_path / "theirs", "--model", model, "--port", 0)
    assert f"{tmp_path / 'theirs'} was not made with {model}" in told.errors[0]
    ExactIndex.build(tmp_path / "bare", lambda: [(ids, vectors, None)], index.vocab_size)
    assert "has no query side" in call(serve.main, "--index", tmp_path / "bare", "--port", 0).errors[0]


def test_it_starts_without_torch_says_where_it_is_and_ends_at_once_with_ctrl_c(folder, encoder):
    code = f"""
import sys
from splade_lit.web import server
run = server.uvicorn.Server.run
def told(*arguments, **settings):
    print(sorted({{"torch", "transformers", "datasets", "numba", "bm25s"}} & sys.modules.keys()), flush=True)
    run(*arguments, **settings)
server.uvicorn.Server.run = told
from splade_lit.command_line.exit_codes import run_command
from splade_lit.serve import main
run_command(main, ["--index", {str(folder / "index")!r}, "--port", "0"])
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        lines = [process.stdout.readline() for _ in range(3)]
        assert lines[0] == f"index: {len(TEXTS)} documents\n"
        assert lines[1].endswith("  (Ctrl-C ends it)\n")
        assert lines[2] == "[]\n"
        address = lines[1].split()[0]
        with socket.create_connection(("127.0.0.1", urlsplit(address).port)):  # one that says nothing holds nobody up
            assert ask(address, "/api/search", query="song")["hits"]
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert (process.returncode, out, err) == (130, "", "")


def test_others_than_this_machine_are_warned_of(folder, encoder, monkeypatch, caplog):
    from splade_lit.web import server

    monkeypatch.setattr(server.uvicorn.Server, "run", lambda *arguments, **settings: None)
    outcome = call(serve.main, "--index", folder / "index", "--port", 0, "--host", "0.0.0.0")
    assert outcome.code == 0, outcome.err
    assert "0.0.0.0 is reached from other machines" in caplog.text
    caplog.clear()
    assert call(serve.main, "--index", folder / "index", "--port", 0).code == 0
    assert "other machines" not in caplog.text
