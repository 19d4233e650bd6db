"""What a corpus of any size costs to train on, encode, store and serve, from what a sample of it costs on this machine.

    python scripts/estimate_scale.py --model runs/my_run/model --task ../shared/data/beir/nfcorpus \
        --documents 8.8e6 1e9 1e11 --price-per-hour 1.50 --watts 300 --memory-gib 64 --pairs 5e5 --pairs-per-second 28

Measured on a sample of the task's corpus: seconds a document is encoded in (after a warm-up), bytes of its vector in
the shards that `encode` writes and in the memory of an exact index, dims that a query and a document share, and seconds
a posting costs in exact search. Pairs a second are those of a run of `fit`: the steps a second that it shows times its
batch_size. All else is arithmetic, which docs/scale.md explains. The sample has to be like the
corpus: twice as many tokens a document take twice the time.
"""

import argparse
import math
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.table import Table
from scipy import sparse

from splade_lit.command_line.arguments import number_from, positive_int
from splade_lit.core.errors import UserError

_WARM = 64  # documents before the clock starts
_IN_PROCESS = 5e6  # documents that one process searches exactly while somebody waits
_ONE_MACHINE = 1e8  # documents that an approximate index of one machine has been shown to carry
_SEARCHED = 50_000, 100_000  # documents, copies of the sample, whose searches tell what a posting costs
# For the repeats of searches, of which the fastest count, as only other programs make one slower; the second where
# these have made a smaller search slower than a larger one.
_SEARCH_SECONDS, _MOST_SEARCH_SECONDS = 2, 20


@dataclass(frozen=True)
class Measured:
    """What a sample costs on this machine.

    Attributes:
        tokens: of a document, on average.
        encode_seconds: of a document, by one process.
        shard_bytes: of a document in the shards of `encode`, float16.
        index_bytes: of a document in an exact index in memory.
        flops: dims that a query and a document share on average, `sum_j p_q(j) p_d(j)`.
        query_seconds: of a query on one thread, whatever the size of the corpus.
        posting_seconds: of a query and thread for each posting that it reads.
    """

    tokens: float
    encode_seconds: float
    shard_bytes: float
    index_bytes: float
    flops: float
    query_seconds: float
    posting_seconds: float


@dataclass(frozen=True)
class Machines:
    """What machines are like, and how long encoding may take.

    Attributes:
        processes: encoding at the same time on one machine, each as fast as the one that was measured.
        hours: in which the corpus is to be encoded.
        watts: of a machine at work.
        price_per_hour: of a machine.
        memory_gib: of a machine, for its index.
    """

    processes: int
    hours: float
    watts: float
    price_per_hour: float
    memory_gib: float


class Work(NamedTuple):
    """Machine-hours of some work, their energy, and their price in the currency of the price that was given."""

    hours: float
    kwh: float
    price: float

    @classmethod
    def of(cls, hours: float, machines: Machines) -> "Work":
        """The work of so many machine-hours."""
        return cls(hours, hours * machines.watts / 1000, hours * machines.price_per_hour)


@dataclass(frozen=True)
class Estimate:
    """What a corpus of `documents` costs.

    Attributes:
        encoding: the work of encoding.
        encode_machines: machines that are done in time.
        shards_gb: size of the vectors on disk, in 10^9 bytes.
        index_gib: memory of an exact index of all, in 2^30 bytes.
        serve_machines: machines whose memory holds it.
        query_ms: exact search on one thread of each of these machines, which look at their parts at the same time.
        engine: what carries this size.
    """

    documents: float
    encoding: Work
    encode_machines: int
    shards_gb: float
    index_gib: float
    serve_machines: int
    query_ms: float
    engine: str


def training(pairs: float, pairs_per_second: float, machines: Machines) -> Work:
    """The costs of training on so many pairs, each as often as there are passes, on one machine."""
    return Work.of(pairs / pairs_per_second / 3600, machines)


