"""A retrieval task out of one's own data: queries that training never sees, over one's own corpus."""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np

from splade_lit.core.errors import UserError
from splade_lit.core.files import replace_text
from splade_lit.core.text import check_ids, qrels_text
from splade_lit.data.corpus import Corpus
from splade_lit.data.pairs import Pairs
from splade_lit.data.tasks import RetrievalTask, sampled_ids
from splade_lit.data.text_keys import answer_hashes, document_key, hashes, query_hashes, query_key

TASK_FILES = ("corpus.jsonl", "queries.jsonl", "qrels/test.tsv")
MIN_QUERIES = 10  # with fewer held-out queries, answers that the corpus lacks are added to it


@dataclass(frozen=True)
class HeldOut:
    """A retrieval task, and what it has to do with the pairs.

    Attributes:
        task: the task.
        num_corpus: documents of the corpus that the task's was drawn from.
        num_added: answers that the corpus lacked and the task has.
        num_left_out: pairs that have a query of the task, and so are not trained on.
        seen_answer_share: of the task's queries, those with an answer that another query has in training.
    """

    task: RetrievalTask
    num_corpus: int
    num_added: int
    num_left_out: int
    seen_answer_share: float


def hold_out(
    pairs: Pairs,
    corpus: Corpus,
    num_queries: int,
    max_documents: int,
    name: str,
    match: Corpus | None = None,
    seed: int = 0,
) -> HeldOut:
    """Draw queries of pairs, and make a task of them whose answers are looked up in a corpus by their text.

    Which queries are drawn depends on their texts and the seed alone, not on their order or on how many there are.
    Queries whose answer is in the corpus come first; if there are fewer than `MIN_QUERIES` of them, others are drawn
    too, and the corpus of the task gets their answers.

    Args:
        pairs: what queries are drawn from.
        corpus: what is searched.
        num_queries: how many queries to draw; all copies of a query are drawn together.
        max_documents: how many documents of the corpus to take: all answers, and others drawn by chance.
        name: of the task.
        match: the corpus with the texts to look answers up in, where they differ (such as texts without titles).
        seed: of what is drawn.

    Raises:
        UserError: no pair would be left for training.
    """
    queries, (rows, columns, answers) = query_hashes(pairs), answer_hashes(pairs)
    ids, keys = _ids_and_hashes(match or corpus)
    candidates = np.unique(queries[rows[np.isin(answers, keys)]])
    add_missing = len(candidates) < MIN_QUERIES
    if add_missing:
        candidates = np.unique(queries)
    drawn = candidates[np.argsort(hashes(f"{seed} {query}" for query in candidates.tolist()))][:num_queries]
    held_out = np.isin(queries, drawn)
    asked = held_out[rows]  # of each answer, whether its query is held out
    if held_out.all():
        raise UserError(
            f"{pairs.source}: holding {num_queries} queries out leaves no pair to train on; hold out fewer, with "
            "--held-out."
        )
    wanted = set(answers[asked].tolist())
    ids_of: dict[int, list[str]] = {}
    for id, key in zip(ids, keys.tolist(), strict=True):
        if key in wanted:
            ids_of.setdefault(key, []).append(id)
    added: dict[str, str] = {}
    prefix = "pair"
    while any(id.startswith(f"{prefix}-") for id in ids):
        prefix = f"{prefix}-of-pairs"
    texts: dict[int, tuple[str, str]] = {}
    qrels: dict[str, dict[str, int]] = {}
    for row, column, answer in zip(*(part[asked].tolist() for part in (rows, columns, answers)), strict=True):
        pair = pairs[row]
        if answer not in ids_of:
            if not add_missing:
                continue
            id = f"{prefix}-{row}-{column + 1}" if column else f"{prefix}-{row}"
            ids_of[answer], added[id] = [id], pair[pairs.answer_columns[column]].strip()
        query_id, _ = texts.setdefault(int(queries[row]), (f"q{len(texts) + 1}", pair["query"].strip()))
        qrels.setdefault(query_id, {}).update((id, 1) for id in ids_of[answer])
    documents = _drawn_documents(corpus, ids, qrels, max_documents, seed)
    seen = np.isin(answers, answers[~asked])
    return HeldOut(
        task=RetrievalTask(name, documents | added, dict(texts.values()), qrels),
        num_corpus=len(ids),
        num_added=len(added),
        num_left_out=int(held_out.sum()),
        seen_answer_share=len(np.unique(queries[rows[asked & seen]])) / len(drawn),
    )


