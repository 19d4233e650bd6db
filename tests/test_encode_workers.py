"""Encoding in several processes, through Ray, from many files, and to addresses: the same shards whichever way."""

import gzip
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import psutil
import pytest
from command_runs import call, environment
from fsspec.implementations.local import LocalFileSystem

from splade_lit import encode
from splade_lit.core.errors import UserError
from splade_lit.core.stores import open_store
from splade_lit.data.corpus import _streamed, open_corpora
from splade_lit.engines import workers
from splade_lit.engines.shards import read_corpus_vectors

TEXTS = ["the song of the musical", "", "river and water " * 9, "heart disease", "a cell protein", "king and queen"] * 8


@pytest.fixture(scope="module")
def model(tmp_path_factory, tiny_tokenizer) -> Path:
    """A saved random model."""
    import torch
    from conftest import tiny_masked_lm

    from splade_lit.encoder.document import MlmDocumentEncoder
    from splade_lit.encoder.model import AsymmetricSparseEncoder
    from splade_lit.encoder.query import IdfQueryEncoder

    document = MlmDocumentEncoder(tiny_masked_lm("bert", len(tiny_tokenizer)), tiny_tokenizer.pad_token_id)
    folder = tmp_path_factory.mktemp("saved") / "model"
    AsymmetricSparseEncoder(IdfQueryEncoder(torch.ones(len(tiny_tokenizer))), document, tiny_tokenizer).save(folder)
    return folder


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    """A file of 40 documents with text and 8 without."""
    path = tmp_path_factory.mktemp("corpus") / "docs.jsonl"
    rows = [json.dumps({"_id": f"d{number}", "text": text}) for number, text in enumerate(TEXTS)]
    path.write_text("\n".join(rows), encoding="utf-8")
    return path


def arguments(model: Path, output: object, *more: object, corpus: object) -> list[str]:
    return [*map(str, ("--model", model, "--output", output, "--shard-documents", 3, *more, "--corpus", corpus))]


@pytest.fixture(scope="module")
def expected(model, corpus, tmp_path_factory) -> dict[str, bytes]:
    """The files that one process writes."""
    folder = tmp_path_factory.mktemp("expected") / "vectors"
    assert call(encode.main, *arguments(model, folder, corpus=corpus)).code == 0
    return files(folder)


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.name != ".lock"}


def test_workers_write_the_same_files(model, corpus, expected, tmp_path):
    outcome = call(encode.main, *arguments(model, tmp_path / "vectors", "--workers", 2, corpus=corpus))
    assert outcome.code == 0, outcome.err
    assert outcome.last_line == f"vectors: {tmp_path / 'vectors'}  documents 40"
    assert files(tmp_path / "vectors") == expected


def test_ray_writes_the_same_files(model, corpus, expected, tmp_path):
    pytest.importorskip("ray")
    more = ("--engine", "ray", "--workers", 2)
    done = encoding(model, corpus, tmp_path / "vectors", *more)
    assert done.wait(timeout=300) == 0, done.stderr.read() if done.stderr else ""
    assert files(tmp_path / "vectors") == expected


