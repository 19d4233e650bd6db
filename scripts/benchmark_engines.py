"""Engines side by side: build time, latency, bytes, memory and nDCG@10, beside the helpers of sentence-transformers.

    python -m splade_lit.encode --model MODEL --corpus ../shared/data/beir/nfcorpus --output nfcorpus.vectors
    python scripts/benchmark_engines.py --model MODEL --tasks ../shared/data/beir/nfcorpus --vectors nfcorpus.vectors
    python scripts/benchmark_engines.py --model MODEL --tasks ../shared/data/beir/nfcorpus --vectors nfcorpus.vectors \
        --synthetic 10000 100000 --engines exact seismic qdrant --log sizes.jsonl --figure sizes.png

One process an engine builds its index and asks the task's queries one after another: tokenise, look up, search, ten
hits. The first 20 are asked once before, without a clock. Engines whose packages are not installed are left out, with a
word on it; pgvector is asked at `--postgres`.

With `--synthetic`, corpora of any size are drawn: each dim is active in as many documents as among the task's vectors,
with weights from there, each independent of the others, and the queries are the task's. nDCG means nothing on them.
`--log` adds the figures to a file, a line each, and `--figure` draws latency over documents from all that is in it.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from splade_lit.core.errors import UserError

if TYPE_CHECKING:
    from scipy.sparse import csr_array

    from splade_lit.data.tasks import RetrievalTask
    from splade_lit.engines.index import Parts

_TOP = 10
_WARM_UP = 20  # queries
_CHUNK = 10_000  # synthetic documents that are drawn together
_RARE = 0.02  # dims active in fewer documents than that are drawn by their places
_OURS = ("exact", "seismic", "qdrant", "pgvector")
_IN_MEMORY = "qdrant in memory"
_BMP = "bmp"
_PEERS = {
    "sentence-transformers, topk": "sentence_transformers",
    "sentence-transformers, semantic_search_seismic": "sentence_transformers",
    "sentence-transformers, semantic_search_qdrant in memory": "qdrant_client",
    "splade-index": "splade_index",
}
_MODULES = {"exact": "numpy", "seismic": "seismic", "qdrant": "qdrant_edge", "pgvector": "psycopg"}
_MODULES |= {_IN_MEMORY: "qdrant_client", _BMP: "bmp"} | _PEERS

Ranks = Callable[[str], list[tuple[str, float]]]
"""The best documents of a query's text, with scores."""


