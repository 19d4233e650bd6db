"""Files of strangers, broken in many ways: a reader reads, or says what is wrong; it never crashes, hangs or runs code.

Each case takes a valid file, damages it by a seed, and reads it: 15 cases of each reader, 220 among the slow tests.
"""

import json
import random
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from command_runs import World, call

from splade_lit import fit
from splade_lit.card.record import read_record
from splade_lit.core.errors import UserError
from splade_lit.data.corpus import open_corpora, open_corpus
from splade_lit.data.pairs import load_pairs
from splade_lit.data.tasks import load_tasks
from splade_lit.encoder.layout import copy_query_side
from splade_lit.encoder.model import AsymmetricSparseEncoder
from splade_lit.encoder.query_side import load_query_side
from splade_lit.engines.exact import ExactIndex
from splade_lit.engines.open_index import open_index, search_texts
from splade_lit.engines.shards import read_corpus_vectors, write_corpus_vectors
from splade_lit.runs.folder import read_checkpoint
from splade_lit.runs.run import read_run

FEW, MANY = 15, 220
HOSTILE = [
    *(
        b"\x00",
        b"\xff\xfe",
        b"\n\n",
        b"\r",
        b'"',
        b"'",
        b"{",
        b"[" * 2000,
        b"null",
        b"NaN",
        b"-1",
        b"1e999",
        b"Infinity",
    ),
    *(b"../../../etc/passwd", b"\\u0000", b"\xed\xa0\x80", b"9" * 400, b"!!python/object/apply:os.system [id]"),
    *(b"&a [*a]", b"<script>alert(1)</script>", b"{{ 7*7 }}", b"true", b"0.5", b"[]", b"{}", b",", b"\t", b":"),
]


def damaged(data: bytes, drawn: random.Random) -> bytes:
    """The data with one to four changes."""
    for _ in range(drawn.randint(1, 4)):
        at, end = sorted(drawn.randrange(len(data) + 1) for _ in range(2))
        short = min(end, at + drawn.choice([1, 4, 40, 4000]))
        match drawn.randrange(7):
            case 0:
                data = data[:at]
            case 1:
                data = data[:at] + data[short:]
            case 2:
                data = data[:at] + drawn.choice(HOSTILE) + data[at:]
            case 3:
                data = data[:at] + drawn.choice(HOSTILE) + data[short:]
            case 4:
                data = data[:short] + data[at:]
            case 5:
                data = data[:at] + bytes(drawn.randrange(256) for _ in range(short - at)) + data[short:]
            case _:
                data = _one_value(data, drawn)
    return data