def encoding(model: Path, corpus: Path, output: Path, *more: object) -> subprocess.Popen:
    """The command in a process of its own."""
    words = [sys.executable, "-m", "splade_lit.encode", *arguments(model, output, *more, corpus=corpus)]
    return subprocess.Popen(words, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def worker_of(main: int, mark: str) -> psutil.Process | None:
    """One of the processes below another whose command line has a mark."""
    with_mark = []
    for process in psutil.Process(main).children(recursive=True):
        try:
            if mark in " ".join(process.cmdline()):
                with_mark.append(process)
        except psutil.Error:
            continue
    return with_mark[0] if with_mark else None


@pytest.mark.slow  # what goes on when workers die is also seen where they always do
@pytest.mark.parametrize(("engine", "mark"), [("local", "spawn_main"), ("ray", "ray::Worker")])
def test_a_worker_that_is_killed_is_replaced(model, corpus, expected, tmp_path, engine, mark):
    if engine == "ray":
        pytest.importorskip("ray")
    output, many = tmp_path / "vectors", repeated(corpus, tmp_path)
    process = encoding(model, many, output, "--engine", engine, "--workers", 2)
    shards: Callable[[], list[Path]] = lambda: list(output.glob("shard-*")) if output.exists() else []  # noqa: E731
    wait_until(lambda: len(shards()) >= 3 or process.poll() is not None)
    victim = worker_of(process.pid, mark)
    assert victim is not None, process.communicate()[1]
    victim.kill()
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert out.splitlines()[-1].endswith("documents 1,600")
    whole = tmp_path / "whole"
    assert call(encode.main, *arguments(model, whole, corpus=many)).code == 0
    assert files(output) == files(whole)


@pytest.mark.slow
@pytest.mark.parametrize(
    "more", [(), ("--workers", 2), ("--engine", "ray", "--workers", 2)], ids=["alone", "two", "ray"]
)
def test_thirty_kills_lose_nothing_but_shards(model, corpus, tmp_path, more):
    many, output, drawn = repeated(corpus, tmp_path), tmp_path / "vectors", random.Random(3)
    assert call(encode.main, *arguments(model, tmp_path / "whole", corpus=many)).code == 0
    for _ in range(30):
        if killed_amid(encoding(model, many, output, *more), output, drawn) == 0:
            shutil.rmtree(output)  # it was done before it could be killed: all over again
    process = encoding(model, many, output, *more)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert files(output) == files(tmp_path / "whole")


def killed_amid(process: subprocess.Popen, output: Path, drawn: random.Random) -> int:
    """Kill a process once it has written another shard, or soon after; how it ended."""
    before = len(list(output.glob("shard-*"))) if output.exists() else 0
    wait_until(lambda: process.poll() is not None or len(list(output.glob("shard-*"))) > before)
    time.sleep(drawn.uniform(0, 0.05))
    process.kill()
    process.communicate()
    return process.returncode


def repeated(corpus: Path, folder: Path) -> Path:
    """The corpus forty times, with ids of their own."""
    many = folder / "many.jsonl"
    lines = corpus.read_text().splitlines() * 40
    many.write_text("\n".join(line.replace('"d', f'"{n}-') for n, line in enumerate(lines)))
    return many


def wait_until(ready: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 200
    while not ready():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.slow
def test_a_run_with_workers_that_is_killed_goes_on_and_leaves_no_process(model, corpus, expected, tmp_path):
    output = tmp_path / "vectors"
    process = encoding(model, corpus, output, "--workers", 2)
    wait_until(lambda: bool(list(output.glob("shard-*"))) if output.exists() else process.poll() is not None)
    children = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.wait()
    wait_until(lambda: not any(one.is_running() and one.status() != "zombie" for one in children))
    assert call(encode.main, *arguments(model, output, "--workers", 2, corpus=corpus)).code == 0
    assert files(output) == expected


def test_workers_that_always_die_end_with_a_sentence(monkeypatch):
    work = workers.Work("nowhere", None, None, "cpu", "float32", "nowhere")  # type: ignore[arg-type]
    opened: list[int] = []
    monkeypatch.setattr(workers, "_open_worker", _open_nothing)
    monkeypatch.setattr(workers, "_make", _die)
    shards = iter([workers.Shard(number, [("a", "b")]) for number in range(5)])
    with pytest.raises(UserError, match="Workers end before they have finished a shard"):
        workers.LocalWorkers(work, 1)(shards, opened.append)
    assert opened == []


def _open_nothing(*arguments: object) -> None:
    pass


def _die(shard: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_workers_error_is_the_commands(model, corpus, tmp_path, monkeypatch):
    work = workers.Work(str(tmp_path / "nothing"), None, None, "cpu", "float32", str(tmp_path))  # type: ignore[arg-type]
    shards = iter([workers.Shard(0, [("a", "b")])])
    with pytest.raises(UserError):
        workers.LocalWorkers(work, 1)(shards, lambda count: None)


def test_many_files_by_a_pattern(model, corpus, expected, tmp_path):
    lines = corpus.read_text().splitlines()
    for number in range(4):
        part = "\n".join(lines[number * 12 : number * 12 + 12]).encode()
        (tmp_path / f"part-{number}.jsonl.gz").write_bytes(gzip.compress(part))
    assert call(encode.main, *arguments(model, tmp_path / "vectors", corpus=tmp_path / "part-*.jsonl.gz")).code == 0
    ours = files(tmp_path / "vectors")
    shards = [name for name in expected if name.startswith("shard")]
    assert {name: ours[name] for name in shards} == {name: expected[name] for name in shards}
    assert json.loads(ours["corpus.json"])["corpus"] == f"{tmp_path}/part-*.jsonl.gz"
    nothing = call(encode.main, *arguments(model, tmp_path / "other", corpus=tmp_path / "none-*.jsonl"))
    assert (nothing.code, nothing.errors) == (2, [f"error: {tmp_path}/none-*.jsonl: there is no such file."])


@pytest.mark.parametrize("place", ["file", "folder"])
def test_a_data_set_is_streamed_without_a_copy(model, corpus, expected, tmp_path, monkeypatch, place):
    monkeypatch.setenv("SPLADE_LIT_CACHE", str(tmp_path / "cache"))
    source = corpus
    if place == "folder":
        source = tmp_path / "data"
        source.mkdir()
        shutil.copy(corpus, source / "train.jsonl")
    assert call(encode.main, *arguments(model, tmp_path / "vectors", "--stream", corpus=source)).code == 0
    ours = files(tmp_path / "vectors")
    shards = [name for name in expected if name.startswith("shard")]
    assert {name: ours[name] for name in shards} == {name: expected[name] for name in shards}
    assert not (tmp_path / "cache" / "texts").exists()


def test_what_is_wrong_with_a_streamed_data_set_is_told(tmp_path):
    """A folder stands in for a Hub id, which `datasets` reads in the same way."""
    (tmp_path / "train.jsonl").write_text('{"_id": "a", "text": "x"}\n{"_id": "a", "text": "y"}\n')
    with pytest.raises(UserError, match="two documents have the id 'a'"):
        list(_streamed(str(tmp_path), "text"))
    with pytest.raises(UserError, match="no column body; its columns are _id, text"):
        _streamed(str(tmp_path), "body")
    (tmp_path / "train.jsonl").write_text('{"_id": "a", "text": 5}\n')
    with pytest.raises(UserError, match="the column text holds 5, which is no text"):
        list(_streamed(str(tmp_path), "text"))


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("b.jsonl.gz", gzip.compress(b'{"_id": "b", "text": "x"}\n' * 999, mtime=0)[:40], "cannot be read"),
        ("b.jsonl", b'{"other": [1]}\n', "no column _id, text"),
        ("b.jsonl", b'{"_id": "b", "text": 5}\n', "the column text must hold text"),
    ],
    ids=["cut", "another column", "a number"],
)
def test_what_is_wrong_midway_is_told(tmp_path, name, content, told):
    (tmp_path / "a.jsonl").write_bytes(b'{"_id": "a", "text": "x"}\n')
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=rf"^{tmp_path / name}.*: {told}"):
        list(open_corpora([str(tmp_path)], stream=True))
    if b"5" not in content:  # which `datasets` makes a text
        with pytest.raises(UserError, match=f"^{tmp_path}: cannot be read: "):
            list(_streamed(str(tmp_path), "text"))