@dataclass(frozen=True)
class Figures:
    """What an engine took.

    Attributes:
        engine: its name here.
        documents: of the corpus.
        build_seconds: from vectors to an index that is open.
        p50: milliseconds of a query, the median.
        p99: milliseconds that 99 of 100 queries stay below.
        num_bytes: of the index; None where nobody says.
        peak_bytes: most memory of the process.
        ndcg: nDCG@10; None without judgements.
    """

    engine: str
    documents: int
    build_seconds: float
    p50: float
    p99: float
    num_bytes: int | None
    peak_bytes: int
    ndcg: float | None


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and print a table of each corpus."""
    settings = _parser().parse_args(arguments)
    if len(settings.tasks) != len(settings.vectors):
        raise SystemExit("error: give as many --vectors as --tasks, in the same order.")
    if settings.figure and not settings.log:
        raise SystemExit("error: --figure draws what is in --log; give a file for it.")
    if settings.side:
        print(json.dumps(asdict(_measure(settings))))
        return
    engines = settings.engines or [engine for engine in _MODULES if engine != "pgvector" or settings.postgres]
    for place, task in enumerate(settings.tasks):
        for size in settings.synthetic or [0]:
            print(f"\n{Path(task).name}" + (f", {size:,} synthetic documents" if size else ""))
            print("| engine | build s | p50 ms | p99 ms | MB | peak MB | nDCG@10 |\n|---|---|---|---|---|---|---|")
            for engine in engines:
                if (found := _in_a_process(settings, place, engine, size)) is not None:
                    print(_line(found), flush=True)
                    if settings.log:
                        with settings.log.open("a", encoding="utf-8") as file:
                            file.write(json.dumps(asdict(found)) + "\n")
    if settings.figure:
        _draw_figure([Figures(**json.loads(line)) for line in settings.log.read_text().splitlines()], settings.figure)


def _in_a_process(settings: argparse.Namespace, place: int, engine: str, size: int) -> Figures | None:
    """The figures of an engine in a process of its own, so that memory is its own; None where it does not run."""
    given = ["--model", settings.model, "--tasks", settings.tasks[place], "--vectors", settings.vectors[place]]
    given += ["--queries", str(settings.queries), *(["--postgres", settings.postgres] if settings.postgres else [])]
    given += ["--side", engine, *(["--synthetic", str(size)] if size else [])]
    done = subprocess.run([sys.executable, __file__, *given], capture_output=True, text=True)
    if done.returncode:
        why = (done.stderr.strip().splitlines() or ["it ended"])[-1]
        print(f"{engine}: left out ({why})", file=sys.stderr)
        return None
    return Figures(**json.loads(done.stdout.splitlines()[-1]))


def _measure(settings: argparse.Namespace) -> Figures:
    from splade_lit.data.tasks import load_tasks
    from splade_lit.engines.names import require
    from splade_lit.evaluation.metrics import rank_metrics, without_queries
    from splade_lit.evaluation.task_evaluation import judged_query_ids

    require(_MODULES[settings.side], settings.side)
    (task,), size = load_tasks(settings.tasks), (settings.synthetic or [0])[0]
    query_ids = judged_query_ids(task)[: settings.queries]
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        vocab_size, parts = _parts(settings.vectors[0], size)
        start = time.perf_counter()
        ranks, num_bytes = _open(settings, Path(folder), parts, vocab_size, task)
        build_seconds = time.perf_counter() - start
        for id in query_ids[:_WARM_UP]:
            ranks(task.queries[id])
        seconds, run = [], {}
        for id in query_ids:
            start = time.perf_counter()
            hits = ranks(task.queries[id])
            seconds.append(time.perf_counter() - start)
            run[id] = dict(hits)
        if settings.side == "pgvector":
            _drop_table(settings.postgres, f"benchmark_{os.getpid()}_0000")
    p50, p99 = np.percentile(np.array(seconds) * 1e3, [50, 99])
    ndcg = None
    if not size:
        kept = without_queries(run, task.left_out)
        ndcg = rank_metrics(kept, {id: task.qrels[id] for id in query_ids}, task.graded).means["ndcg@10"]
    documents = sum(len(ids) for ids, *_ in parts())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return Figures(settings.side, documents, build_seconds, float(p50), float(p99), num_bytes, peak, ndcg)


def _open(
    settings: argparse.Namespace, folder: Path, parts: "Parts", vocab_size: int, task: "RetrievalTask"
) -> tuple[Ranks, int | None]:
    """An index of one side, and its bytes; a hit more is asked for where a query's own document is left out."""
    depth = _TOP + bool(task.left_out)
    if settings.side in _PEERS:
        return _open_peer(settings, parts, depth)
    if settings.side == _BMP:
        return _open_bmp(settings, folder, parts, vocab_size, depth)
    from splade_lit.encoder.query_side import load_query_side
    from splade_lit.engines.index import Index, Server
    from splade_lit.engines.names import engine_class

    queries = load_query_side(settings.model)
    index: Index
    if settings.side == _IN_MEMORY:
        from splade_lit.engines.qdrant import QdrantIndex

        index = QdrantIndex.in_memory(parts, vocab_size)
    else:
        server = Server(settings.postgres, f"benchmark_{os.getpid()}") if settings.side == "pgvector" else None
        index = engine_class(settings.side).build(folder / "index", parts, vocab_size, server=server)
    return lambda text: list(index.search(queries.encode(text), depth)[0]), index.stats().num_bytes


def _open_bmp(
    settings: argparse.Namespace, folder: Path, parts: "Parts", vocab_size: int, depth: int
) -> tuple[Ranks, int | None]:
    """BMP over the CIFF file that `export ciff` writes: whole numbers of 8 bits, and 5 bits of a query."""
    import bmp

    from splade_lit.encoder.query_side import load_query_side
    from splade_lit.engines.documents import Documents
    from splade_lit.engines.features import FeatureNames
    from splade_lit.exports.ciff import write_ciff

    queries, names = load_query_side(settings.model), FeatureNames.of_dims(vocab_size)
    documents = Documents(vocab_size, sum(len(ids) for ids, *_ in parts()), parts)
    write_ciff(folder / "index.ciff", documents, names, folder / "scratch")
    bmp.ciff2bmp(ciff_file=str(folder / "index.ciff"), output=str(folder / "index.bmp"), bsize=32, compress_range=False)
    searcher = bmp.Searcher(str(folder / "index.bmp"))

    there = {str(dim) for _, vectors, _ in parts() for dim in np.unique(vectors.indices).tolist()}

    def ranks(text: str) -> list[tuple[str, float]]:
        query = queries.encode(text)
        terms = names.weights(query.indices.tolist(), query.data)
        terms = {name: weight for name, weight in terms.items() if name in there}  # BMP ends on others
        if not terms:
            return []
        return list(zip(*searcher.search(terms, k=depth, alpha=1.0, beta=1.0), strict=True))

    return ranks, (folder / "index.bmp").stat().st_size