def estimate(measured: Measured, machines: Machines, documents: float) -> Estimate:
    """The costs of a corpus of so many documents."""
    hours = documents * measured.encode_seconds / machines.processes / 3600
    index_gib = documents * measured.index_bytes / 2**30
    serving = math.ceil(index_gib / machines.memory_gib)
    postings = documents / serving * measured.flops
    return Estimate(
        documents=documents,
        encoding=Work.of(hours, machines),
        encode_machines=math.ceil(hours / machines.hours),
        shards_gb=documents * measured.shard_bytes / 1e9,
        index_gib=index_gib,
        serve_machines=serving,
        query_ms=1000 * (measured.query_seconds + postings * measured.posting_seconds),
        engine=engine(documents),
    )


def engine(documents: float) -> str:
    """What carries a corpus of this size.

    >>> engine(1e5), engine(1e7), engine(1e9)
    ('exact, in process', 'one machine: Seismic, BMP, Qdrant', 'a cluster: OpenSearch, Elasticsearch, Vespa, Qdrant')
    """
    if documents <= _IN_PROCESS:
        return "exact, in process"
    if documents <= _ONE_MACHINE:
        return "one machine: Seismic, BMP, Qdrant"
    return "a cluster: OpenSearch, Elasticsearch, Vespa, Qdrant"


def measure(model: str, task: str, sample: int, device: str | None) -> Measured:
    """Encode and search a sample of a task's corpus; a UserError is that of loading either."""
    from splade_lit.command_line.devices import pick_device
    from splade_lit.data.corpus import Corpus
    from splade_lit.data.tasks import load_tasks
    from splade_lit.encoder.model import AsymmetricSparseEncoder
    from splade_lit.engines.shards import read_corpus_vectors, write_corpus_vectors
    from splade_lit.evaluation.exact_search import SearchIndex
    from splade_lit.evaluation.sparsity import SparsityStatistics, expected_flops

    (loaded,) = load_tasks([task])
    encoder = AsymmetricSparseEncoder.load(model, device=pick_device(device)).eval()
    documents = list(islice(loaded.corpus.items(), sample))
    encoder.encode_document([text for _, text in documents[:_WARM]])
    tokens = [len(ids) for ids in encoder.tokenisation.documents([text for _, text in documents])]
    with tempfile.TemporaryDirectory(prefix="splade_lit_scale_") as folder:
        began = time.perf_counter()
        write_corpus_vectors(
            encoder, Corpus(len(documents), lambda: iter(documents), task), folder, "sample", values="float16"
        )
        seconds = time.perf_counter() - began
        size = sum(path.stat().st_size for path in Path(folder).glob("shard-*"))
        _, vectors, _ = read_corpus_vectors(folder)
    queries = encoder.encode_query(list(loaded.queries.values()), convert_to_csr=True)
    searches, postings = [], []
    shared = expected_flops(SparsityStatistics.of(queries), SparsityStatistics.of(vectors))
    if shared == 0:
        raise UserError(f"{task}: its queries share no dims with the sample; take a larger --sample or another task.")
    for searched in _SEARCHED:
        copies = math.ceil(searched / vectors.shape[0])
        index = SearchIndex(sparse.vstack([vectors] * copies, format="csr"))
        searches.append(partial(index.search, queries, k=10, num_threads=1))
        postings.append(shared * vectors.shape[0] * copies * queries.shape[0])
    times = _fastest(searches)
    slope = (times[1] - times[0]) / (postings[1] - postings[0])
    if slope <= 0:
        raise UserError(
            f"Searches of {_SEARCHED[1]:,} documents took no longer than of {_SEARCHED[0]:,}: other programs use the "
            "cores. Measure again when they do not."
        )
    return Measured(
        tokens=sum(tokens) / len(tokens),
        encode_seconds=seconds / len(documents),
        shard_bytes=size / len(documents),
        index_bytes=(index.nbytes - 8 * vectors.shape[1]) / (copies * len(documents)),  # what grows with them
        flops=shared,
        query_seconds=max(times[1] - slope * postings[1], 0.0) / queries.shape[0],
        posting_seconds=slope,
    )