def test_ids_are_unique_over_all_files(model, corpus, tmp_path):
    (tmp_path / "again.jsonl").write_text(corpus.read_text().splitlines()[3])
    two = [str(corpus), str(tmp_path / "again.jsonl")]
    with pytest.raises(UserError, match=r"again\.jsonl, line 1: the _id 'd3' is also that of"):
        list(open_corpora(two))


def test_files_without_ids_are_numbered_on(tmp_path):
    for name in "ab":
        (tmp_path / f"{name}.txt").write_text(f"{name} one\n{name} two\n")
    found = list(open_corpora([str(tmp_path / "?.txt")]))
    assert found == [("0", "a one"), ("1", "a two"), ("2", "b one"), ("3", "b two")]


@pytest.mark.parametrize("address", ["memory://bucket/vectors", "local"])
def test_vectors_go_to_any_address(model, corpus, expected, tmp_path, address):
    output = address if "memory" in address else f"file://{tmp_path / 'vectors'}"
    assert call(encode.main, *arguments(model, output, corpus=corpus)).code == 0
    store = open_store(output)
    assert {name: store.open(name).read() for name in store.names()} == expected
    ids, vectors, _ = read_corpus_vectors(output)
    assert (len(ids), vectors.shape[0]) == (40, 40)
    assert call(encode.main, *arguments(model, output, corpus=corpus)).code == 0
    if "memory" in address:
        fsspec.filesystem("memory").rm("/bucket", recursive=True)
        with pytest.raises(UserError, match="nosuch"):
            open_store("nosuch://place")


def test_a_place_that_is_not_an_object_store_gets_whole_files(tmp_path):
    store = open_store(f"simplecache::file://{tmp_path}/x")
    store.write("a.txt", b"one")
    store.write("a.txt", b"two")
    assert (store.names(), store.open("a.txt").read()) == (["a.txt"], b"two")
    store.remove("a.txt")
    assert store.names() == []


class Renames(LocalFileSystem):
    """Files whose names are changed only where nothing has the new one, if it is so."""

    protocol = "renames"
    replaces = True
    removed: ClassVar[list[str]] = []

    def mv(self, path1: str, path2: str, **settings: Any) -> None:
        if not self.replaces and self.exists(path2):
            raise OSError("Failure")
        super().mv(path1, path2, **settings)

    def rm_file(self, path: str) -> None:
        self.removed.append(path)
        super().rm_file(path)


@pytest.mark.parametrize("replaces", [True, False])
def test_a_good_file_is_removed_only_where_it_cannot_be_replaced(tmp_path, monkeypatch, replaces):
    fsspec.register_implementation("renames", Renames, clobber=True)
    monkeypatch.setattr(Renames, "replaces", replaces)
    monkeypatch.setattr(Renames, "removed", [])
    store = open_store(f"renames://{tmp_path}/x")
    store.write("a.txt", b"one")
    store.write("a.txt", b"two")
    assert (store.names(), store.open("a.txt").read()) == (["a.txt"], b"two")
    assert [Path(path).name for path in Renames.removed] == ([] if replaces else ["a.txt"])
    assert [path.name for path in (tmp_path / "x").iterdir()] == ["a.txt"]


def test_more_workers_than_shards_are_told(caplog):
    encode._tell_of_idle_workers(4, 10_000, 10_000)
    assert caplog.messages == [
        "10,000 documents are 1 shard: --workers 4, of which 3 have nothing to do; for a shard each give "
        "--shard-documents 2500."
    ]
    caplog.clear()
    for number, documents in ((4, 30_001), (None, 10_000), (4, None)):
        encode._tell_of_idle_workers(number, documents, 10_000)
    assert not caplog.messages
