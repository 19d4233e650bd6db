"""What is told of one's own pairs and corpus: counts, lengths, languages."""

import json
from pathlib import Path

import numpy as np
import pytest

from splade_lit.core.errors import UserError
from splade_lit.data.corpus import Corpus
from splade_lit.data.pairs import Pairs, load_pairs
from splade_lit.data.text_keys import query_key, without_queries
from splade_lit.own_data.inspection import Lengths, inspect_corpus, inspect_pairs, token_lengths
from splade_lit.own_data.language import guess_language

ROWS = [
    ("What is a river?", "the water of the country"),
    ("what is a river", "the water  of the country"),
    ("Who wrote the song", "an author"),
    ("who wrote the song", "a singer"),
    ("same text", "same  text"),
    ("", "no query"),
    ("no document", "  "),
]


@pytest.fixture
def pairs(tmp_path) -> Pairs:
    return load(tmp_path / "pairs.jsonl", ROWS)


def load(path: Path, rows: list[tuple[str, str]]) -> Pairs:
    path.write_text("".join(json.dumps({"query": q, "answer": a}) + "\n" for q, a in rows))
    return load_pairs(str(path))


def corpus(*rows: tuple[str, str]) -> Corpus:
    return Corpus(len(rows), lambda: iter(rows), "docs.jsonl")


def test_counts_of_pairs(pairs, tiny_tokenizer):
    facts = inspect_pairs(pairs, len(ROWS), tiny_tokenizer)
    assert (facts.num_rows, facts.num_pairs, facts.num_empty) == (7, 5, 2)
    assert (facts.num_queries, facts.num_documents) == (3, 4)
    assert (facts.num_copies, facts.num_same_text) == (1, 1)


def test_lengths_are_those_of_the_tokenizer_before_it_cuts(tiny_tokenizer):
    texts = ["the river", "the " * 200, ""]
    lengths = token_lengths(tiny_tokenizer, texts, special_tokens=True)
    assert lengths.tokens.tolist() == [2, 4, 202]
    assert token_lengths(tiny_tokenizer, texts, special_tokens=False).tokens.tolist() == [0, 2, 200]
    assert tiny_tokenizer("the " * 200, truncation=True)["input_ids"][63] == tiny_tokenizer.sep_token_id


def test_unknown_tokens_are_told(tiny_tokenizer):
    assert token_lengths(tiny_tokenizer, ["the river", "Ω the"], special_tokens=False).unknown_share == 0.25


@pytest.mark.parametrize("percent", [1, 50, 90, 99, 100])
def test_percentiles_cover_at_least_their_share(percent):
    tokens = np.sort(np.random.default_rng(percent).integers(1, 500, 77))
    limit = Lengths(tokens, 0.0).percentile(percent)
    assert np.mean(tokens <= limit) >= percent / 100
    assert np.mean(tokens < limit) < percent / 100
    assert Lengths(tokens, 0.0).share_longer(limit) == pytest.approx(np.mean(tokens > limit))


def test_a_corpus_is_searched_for_the_documents_of_pairs(pairs):
    rows = ("d1", "the water of\nthe country"), ("d2", ""), ("d3", "a singer"), ("d4", "a singer"), ("d5", "other")
    facts = inspect_corpus(corpus(*rows), pairs)
    assert (facts.num_documents, facts.num_empty, facts.num_copies) == (5, 1, 1)
    assert (facts.num_found, facts.num_sought) == (2, 4)


def test_a_corpus_without_text_is_told(pairs):
    with pytest.raises(UserError, match="no document has text"):
        inspect_corpus(corpus(("d1", "")), pairs)


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("What causes the rain that falls on the plains, and how long does it last?", "English"),
        ("Wie lange dauert es, bis das Wasser in der Leitung wieder warm wird?", "German"),
        ("Quelle est la ville la plus grande du pays et qui est le maire de cette ville?", "French"),
        ("¿Cuál es la ciudad más grande de la región y por qué se llama así?", "Spanish"),
        ("Qual è la città più grande della regione e come si chiama il sindaco?", "Italian"),
        ("Qual é a maior cidade do estado e como se chama o prefeito da cidade?", "Portuguese"),
        ("Wat is de grootste stad van het land en hoe lang is de rivier die er stroomt?", "Dutch"),
        ("Vilken är den största staden i landet och hur lång är floden som är där?", "Swedish"),
        ("Jakie jest największe miasto w tym kraju i co się w nim do dzisiaj nie zmieniło?", "Polish"),
        ("最大的城市是哪一个", "Chinese"),
        ("この国で一番大きい都市はどこですか", "Japanese"),
        ("가장 큰 도시는 어디입니까?", "Korean"),
        ("Какой город самый большой в этой стране и как он называется?", "Russian"),
        ("Какой город самый большой?", None),
        ("for i in x: y[i] += 1.0 + z", None),
        ("12 + 30", None),
    ],
)
def test_languages(text, language):
    assert guess_language([text]).language == language


def test_a_guess_says_so():
    assert str(guess_language(["the cat and the dog of it"])).startswith("guess: English (Latin script 100% of letters")
    assert "no list of stop words fits" in str(guess_language(["Какой город самый большой?"]))
    assert str(guess_language(["12"])) == "guess: none (no letters)"


def test_real_questions_look_english(shared_data):
    pairs = load_pairs(str(shared_data / "qa-pairs"), max_pairs=500)
    for column in ("query", "document"):
        texts = list(pairs.dataset[column])
        assert guess_language(texts).language == "English"


@pytest.mark.parametrize("query", ["What is a river", "WHAT IS  A RIVER?!", "(what) is a river."])
def test_pairs_without_queries_of_a_test(pairs, query):
    kept = without_queries(pairs, [query])
    assert [row["query"] for row in kept.dataset] == ["Who wrote the song", "who wrote the song", "same text"]


def test_queries_of_punctuation_alone_stay_apart():
    assert query_key("???") != query_key("!!!")