def _fastest(works: Sequence[Callable[[], object]]) -> list[float]:
    """Seconds that each takes when nothing disturbs it, in turns, from the one with least to do to that with most.

    Three turns at least, and more where they did not come out in that order.
    """
    fastest = [math.inf] * len(works)
    rounds, began = 0, time.perf_counter()
    while True:
        for number, work in enumerate(works):
            start = time.perf_counter()
            work()
            fastest[number] = min(fastest[number], time.perf_counter() - start)
        rounds += 1
        enough = _SEARCH_SECONDS if fastest == sorted(fastest) else _MOST_SEARCH_SECONDS
        if rounds >= 3 and time.perf_counter() - began > enough:
            return fastest


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and print both tables."""
    options = _parser().parse_args(arguments)
    if bool(options.pairs) != bool(options.pairs_per_second):
        raise UserError("--pairs and --pairs-per-second belong together: what is trained on, and how fast that goes.")
    measured = measure(options.model, options.task, options.sample, options.device)
    machines = Machines(options.processes, options.hours, options.watts, options.price_per_hour, options.memory_gib)
    facts = Table("measured on a sample", "")
    facts.add_row("tokens a document", f"{measured.tokens:.0f}")
    facts.add_row("documents a second, one process", f"{1 / measured.encode_seconds:,.1f}")
    facts.add_row("bytes a document in shards (float16)", f"{measured.shard_bytes:,.0f}")
    facts.add_row("bytes a document in an exact index", f"{measured.index_bytes:,.0f}")
    facts.add_row("dims shared by a query and a document", f"{measured.flops:.2f}")
    facts.add_row("nanoseconds a posting in exact search", f"{1e9 * measured.posting_seconds:.2f}")
    names = (
        "documents",
        "machine-hours",
        "machines",
        "kWh",
        "price",
        "shards, GB",
        "index, GiB",
        "serving",
        "ms exact",
    )
    table = Table(*names, "engine")
    for documents in options.documents:
        one = estimate(measured, machines, documents)
        table.add_row(
            f"{documents:,.0f}",
            f"{one.encoding.hours:,.1f}",
            f"{one.encode_machines:,}",
            f"{one.encoding.kwh:,.1f}",
            f"{one.encoding.price:,.0f}",
            f"{one.shards_gb:,.1f}",
            f"{one.index_gib:,.1f}",
            f"{one.serve_machines:,}",
            f"{one.query_ms:,.1f}",
            one.engine,
        )
    console = Console(width=160)
    console.print(facts)
    console.print(table)
    if options.pairs:
        work = training(options.pairs, options.pairs_per_second, machines)
        console.print(
            f"training on {options.pairs:,.0f} pairs: {work.hours:,.1f} hours of one machine, {work.kwh:,.1f} kWh, "
            f"price {work.price:,.0f}"
        )


_positive = number_from(1e-3)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Estimate what a corpus costs to encode, store and serve.")
    add = parser.add_argument
    add("--model", required=True, help="saved model: folder or Hub id")
    add("--task", required=True, help="retrieval task whose corpus is like yours, as of python -m splade_lit.evaluate")
    sizes = [8.8e6, 1e9, 1e11]
    add("--documents", type=number_from(1), nargs="+", default=sizes, help="sizes of corpora (%(default)s)")
    add("--sample", type=positive_int, default=2_000, help="documents to measure with (%(default)s)")
    add("--pairs", type=number_from(1), help="pairs to train on: those of the data times passes over them")
    add(
        "--pairs-per-second",
        type=_positive,
        help="that a run of fit trains on, on one machine: steps a second x batch_size",
    )
    add("--processes", type=positive_int, default=1, help="encoding at a time on one machine (%(default)s)")
    add("--hours", type=_positive, default=24.0, help="in which the corpus is to be encoded (%(default)s)")
    add("--watts", type=number_from(0), required=True, help="of a machine at work")
    add("--price-per-hour", type=number_from(0), required=True, help="of a machine")
    add("--memory-gib", type=_positive, default=64.0, help="of a machine that serves, for the index (%(default)s)")
    add("--device", help="cpu, cuda, ... (default: cuda where there is one)")
    return parser


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