def given_test(
    pairs: Pairs,
    corpus: Corpus,
    queries: dict[str, str],
    qrels: dict[str, dict[str, int]],
    max_documents: int,
    name: str,
    seed: int = 0,
) -> HeldOut:
    """The task of test queries (id to text) that come with judgements (query id to document id to grade).

    The other arguments are those of `hold_out`.

    Raises:
        UserError: no query has a relevant document in the corpus, or all pairs have test queries.
    """
    ids, keys = _ids_and_hashes(corpus)
    key_of = dict(zip(ids, keys.tolist(), strict=True))
    check_ids(corpus.source, key_of, queries, qrels)
    qrels = {query: {id: grade for id, grade in grades.items() if id in key_of} for query, grades in qrels.items()}
    qrels = {query: grades for query, grades in qrels.items() if query in queries and max([0, *grades.values()]) > 0}
    if not qrels:
        raise UserError(
            f"{corpus.source}: no test query has a relevant document in it; check the ids of all three files."
        )
    documents = _drawn_documents(corpus, ids, qrels, max_documents, seed)
    texts = {query: queries[query].strip() for query in qrels}
    held_out = np.isin(query_hashes(pairs), hashes(query_key(text) for text in texts.values()))
    if held_out.all():
        raise UserError(f"{pairs.source}: every pair has one of the test queries; give other pairs to train on.")
    rows, _, answers = answer_hashes(pairs)
    trained_on = set(answers[~held_out[rows]].tolist())
    seen = [any(g > 0 and key_of[id] in trained_on for id, g in grades.items()) for grades in qrels.values()]
    return HeldOut(
        task=RetrievalTask(name, documents, texts, qrels, graded=True),
        num_corpus=len(ids),
        num_added=0,
        num_left_out=int(held_out.sum()),
        seen_answer_share=float(np.mean(seen)),
    )


def pairs_as_corpus(pairs: Pairs) -> Corpus:
    """The distinct documents that answer a query of pairs, for want of another corpus."""
    rows, columns, answers = answer_hashes(pairs)
    _, first = np.unique(answers, return_index=True)
    first.sort()

    def documents() -> Iterator[tuple[str, str]]:
        for place, name in enumerate(pairs.answer_columns):
            of_column = rows[first[columns[first] == place]]
            texts = chain.from_iterable(pairs.select(of_column).batches(name))
            for row, text in zip(of_column.tolist(), texts, strict=True):
                yield f"d{row}-{place + 1}" if place else f"d{row}", text.strip()

    return Corpus(len(first), documents, pairs.source)


def write_beir(task: RetrievalTask, folder: Path) -> None:
    """Write a task as a BEIR folder: corpus.jsonl, queries.jsonl, qrels/test.tsv.

    Raises:
        UserError: a file cannot be written, or an id cannot be written in a file of judgements.
    """
    corpus, queries, qrels = (folder / name for name in TASK_FILES)
    judgements = qrels_text(task.qrels)
    replace_text(corpus, _json_lines({"_id": id, "title": "", "text": text} for id, text in task.corpus.items()))
    replace_text(queries, _json_lines({"_id": id, "text": text} for id, text in task.queries.items()))
    replace_text(qrels, judgements)


def _json_lines(rows: Iterable[dict[str, str]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _ids_and_hashes(corpus: Corpus) -> tuple[list[str], np.ndarray]:
    """Ids of the documents with text, and the hash of each one's key."""
    ids: list[str] = []

    def keys() -> Iterable[str]:
        for id, text in corpus:
            ids.append(id)
            yield document_key(text)

    keyed = hashes(keys())
    return ids, keyed


def _drawn_documents(
    corpus: Corpus, ids: list[str], qrels: Mapping[str, Mapping[str, int]], max_documents: int, seed: int
) -> dict[str, str]:
    kept = sampled_ids(ids, {id for grades in qrels.values() for id in grades}, max_documents, seed)
    return {id: text for id, text in corpus if id in kept}