def _one_value(data: bytes, drawn: random.Random) -> bytes:
    """Another value somewhere in JSON, of another kind more often than not."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return data
    places: list[tuple[Any, Any]] = []

    def find(one: Any) -> None:
        items = one.items() if isinstance(one, dict) else enumerate(one) if isinstance(one, list) else ()
        for key, inner in items:
            places.append((one, key))
            find(inner)

    find(value)
    if places:
        container, key = drawn.choice(places)
        container[key] = drawn.choice(
            [None, -1, 10**30, 1e-300, "", "x" * 300, [], {}, True, [[]], {"a": 1}, float("nan")]
        )
    return json.dumps(value).encode()


@contextmanager
def at_most(seconds: int) -> Iterator[None]:
    def late(*_: Any) -> None:
        raise AssertionError(f"it takes longer than {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@pytest.fixture(scope="module")
def valid(world: World, tmp_path_factory, tiny_tokenizer) -> Path:
    """Valid files of each kind."""
    folder = tmp_path_factory.mktemp("valid")
    shutil.copy(world.pairs, folder / "pairs.jsonl")
    rows = [json.loads(line) for line in world.pairs.read_text().splitlines()]
    table = datasets.Dataset.from_list(rows)
    table.to_parquet(folder / "pairs.parquet")
    table.to_csv(folder / "pairs.csv")
    table.to_csv(folder / "pairs.tsv", sep="\t")
    documents = ({"_id": f"d{n}", "title": "a", "text": row["answer"]} for n, row in enumerate(rows))
    (folder / "docs.jsonl").write_text("\n".join(map(json.dumps, documents)))
    beir = folder / "beir"
    (beir / "qrels").mkdir(parents=True)
    shutil.copy(folder / "docs.jsonl", beir / "corpus.jsonl")
    queries = ({"_id": f"q{n}", "text": rows[n]["query"]} for n in range(9))
    (beir / "queries.jsonl").write_text("\n".join(map(json.dumps, queries)))
    lines = ["query-id\tcorpus-id\tscore", *(f"q{n}\td{n}\t1" for n in range(9))]
    (beir / "qrels" / "test.tsv").write_text("\n".join(lines) + "\n")
    run = folder / "run"
    outcome = call(fit.main, "--config", world.config(run, {"trainer.max_steps": 3}))
    assert outcome.code == 0, outcome.err
    encoder = AsymmetricSparseEncoder.load(run / "model")
    texts = [row["answer"] for row in rows]
    parts = [([f"d{n}" for n in range(len(rows))], encoder.encode_document(texts, convert_to_csr=True), texts)]

    def copy_query(place: Path) -> None:
        copy_query_side(run / "model", place, None)

    ExactIndex.build(folder / "index", lambda: parts, encoder.vocab_size, copy_query).close()
    write_corpus_vectors(
        encoder, open_corpus(str(folder / "docs.jsonl")), folder / "vectors", "model", shard_documents=20
    )
    return folder


def _read_pairs(path: Path) -> None:
    list(load_pairs(str(path), cache_dir=str(path.parent)).batches("query"))


def _read_model(folder: Path) -> None:
    encoder = AsymmetricSparseEncoder.load(folder)
    encoder.encode_query(["song king"])


def _read_index(folder: Path) -> None:
    index = open_index(folder)
    search_texts(index, ["song king", "the river"], 5)
    index.stats()
    index.text("d3")
    list(index.documents())
    index.delete(["d1"])


def _read_config(path: Path) -> None:
    outcome = call(fit.main, "--config", path, "--print_config")
    assert outcome.code in (0, 2), outcome.err
    if outcome.code:
        raise UserError(outcome.errors[0])


READERS: dict[str, tuple[str, str, Callable[[Path], Any]]] = {
    "pairs_jsonl": ("pairs.jsonl", "", _read_pairs),
    "pairs_csv": ("pairs.csv", "", _read_pairs),
    "pairs_tsv": ("pairs.tsv", "", _read_pairs),
    "pairs_parquet": (
        "pairs.parquet",
        "",
        lambda p: list(load_pairs(str(p), cache_dir=str(p.parent)).batches("query")),
    ),
    "corpus": ("docs.jsonl", "", lambda p: list(open_corpora([str(p)]))),
    "task": ("beir", "*", lambda p: load_tasks([str(p)])),
    "model": ("run/model", "*", _read_model),
    "query_side": ("run/model", "query_0_*/*", lambda p: load_query_side(p).encode(["song king"])),
    "vectors": ("vectors", "*", read_corpus_vectors),
    "index": ("index", "*", _read_index),
    "checkpoint": ("run/checkpoints/last.ckpt", "", lambda p: read_checkpoint(p, "cpu")),
    "run": ("run", "*.*", read_run),
    "record": ("run/model", "*.json", read_record),
    "experiment": ("run/config.yaml", "", _read_config),
}
"""What is copied and damaged (one of its files that match), and how it is read."""


@pytest.mark.parametrize("many", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", READERS)
def test_a_damaged_file_is_read_or_told(valid, tmp_path, kind, many, monkeypatch):
    monkeypatch.setenv("SPLADE_LIT_CACHE", str(tmp_path / "cache"))
    name, pattern, read = READERS[kind]
    told = 0
    for seed in range(MANY if many else FEW):
        drawn = random.Random(f"{kind}{seed}")
        source, place = valid / name, tmp_path / str(seed) / Path(name).name
        place.parent.mkdir()
        shutil.copytree(source, place) if source.is_dir() else shutil.copy(source, place)
        if pattern:
            files = sorted(one for one in place.rglob("*") if one.is_file() and one.match(pattern))
            file = drawn.choice(files)
        else:
            file = place
        file.write_bytes(damaged(file.read_bytes(), drawn))
        said = None
        try:
            with at_most(20):
                read(place)
        except UserError as error:
            said = str(error)
        except Exception as error:
            raise AssertionError(f"{kind}, seed {seed}, {file.relative_to(place.parent)}: {error!r}") from error
        told += said is not None
        assert said is None or "\n" not in said.strip(), f"{kind}, seed {seed}: {said}"
        shutil.rmtree(place.parent)
    assert told, "no damage was told"


class Runs:
    """What a pickle of a stranger would do."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (open, (str(self.path), "w"))


def test_pickles_are_never_run(valid, tmp_path):
    proof = tmp_path / "proof"
    checkpoint = tmp_path / "last.ckpt"
    torch.save({"state_dict": {}, "optimizer_states": [], "hyper_parameters": Runs(proof)}, checkpoint)
    with pytest.raises(UserError, match="is not a checkpoint of a run"):
        read_checkpoint(checkpoint)
    model = Path(shutil.copytree(valid / "run" / "model", tmp_path / "model"))
    for weights in model.rglob("*.safetensors"):
        torch.save({"weight": Runs(proof)}, weights.with_name("pytorch_model.bin"))
        weights.unlink()
    with pytest.raises(UserError):
        AsymmetricSparseEncoder.load(model)
    assert not proof.exists()


@pytest.mark.parametrize("place", ["modules", "router", "table"])
def test_a_model_reads_nothing_outside_of_its_folder(valid, tmp_path, place):
    model = Path(shutil.copytree(valid / "run" / "model", tmp_path / "one" / "model"))
    shutil.copytree(valid / "run" / "model", tmp_path / "model")  # what is to be read in its place
    if place == "modules":
        file, name = model / "modules.json", "../../model"
        content = json.loads(file.read_text())
        content[0]["path"] = name
    elif place == "router":
        file, name = model / "router_config.json", "../../model/query_0_SparseStaticEmbedding"
        content = json.loads(file.read_text())
        (old,) = content["structure"]["query"]
        content["structure"]["query"] = [name]
        content["types"][name] = content["types"].pop(old)
    else:
        (folder,) = model.glob("query_0_*")
        file, name = folder / "config.json", "../../../idf.json"
        content = json.loads(file.read_text()) | {"path": name}
    file.write_text(json.dumps(content))
    with pytest.raises(UserError, match="outside of its folder; nothing is read"):
        AsymmetricSparseEncoder.load(model)


def test_a_model_is_read_by_a_path_from_here_too(valid, monkeypatch):
    monkeypatch.chdir(valid)
    AsymmetricSparseEncoder.load("run/model")
    monkeypatch.chdir(valid / "run" / "model")
    AsymmetricSparseEncoder.load(".")
