"""What an exact search costs here: posting lists of the same documents, searched in turns."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy.sparse import csr_array

from splade_lit.core.errors import UserError
from splade_lit.core.sources import NANOBEIR_ID
from splade_lit.data.tasks import RetrievalTask, load_tasks
from splade_lit.encoder.model import AsymmetricSparseEncoder
from splade_lit.evaluation.bm25 import bm25_vectors
from splade_lit.evaluation.exact_search import SearchIndex
from splade_lit.evaluation.task_evaluation import judged_query_ids, sample_corpus
from splade_lit.report.system import System

_TOP = 10
_QUERIES = 200
_ROUNDS = 5


@dataclass(frozen=True)
class Searched:
    """What search was measured on: all judged documents of the task are in, even where fewer were asked for."""

    task: str
    num_documents: int
    num_queries: int


def measure(
    systems: Sequence[System], task: RetrievalTask, max_documents: int, device: torch.device
) -> tuple[list[System], Searched]:
    """The systems with the cost of an exact search, where their model or BM25 is at hand.

    Args:
        systems: runs with a model, BM25, others.
        task: whose corpus is searched with its first 200 judged queries, ten documents a query, on one thread.
        max_documents: a sample of the corpus, all judged documents and others drawn by chance.
        device: to encode on.

    Raises:
        UserError: a model cannot be loaded.
    """
    task = sample_corpus(task, max_documents)
    ids = judged_query_ids(task)[:_QUERIES]
    task = replace(task, queries={query_id: task.queries[query_id] for query_id in ids})
    vectors: dict[str, tuple[csr_array, csr_array]] = {}
    tokenizer = None
    for system in systems:
        if system.model is not None:
            encoder = AsymmetricSparseEncoder.load(str(system.model), device=device)
            tokenizer = tokenizer or encoder.tokenizer
            vectors[system.name] = (
                encoder.encode_query(list(task.queries.values()), convert_to_csr=True),
                encoder.encode_document(list(task.corpus.values()), convert_to_csr=True),
            )
    for system in systems:
        if system.kind == "bm25" and (tokenizer is not None or system.stage == "words"):
            vectors[system.name] = bm25_vectors(task, None if system.stage == "words" else tokenizer)
    costs = dict(zip(vectors, search_costs(list(vectors.values())), strict=True))
    measured = [replace(system, search=costs.get(system.name, {})) for system in systems]
    return measured, Searched(task.name, len(task.corpus), len(ids))


def search_costs(vectors: Sequence[tuple[csr_array, csr_array]]) -> list[dict[str, float]]:
    """Size of an index of documents, `index_mb`, and median time of a query, `search_ms`, for each pair of vectors.

    Each query of each system is searched five times on one thread, a round of all systems after another, so that other
    work on the machine meets all of them alike.

    Args:
        vectors: queries and documents of each system.
    """
    indexes = [SearchIndex(documents) for _, documents in vectors]
    rows = [[queries[[row]] for row in range(queries.shape[0])] for queries, _ in vectors]
    times: list[list[float]] = [[] for _ in vectors]
    for index, queries in zip(indexes, rows, strict=True):  # compiles, and fetches from memory
        index.search(queries[0], _TOP, num_threads=1)
    for _ in range(_ROUNDS):
        for index, queries, seconds in zip(indexes, rows, times, strict=True):
            for query in queries:
                start = time.perf_counter()
                index.search(query, _TOP, num_threads=1)
                seconds.append(time.perf_counter() - start)
    return [
        {"index_mb": index.nbytes / 1e6, "search_ms": 1000 * float(np.median(seconds))}
        for index, seconds in zip(indexes, times, strict=True)
    ]


def find_tasks(systems: Sequence[System]) -> tuple[list[RetrievalTask], list[str]]:
    """The tasks of the runs that are at hand, each once, and a sentence for each run whose tasks are not."""
    tasks: dict[str, RetrievalTask] = {}
    notes = []
    for one in dict.fromkeys(evaluation for system in systems if system.run for evaluation in system.run.evaluations):
        try:
            found = load_tasks(one.tasks, one.nanobeir_source or NANOBEIR_ID, one.nanobeir_revision)
        except UserError as error:
            notes.append(f"Tasks {', '.join(one.tasks)} are not at hand: {error}")
        else:
            tasks = {task.name: task for task in found} | tasks
    return list(tasks.values()), notes
