"""The recipes of docs/recipes.md find what the index finds, in every library, without a network."""

import re
import socket
from typing import Any

import numpy as np
import pytest
from conftest import REPOSITORY

from splade_lit import AsymmetricSparseEncoder
from splade_lit.encoder.layout import copy_query_side
from splade_lit.engines.exact import ExactIndex

for package in ("sentence_transformers", "langchain_core", "llama_index.core", "haystack"):
    pytest.importorskip(package)

TEXT = (REPOSITORY / "docs" / "recipes.md").read_text(encoding="utf-8")
DOCUMENTS = {
    f"doc-{n}": text for n, text in enumerate(["the song of a river", "heart disease", "river city", "a queen"])
}
QUERY = "what do plants need to grow"


@pytest.fixture(scope="module")
def recipes(tiny_tokenizer_dir, tmp_path_factory) -> dict[str, Any]:
    """What the blocks define, each under the title of its section; run in a folder with model and index."""
    import torch
    from conftest import tiny_masked_lm
    from transformers import AutoTokenizer

    from splade_lit.encoder.document import MlmDocumentEncoder
    from splade_lit.encoder.query import IdfQueryEncoder

    folder = tmp_path_factory.mktemp("recipes")
    tokenizer = AutoTokenizer.from_pretrained(tiny_tokenizer_dir)
    document = MlmDocumentEncoder(tiny_masked_lm("bert", len(tokenizer)), tokenizer.pad_token_id)
    encoder = AsymmetricSparseEncoder(IdfQueryEncoder(torch.linspace(1, 3, len(tokenizer))), document, tokenizer).eval()
    model = folder / "runs" / "quickstart" / "model"
    encoder.save(model)
    vectors = encoder.encode_document(list(DOCUMENTS.values()), convert_to_csr=True)
    part = list(DOCUMENTS), vectors, list(DOCUMENTS.values())
    ExactIndex.build(
        folder / "docs.index", lambda: [part], encoder.vocab_size, lambda target: copy_query_side(model, target)
    )
    sections: dict[str, Any] = {"encoder": encoder}
    asked: list[object] = []

    def no_network(*arguments: object, **_: object) -> None:
        asked.append(arguments)
        raise OSError("no network")

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name in ("getaddrinfo", "create_connection"):
            patch.setattr(socket, name, no_network)
        patch.setattr(socket.socket, "connect", no_network)
        for title, body in re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", TEXT, re.MULTILINE | re.DOTALL):
            names = dict(sections.get("LangChain", {}))  # where index and queries are opened
            for block in re.findall(r"```python\n(.*?)```", body, re.DOTALL):
                exec(compile(block, f"docs/recipes.md, {title}", "exec"), names)
            sections[title] = names
    assert asked == []
    return sections


@pytest.fixture
def hits(recipes) -> list[tuple[str, float]]:
    index, queries = (recipes["LangChain"][name] for name in ("index", "queries"))
    (found,) = index.search(queries.encode(QUERY), 3)
    assert len(found) == 3
    return [tuple(hit) for hit in found]


def test_sentence_transformers_gives_our_scores(recipes):
    ours, names = recipes["encoder"], recipes["sentence-transformers"]
    scores = names["model"].similarity(names["queries"], names["documents"])
    texts = ["Order the rows of a DataFrame.", "Play a sound."]
    expected = ours.similarity(ours.encode_query(["sort a table by a column"]), ours.encode_document(texts))
    np.testing.assert_allclose(scores.to_dense(), expected, rtol=1e-5, atol=1e-5)


def test_langchain(recipes, hits):
    found = recipes["LangChain"]["retriever"].invoke(QUERY)
    assert [(one.id, one.metadata["score"], one.page_content) for one in found] == [
        (id, score, DOCUMENTS[id]) for id, score in hits
    ]
    assert recipes["LangChain"]["retriever"].batch([QUERY, ""])[1] == []


def test_llama_index(recipes, hits):
    names = recipes["LlamaIndex"]
    found = names["SparseRetriever"](names["index"], names["queries"], top_k=3).retrieve(QUERY)
    assert [(one.node_id, one.score, one.text) for one in found] == [(id, score, DOCUMENTS[id]) for id, score in hits]
    dims, weights = names["sparse_query_fn"](["the river", ""])
    vector = recipes["encoder"].encode_query("the river", convert_to_csr=True)
    assert (dims, weights) == ([vector.indices.tolist(), []], [vector.data.tolist(), []])


def test_haystack(recipes, hits, monkeypatch, tmp_path):
    names = recipes["Haystack"]
    pipeline = names["pipeline"]
    found = pipeline.run({"retriever": {"query": QUERY, "top_k": 3}})["retriever"]["documents"]
    assert [(one.id, one.score, one.content) for one in found] == [(id, score, DOCUMENTS[id]) for id, score in hits]
    saved = pipeline.to_dict()["components"]["retriever"]
    assert saved["init_parameters"] == {"folder": "docs.index", "top_k": 10}
    embedder = names["SparseTextEmbedder"].__new__(names["SparseTextEmbedder"])
    embedder._queries = recipes["LangChain"]["queries"]
    vector = recipes["encoder"].encode_query("the river", convert_to_csr=True)
    embedding = embedder.run("the river")["sparse_embedding"]
    assert (embedding.indices, embedding.values) == (vector.indices.tolist(), vector.data.tolist())


def test_fastembed(recipes):
    encoder, model = recipes["encoder"], recipes["fastembed"]["model"]
    texts = [*DOCUMENTS.values(), ""]
    expected = encoder.encode_document(texts, convert_to_csr=True).toarray()
    found = list(model.embed(iter(texts), batch_size=2))
    assert len(found) == len(texts)
    for one, row in zip(found, expected, strict=True):
        vector = np.zeros_like(row)
        vector[one.indices] = one.values
        np.testing.assert_allclose(vector, row, rtol=1e-5, atol=1e-5)
        assert one.as_dict() == dict(zip(one.indices.tolist(), one.values.tolist(), strict=True))
    (query,) = model.query_embed("the river")
    assert (
        query.as_object()["indices"].tolist() == encoder.encode_query("the river", convert_to_csr=True).indices.tolist()
    )
