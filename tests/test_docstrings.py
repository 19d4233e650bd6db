"""The docstring corpus: what the parser takes, and parts that share nothing."""

import itertools
import json
import logging
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from splade_lit.core.errors import UserError
from splade_lit.data import docstrings
from splade_lit.data.docstring_parser import MAX_REST_WORDS, QUERY_WORDS, Docstring, parse_source, split_docstring
from splade_lit.data.docstrings import DocstringCorpus, document_text, load_docstrings
from splade_lit.data.pairs import load_pairs

REST = "It slides a window over the rows of the matrix and adds up what lies below, row after row, until the end."


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def quoted_in(held_out: Iterable[Docstring], texts: Iterable[str]) -> list[str]:
    """The queries that are in one of the texts, word for word."""
    everything = "\n".join(f" {' '.join(words(text))} " for text in texts)
    return [d.first_sentence for d in held_out if f" {' '.join(words(d.first_sentence))} " in everything]


@pytest.fixture(scope="module")
def corpus() -> DocstringCorpus:
    return load_docstrings()


@pytest.fixture
def small_package(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an installed package of 400 functions, which is all there is."""
    site = tmp_path_factory.mktemp("site-packages")
    functions = [
        f'def f{n}():\n    """Slide window number {n} over rows.\n\n    The {n} windows move. {REST}\n    """\n'
        for n in range(400)
    ]
    write(site / "windows_of_rows" / "__init__.py", "\n".join(functions[:200]))
    write(site / "windows_of_rows" / "more.py", "\n".join(functions[200:]))
    write(site / "windows_of_rows" / "tests" / "test_more.py", functions[0].replace("window", "test"))
    write(site / "windows_of_rows-1.0.dist-info" / "METADATA", "Name: windows_of_rows\nVersion: 1.0\n")
    monkeypatch.syspath_prepend(site)
    monkeypatch.setattr(docstrings, "PACKAGES", ("windows_of_rows",))
    monkeypatch.setattr("sysconfig.get_paths", lambda: {"stdlib": str(site / "standard_library")})
    return site


def test_large_enough_for_a_task(corpus: DocstringCorpus) -> None:
    assert len(corpus.held_out) >= 300
    assert len(corpus.held_out) + len(corpus.distractors) >= 2000
    assert len(corpus.train) >= 10_000


def test_held_out_queries_are_nowhere_in_training(corpus: DocstringCorpus) -> None:
    """Not as a query, not quoted in one, not in a document, whatever the case and punctuation."""
    texts = [text for docstring in corpus.train for text in (docstring.first_sentence, document_text(docstring))]
    assert quoted_in(corpus.held_out, texts) == []


def test_held_out_queries_are_in_no_document_of_the_task(corpus: DocstringCorpus) -> None:
    documents = [document_text(docstring) for docstring in (*corpus.held_out, *corpus.distractors)]
    assert quoted_in(corpus.held_out, documents) == []


def test_parts_share_no_text(corpus: DocstringCorpus) -> None:
    parts = (corpus.train, corpus.distractors, corpus.held_out)
    for key in (
        lambda d: d.name,
        lambda d: " ".join(words(d.first_sentence)),
        lambda d: d.rest,
        lambda d: " ".join(words(d.rest)[: docstrings.OPENING_WORDS]),
    ):
        values = [key(docstring) for part in parts for docstring in part]
        assert len(values) == len(set(values))


def test_every_docstring_is_fit_for_search(corpus: DocstringCorpus) -> None:
    for docstring in itertools.chain(corpus.train, corpus.distractors, corpus.held_out):
        assert len(docstring.first_sentence.split()) in QUERY_WORDS
        assert 15 <= len(docstring.rest.split()) <= MAX_REST_WORDS
        assert "\n" not in docstring.first_sentence + docstring.rest
        assert docstring.first_sentence not in docstring.rest


def test_training_pairs_are_those_of_the_source(corpus: DocstringCorpus) -> None:
    pairs = load_pairs("docstrings")
    assert len(pairs) == len(corpus.train)
    assert pairs[7] == {"query": corpus.train[7].first_sentence, "document": document_text(corpus.train[7])}
    assert document_text(Docstring("a.b", "Say so.", "And more.")) == "a.b: And more."


def test_parsed_once_and_the_same_each_time(
    small_package: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "splade_lit"):
        first = load_docstrings(tmp_path / "one")
        cached = load_docstrings(tmp_path / "one")
        again = load_docstrings(tmp_path / "two")
    parsed = [message for message in caplog.messages if message.startswith("Parsing the docstrings")]
    assert len(parsed) == 2, "once for each folder"
    assert first == cached == again
    assert first.train
    assert first.held_out
    (one,), (two,) = ((tmp_path / name / "docstrings").iterdir() for name in ("one", "two"))
    assert one.name == two.name
    assert one.read_bytes() == two.read_bytes()


@pytest.mark.parametrize("damaged", ["", "no JSON\n", '["a", "b"]\n', '["a", 1, "c"]\n', '{"a": 1}\n', "7\n", "\xff"])
def test_a_damaged_cache_is_parsed_again(
    small_package: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, damaged: str
) -> None:
    expected = load_docstrings()
    load_docstrings(tmp_path)
    (path,) = (tmp_path / "docstrings").iterdir()
    whole = path.read_bytes()
    path.write_bytes(damaged.encode("latin-1"))
    assert load_docstrings(tmp_path) == expected
    assert path.read_bytes() == whole


def test_a_folder_that_cannot_be_written_costs_one_warning(
    small_package: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    with caplog.at_level(logging.WARNING, "splade_lit"):
        assert load_docstrings(tmp_path / "file") == load_docstrings()
    assert len([message for message in caplog.messages if "not cached" in message]) == 1


def test_other_versions_are_another_corpus(small_package: Path, tmp_path: Path) -> None:
    first = load_docstrings(tmp_path)
    (small_package / "windows_of_rows-1.0.dist-info").rename(small_package / "windows_of_rows-1.1.dist-info")
    write(small_package / "windows_of_rows-1.1.dist-info" / "METADATA", "Name: windows_of_rows\nVersion: 1.1\n")
    write(small_package / "windows_of_rows" / "more.py", "")
    second = load_docstrings(tmp_path)
    assert len(list((tmp_path / "docstrings").iterdir())) == 2
    assert sum(map(len, (second.train, second.distractors, second.held_out))) == 200
    assert set(second.train) < set(first.train)


def test_tests_of_packages_are_left_out(small_package: Path, tmp_path: Path) -> None:
    corpus = load_docstrings(tmp_path)
    names = {docstring.name for part in (corpus.train, corpus.distractors, corpus.held_out) for docstring in part}
    assert len(names) == 400
    assert {"windows_of_rows.f0", "windows_of_rows.more.f399"} < names


def test_nothing_is_installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, small_package: Path) -> None:
    for path in small_package.rglob("*.py"):
        path.write_text("")
    with pytest.raises(UserError, match="no Python source with docstrings is installed here"):
        load_docstrings(tmp_path)


def test_two_processes_parse_at_the_same_time(tmp_path: Path) -> None:
    files = [(name, tmp_path / f"{name}.py") for name in ("one", "two")]
    both_read = threading.Barrier(2)

    def feed(path: Path) -> None:
        with path.open("w") as pipe:  # waits until a process reads it
            with suppress(threading.BrokenBarrierError):
                both_read.wait(timeout=60)
            pipe.write(f'def f():\n    """Slide a window over rows.\n\n    {REST}\n    """\n')

    for _, path in files:
        os.mkfifo(path)
    with ThreadPoolExecutor(2) as pool:
        feeds = [pool.submit(feed, path) for _, path in files]
        parsed = docstrings._parse(files)
        assert [feed.result() for feed in feeds] == [None, None]
    assert not both_read.broken, "one process read its file only after the other had ended"
    assert [docstring.name for docstring in parsed] == ["one.f", "two.f"]


def test_files_that_cannot_be_read_have_no_docstrings(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    good = tmp_path / "good.py"
    good.write_text(f'def f():\n    """Slide a window over rows.\n\n    {REST}\n    """\n    return "\\d"\n')
    (tmp_path / "latin.py").write_bytes(b'# coding: latin-1\nx = "\xe9"\n')
    (tmp_path / "broken.py").write_text("def f(:\n")
    (tmp_path / "null.py").write_bytes(b"\x00")
    (tmp_path / "deep.py").write_text("x = " + "(" * 5000 + ")" * 5000)
    (tmp_path / "link.py").symlink_to(tmp_path / "nowhere.py")
    (tmp_path / "folder.py").mkdir()
    files = [(path.stem, path) for path in sorted(tmp_path.iterdir())]
    assert [docstring.name for docstring in docstrings._parse(files)] == ["good.f"]
    assert capfd.readouterr().err == ""


def test_the_worker_imports_nothing_heavy() -> None:
    code = "import sys, splade_lit.data.docstring_parser; print(sorted({'torch', 'numpy'} & set(sys.modules)))"
    environment = {**os.environ, "PYTHONPATH": str(Path(docstrings.__file__).parents[2])}
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert output.stdout.strip() == "[]"


def test_names_of_what_is_documented() -> None:
    body = f'"""Slide a window over rows.\n\n{REST}\n"""'
    source = f'''
"""Slide a window over modules. {REST}"""
def function():
    {body}
    def inner():
        {body}
async def coroutine():
    {body}
class Class:
    {body}
    def method(self):
        {body}
    def _private(self):
        {body}
    def __init__(self):
        {body}
    class Inner:
        def method(self):
            {body}
def plain(): ...
'''
    names = [docstring.name for docstring in parse_source(source, "package.module")]
    assert names == [
        "package.module.function",
        "package.module.coroutine",
        "package.module.Class",
        "package.module.Class.method",
        "package.module.Class._private",
        "package.module.Class.Inner.method",
    ]


@pytest.mark.parametrize(
    "source", ["def f(:", "\x00", "x = " + "(" * 3000 + ")" * 3000, "", "# nothing", "\ufeffx = 1"]
)
def test_sources_without_docstrings(source: str) -> None:
    assert list(parse_source(source, "m")) == []


@pytest.mark.parametrize(
    ("docstring", "query"),
    [
        (f"Slide a window over rows. {REST}", "Slide a window over rows."),
        (f"Slide a window over rows.\n\n{REST}", "Slide a window over rows."),
        (f"\n    Slide a window\n    over rows\n\n    {REST}", "Slide a window over rows"),
        (f"Slide a window, e.g. of rows. {REST}", "Slide a window, e.g. of rows."),
        (f"Slide a window, i.e. rows, vs. columns. {REST}", "Slide a window, i.e. rows, vs. columns."),
        (f"Slide windows of version 2.0 over rows. {REST}", "Slide windows of version 2.0 over rows."),
        (f"What slides over the rows? {REST}", "What slides over the rows?"),
        (f"Slide a :class:`~torch.Tensor` over ``rows`` of `xs`. {REST}", "Slide a torch.Tensor over rows of xs."),
        (f"Slide as :py:meth:`the others <a.b>` do. {REST}", "Slide as the others do."),
    ],
)
def test_first_sentences(docstring: str, query: str | None) -> None:
    parts = split_docstring(docstring)
    assert (parts and parts[0]) == query


def test_rest_is_prose_on_one_line() -> None:
    directives = ".. versionadded:: 1.2\n\nParameters\n----------\nx : array\n    The rows.\n\n>>> f(x)\n... y\n"
    query, rest = split_docstring(f"Slide a window over rows. {REST}\n\n{directives}")
    assert query == "Slide a window over rows."
    assert rest == f"{REST} Parameters x : array The rows. f(x) y"
    assert len(split_docstring(f"Slide a window over rows.\n\n{REST * 50}")[1].split()) == MAX_REST_WORDS


@pytest.mark.parametrize(
    "docstring",
    [
        "",
        "   \n ",
        "Slide a window over rows.",
        f"Slide windows. {REST}",
        f"{'Slide a window over rows ' * 7}. {REST}",
        f"Deprecated: slide a window over rows. {REST}",
        f"Copied from the other window of rows. {REST}",
        f"See the other window of rows. {REST}",
        f"TODO slide a window over rows. {REST}",
        f"Slide a window as https://example.org says. {REST}",
        f"slide(a=1, b=2) -> a window. {REST}",
        f"-- slide a window over rows. {REST}",
        f"Slide a window over rows.\n\nTo slide a window over rows. {REST}",
        "Slide a window over rows.\n\n" + "| 1 | 2 | 3 |\n" * 20,
        "Slide a window over rows.\n\nToo short.",
    ],
)
def test_docstrings_that_are_unfit(docstring: str) -> None:
    assert split_docstring(docstring) is None


def test_copies_count_once() -> None:
    first = Docstring("a", "Slide a window over rows.", f"{REST} One.")
    kept = docstrings._without_copies(
        [
            first,
            first._replace(name="b", first_sentence="Another sentence of words."),  # the same opening
            first._replace(name="c", first_sentence="SLIDE a window, over rows", rest="Other words."),
            first._replace(first_sentence="A third sentence.", rest="The same name."),
            Docstring("d", "A fourth sentence.", "Other words than those."),
        ]
    )
    assert [docstring.name for docstring in kept] == ["a", "d"]


def in_part(first: int, last: int, number: int) -> str:
    """The number-th query whose hash falls into this part of the corpus."""
    queries = (f"Slide window number {n} over rows." for n in itertools.count())
    chosen = (
        query
        for query in queries
        if first <= docstrings.xxhash.xxh3_64_intdigest(docstrings._normal(query).encode()) % 1000 < last
    )
    return next(itertools.islice(chosen, number, None))


def test_what_quotes_a_held_out_query_is_left_out() -> None:
    held_out = in_part(0, docstrings.QUERY_SHARE, 0)
    quoted = held_out.upper().replace(" ", " - ").rstrip(".")

    def pair(name: str, query: str, rest: str = REST) -> Docstring:
        return Docstring(name, query, rest)

    def train(number: int) -> str:
        return in_part(docstrings.CORPUS_SHARE, 1000, number)

    def distractor(number: int) -> str:
        return in_part(docstrings.QUERY_SHARE, docstrings.CORPUS_SHARE, number)

    longer = next(
        query
        for query in (f"{held_out.rstrip('.')} and columns {n}." for n in itertools.count())
        if docstrings.xxhash.xxh3_64_intdigest(docstrings._normal(query).encode()) % 1000 >= docstrings.CORPUS_SHARE
    )
    corpus = docstrings._split(
        [
            pair("answer", held_out),
            pair("plain", train(0)),
            pair("quotes", train(1), f"{REST} {quoted} {REST}"),
            pair("ends_with_it", train(2), f"{REST} {held_out}"),
            pair("longer", longer),
            pair("distractor", distractor(0)),
            pair("quoting_distractor", distractor(1), f"{held_out} {REST}"),
            pair("second_answer", in_part(0, docstrings.QUERY_SHARE, 1), f"{REST} {held_out}"),
        ]
    )
    assert [docstring.name for docstring in corpus.held_out] == ["answer"]
    assert [docstring.name for docstring in corpus.train] == ["plain"]
    assert [docstring.name for docstring in corpus.distractors] == ["distractor"]


def test_short_queries_are_found_too() -> None:
    queries = {("slide", "windows", "twice"): [["slide", "windows", "twice"]]}
    assert docstrings._quotes(words("We slide windows twice."), queries)
    assert not docstrings._quotes(words("We slide windows."), queries)


def test_records_are_json_lines(tmp_path: Path) -> None:
    path = tmp_path / "a b.py"
    path.write_text(f'def f():\n    """Slide a "window" over the rows: é.\n\n    {REST}\n    """\n', encoding="utf-8")
    (line,) = docstrings._parse_in_process([("m", path)]).splitlines()
    assert json.loads(line)[:2] == ["m.f", 'Slide a "window" over the rows: é.']
