"""Retrieval tasks out of one's own pairs: nothing of a held-out query is in training."""

import json
from pathlib import Path

import pytest

from splade_lit.core.errors import UserError
from splade_lit.data.corpus import Corpus
from splade_lit.data.datamodule import PairsDataModule
from splade_lit.data.pairs import Pairs, load_pairs
from splade_lit.data.tasks import RetrievalTask, load_task
from splade_lit.data.text_keys import query_key
from splade_lit.own_data.held_out import given_test, hold_out, pairs_as_corpus, write_beir


def pairs_of(path: Path, num_queries: int = 40, answers: int = 2) -> Pairs:
    """Each query in two spellings, with as many answers, one of which the next query has too."""
    rows = [
        {"query": f"Who is  number {n}?" if spelling else f"who is number {n}", "answer": f"answer {n + spelling}"}
        for n in range(num_queries)
        for spelling in range(answers)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return load_pairs(str(path))


@pytest.fixture
def pairs(tmp_path) -> Pairs:
    return pairs_of(tmp_path / "pairs.jsonl")


def corpus(num_documents: int = 60, first: int = 0) -> Corpus:
    rows = [(f"d{n}", f"answer  {n}") for n in range(first, first + num_documents)]
    return Corpus(len(rows), lambda: iter(rows), "docs.jsonl")


def test_queries_are_held_out_with_all_their_answers(pairs):
    held_out = hold_out(pairs, corpus(), num_queries=12, max_documents=1000, name="mine")
    task = held_out.task
    assert len(task.queries) == 12
    assert len(set(map(query_key, task.queries.values()))) == 12
    assert held_out.num_left_out == 24
    assert (held_out.num_corpus, held_out.num_added, len(task.corpus)) == (60, 0, 60)
    for query_id, query in task.queries.items():
        number = int(query_key(query).rsplit(" ", 1)[1])
        assert task.qrels[query_id] == {f"d{number}": 1, f"d{number + 1}": 1}


def test_queries_are_drawn_by_their_text(pairs, tmp_path):
    backwards = pairs.select(range(len(pairs) - 1, -1, -1))
    draw = [hold_out(rows, corpus(), 12, 1000, "mine").task for rows in (pairs, backwards)]
    keys = [{query_key(query) for query in task.queries.values()} for task in draw]
    assert keys[0] == keys[1]
    other = hold_out(pairs, corpus(), 12, 1000, "mine", seed=1).task
    assert {query_key(query) for query in other.queries.values()} != keys[0]


def test_a_sample_keeps_all_answers(pairs):
    held_out = hold_out(pairs, corpus(500), num_queries=12, max_documents=50, name="mine")
    assert len(held_out.task.corpus) == 50
    assert {id for grades in held_out.task.qrels.values() for id in grades} <= set(held_out.task.corpus)


def test_queries_whose_answer_the_corpus_lacks_are_not_drawn(pairs):
    held_out = hold_out(pairs, corpus(15), num_queries=30, max_documents=1000, name="mine")
    numbers = {int(query_key(query).rsplit(" ", 1)[1]) for query in held_out.task.queries.values()}
    assert numbers == set(range(15))
    assert held_out.num_added == 0
    assert held_out.task.qrels == {
        id: {f"d{n}": 1 for n in (number, number + 1) if n < 15}
        for id, query in held_out.task.queries.items()
        for number in [int(query_key(query).rsplit(" ", 1)[1])]
    }


def test_a_corpus_of_other_texts_gets_the_answers(pairs):
    held_out = hold_out(pairs, corpus(20, first=1000), num_queries=12, max_documents=1000, name="mine")
    task = held_out.task
    assert len(task.queries) == 12
    assert held_out.num_added == len(task.corpus) - 20 > 0
    for query_id, query in task.queries.items():
        number = int(query_key(query).rsplit(" ", 1)[1])
        assert {task.corpus[id] for id in task.qrels[query_id]} == {f"answer {number}", f"answer {number + 1}"}


def test_answers_that_training_shows_are_counted(tmp_path):
    shared = hold_out(pairs_of(tmp_path / "shared.jsonl"), corpus(), 12, 1000, "mine")
    assert 0 < shared.seen_answer_share <= 1
    apart = hold_out(pairs_of(tmp_path / "apart.jsonl", answers=1), corpus(), 12, 1000, "mine")
    assert apart.seen_answer_share == 0


def test_the_documents_of_the_pairs_are_a_corpus(pairs):
    own = pairs_as_corpus(pairs)
    assert sorted(text for _, text in own) == sorted({row["document"] for row in pairs.dataset})
    assert len({id for id, _ in own}) == own.num_rows == 41
    task = hold_out(pairs, own, 12, 1000, "mine").task
    assert all(len(grades) == 2 for grades in task.qrels.values())


def test_no_pair_left_is_told(pairs):
    with pytest.raises(UserError, match="no pair to train on; hold out fewer"):
        hold_out(pairs, corpus(), 40, 1000, "mine")


def test_given_queries_are_left_out_of_training(pairs):
    queries = {"a": "who is NUMBER 3?", "b": "what else", "c": "unjudged"}
    qrels = {"a": {"d3": 2, "d4": 0, "gone": 1}, "b": {"d50": 1}, "unknown": {"d1": 1}}
    held_out = given_test(pairs, corpus(), queries, qrels, 20, "mine")
    assert held_out.task.queries == {"a": "who is NUMBER 3?", "b": "what else"}
    assert held_out.task.qrels == {"a": {"d3": 2, "d4": 0}, "b": {"d50": 1}}
    assert held_out.num_left_out == 2
    assert held_out.seen_answer_share == 0.5  # that of query 2 has answer 3 too
    assert len(held_out.task.corpus) == 20


def test_judgements_of_another_corpus_are_told(pairs):
    with pytest.raises(UserError, match="no judgement names a document: one has the id 'x'"):
        given_test(pairs, corpus(), {"a": "who"}, {"a": {"x": 1}}, 20, "mine")
    queries = {str(n): f"who is number {n}" for n in range(40)}
    qrels = {query: {"d1": 1} for query in queries}
    with pytest.raises(UserError, match="every pair has one of the test queries"):
        given_test(pairs, corpus(), queries, qrels, 20, "mine")


def test_a_written_task_is_read_back(tmp_path):
    task = RetrievalTask("mine", {"d1": "Überall:\n„Text“"}, {"q": "wo?"}, {"q": {"d1": 2}}, graded=True)
    write_beir(task, tmp_path / "mine")
    assert load_task(str(tmp_path / "mine")) == [task]


def test_training_leaves_held_out_queries_out(pairs, tmp_path, tiny_tokenizer_dir):
    task = hold_out(pairs, corpus(), 12, 1000, "mine").task
    write_beir(task, tmp_path / "mine")
    settings = {"num_eval_pairs": 8, "cache_dir": str(tmp_path / "cache"), "batch_size": 4}
    data = PairsDataModule(
        str(tiny_tokenizer_dir), str(tmp_path / "pairs.jsonl"), held_out_tasks=[str(tmp_path / "mine")], **settings
    )
    data.setup()
    left = [query_key(row["query"]) for part in (data.train_pairs, data.eval_pairs) for row in part.dataset]
    assert len(left) == len(pairs) - 24
    assert set(left).isdisjoint(map(query_key, task.queries.values()))
    assert len(data.queries) == len(left)


def test_a_task_that_takes_all_pairs_is_told(tmp_path, tiny_tokenizer_dir):
    pairs = pairs_of(tmp_path / "pairs.jsonl", num_queries=5)
    queries = {str(n): f"who is number {n}" for n in range(5)}
    write_beir(RetrievalTask("all", {"d": "text"}, queries, {q: {"d": 1} for q in queries}), tmp_path / "all")
    data = PairsDataModule(str(tiny_tokenizer_dir), pairs.source, held_out_tasks=[str(tmp_path / "all")])
    with pytest.raises(UserError, match="every pair has a query of"):
        data.setup()


def test_an_answer_that_is_added_takes_the_place_of_no_document(pairs):
    rows = [(f"pair-{n}", f"a river {n}") for n in range(90)]
    task = hold_out(pairs, Corpus(90, lambda: iter(rows), "docs.jsonl"), 12, 1000, "mine").task
    answers = {id for grades in task.qrels.values() for id in grades}
    assert len(task.corpus) == 90 + len(answers)
    assert dict(rows).items() <= task.corpus.items()
    assert all(task.corpus[id].startswith("answer ") for id in answers)