def _drop_table(url: str, name: str) -> None:
    import psycopg

    with psycopg.connect(url) as connection:
        connection.execute(f'DROP TABLE "{name}"')


def _open_peer(settings: argparse.Namespace, parts: "Parts", depth: int) -> tuple[Ranks, int | None]:
    """The same vectors in the hands of sentence-transformers' helpers, and of splade-index."""
    from scipy.sparse import csr_array, vstack
    from sentence_transformers import SparseEncoder

    from splade_lit.encoder.rows import split_rows
    from splade_lit.encoder.vectors import csr_to_torch

    model = SparseEncoder(settings.model, device="cpu")
    ids = [id for part, *_ in parts() for id in part]
    corpus = csr_array(vstack([vectors for _, vectors, _ in parts()]))
    depth = min(depth, len(ids))
    if settings.side == "splade-index":
        from splade_index import SPLADE

        class Given:
            """The model, with documents that are encoded already."""

            tokenizer = model.tokenizer

            def encode_query(self, texts: list[str], **settings: Any) -> Any:
                return model.encode_query(texts)

            def encode_document(self, texts: list[str], **settings: Any) -> Any:
                return csr_to_torch(corpus)

        index = SPLADE(backend="numba")
        index.index(Given(), ids, show_progress=False)

        def ranks(text: str) -> list[tuple[str, float]]:
            found = index.retrieve([text], k=depth, show_progress=False)
            return list(zip(map(str, found.documents[0]), found.scores[0].tolist(), strict=True))

        return ranks, None
    if settings.side.endswith("topk"):
        import torch
        from sentence_transformers.util import dot_score

        documents = csr_to_torch(corpus)

        def ranks(text: str) -> list[tuple[str, float]]:
            scores = dot_score(model.encode_query([text]), documents)
            best = torch.topk(scores.to_dense()[0], depth)
            return [(ids[row], score) for row, score in zip(best.indices.tolist(), best.values.tolist(), strict=True)]

        return ranks, None
    if "qdrant" in settings.side:
        from qdrant_client import QdrantClient, models
        from sentence_transformers.sparse_encoder.search_engines import semantic_search_qdrant

        # The helper makes a collection only on a server of this machine: this one is made as it would.
        client, sparse = QdrantClient(":memory:"), models.SparseVectorParams(index=models.SparseIndexParams())
        client.create_collection("corpus", vectors_config={}, sparse_vectors_config={"text": sparse})
        points = [
            models.PointStruct(
                id=row, vector={"text": models.SparseVector(indices=dims.tolist(), values=weights.tolist())}
            )
            for row, (dims, weights) in enumerate(split_rows(corpus))
        ]
        client.upload_points("corpus", points)

        def ranks(text: str) -> list[tuple[str, float]]:
            query = model.encode_query([text])
            found, _ = semantic_search_qdrant(query, corpus_index=(client, "corpus"), top_k=depth)
            return [(ids[hit["corpus_id"]], hit["score"]) for hit in found[0]]

        return ranks, None
    from sentence_transformers.sparse_encoder.search_engines import semantic_search_seismic

    tokens = model.tokenizer.convert_ids_to_tokens(list(range(corpus.shape[1])))
    decoded = [[(tokens[dim], float(weight)) for dim, weight in zip(*row, strict=True)] for row in split_rows(corpus)]
    _, _, built = semantic_search_seismic([decoded[0]], decoded, top_k=depth, output_index=True)

    def ranks(text: str) -> list[tuple[str, float]]:
        query = model.decode(model.encode_query([text])[0])
        found, _ = semantic_search_seismic([query], corpus_index=built, top_k=depth)
        return [(ids[int(hit["corpus_id"])], float(hit["score"])) for hit in found[0]]

    return ranks, None


def _parts(folder: str, size: int) -> "tuple[int, Parts]":
    """The vectors in a folder, or so many drawn like them."""
    from splade_lit.engines.shards import open_shards

    header, shards = open_shards(folder)
    if not size:
        return header.vocab_size, lambda: ((ids, vectors, None) for ids, vectors in shards())
    from scipy.sparse import csc_array, vstack

    seen = csc_array(vstack([vectors for _, vectors in shards()]))

    def drawn() -> Iterator[tuple[list[str], "csr_array", None]]:
        for number, first in enumerate(range(0, size, _CHUNK)):
            count = min(_CHUNK, size - first)
            yield [str(first + row) for row in range(count)], draw(seen, count, number), None

    return header.vocab_size, drawn


def draw(seen: Any, count: int, seed: int) -> "csr_array":
    """Documents `[count, vocab]` whose dims are active as often as those of `seen`, a csc_array, with its weights.

    >>> from scipy.sparse import csc_array
    >>> made = draw(csc_array(np.array([[1.0, 0.0, 0.0], [2.0, 3.0, 0.0]])), 1000, seed=0)
    >>> sorted({float(value) for value in made.data}), (made[:, [2]].nnz, made[:, [0]].nnz)
    ([1.0, 2.0, 3.0], (0, 1000))
    """
    from scipy.sparse import csr_array

    rng = np.random.default_rng(seed)
    frequencies = np.diff(seen.indptr)
    shares = frequencies / seen.shape[0]
    rows, dims = [], []
    rare = np.flatnonzero((shares > 0) & (shares < _RARE))
    counts = rng.binomial(count, shares[rare])
    pairs = np.unique(rng.integers(0, count, counts.sum()) * seen.shape[1] + np.repeat(rare, counts))
    rows.append(pairs // seen.shape[1])
    dims.append(pairs % seen.shape[1])
    for dim in np.flatnonzero(shares >= _RARE).tolist():
        active = np.flatnonzero(rng.random(count) < shares[dim])
        rows.append(active)
        dims.append(np.full(len(active), dim))
    all_rows, all_dims = np.concatenate(rows), np.concatenate(dims)
    places = seen.indptr[all_dims] + (rng.random(len(all_dims)) * frequencies[all_dims]).astype(np.int64)
    made = csr_array((seen.data[places].astype(np.float32), (all_rows, all_dims)), shape=(count, seen.shape[1]))
    made.sort_indices()
    return made


def _draw_figure(found: Sequence[Figures], path: Path) -> None:
    """Median and 99th percentile over the number of documents, a line an engine."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6.4, 4), layout="constrained")
    for engine in dict.fromkeys(one.engine for one in found):
        of_engine = sorted((one for one in found if one.engine == engine), key=lambda one: one.documents)
        sizes = [one.documents for one in of_engine]
        (line,) = axes.plot(sizes, [one.p50 for one in of_engine], marker="o", label=f"{engine}, median")
        axes.plot(
            sizes, [one.p99 for one in of_engine], ":", marker=".", color=line.get_color(), label=f"{engine}, 99 of 100"
        )
    axes.set(xscale="log", yscale="log", xlabel="documents", ylabel="milliseconds a query")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, frameon=False)
    figure.savefig(path, dpi=110)


def _line(found: Figures) -> str:
    size = "" if found.num_bytes is None else f"{found.num_bytes / 1e6:,.1f}"
    ndcg = "" if found.ndcg is None else f"{found.ndcg:.6f}"
    times = f"{found.build_seconds:.1f} | {found.p50:.2f} | {found.p99:.2f}"
    return f"| {found.engine} | {times} | {size} | {found.peak_bytes / 1e6:,.0f} | {ndcg} |"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Measure the engines side by side.")
    parser.add_argument("--model", required=True, help="folder of a saved model")
    parser.add_argument("--tasks", nargs="+", required=True, help="retrieval tasks, as in evaluate")
    parser.add_argument("--vectors", nargs="+", required=True, help="vectors of each task's corpus, made by encode")
    parser.add_argument("--engines", nargs="+", choices=list(_MODULES), help="engines to measure (default: all)")
    parser.add_argument("--synthetic", nargs="+", type=int, help="sizes of corpora that are drawn like the task's")
    parser.add_argument("--queries", type=int, default=1000, help="most queries of a task (%(default)s)")
    parser.add_argument("--postgres", help="address of a server with pgvector, postgresql://...")
    parser.add_argument("--log", type=Path, help="jsonl file that figures are added to")
    parser.add_argument("--figure", type=Path, help="png file with latency over documents, of all in --log")
    parser.add_argument("--side", choices=list(_MODULES), help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
