"""A small collection with hostile texts, its index, and a server of it in a thread."""

import http.client
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

import torch
from conftest import tiny_masked_lm
from transformers import PreTrainedTokenizerBase

from splade_lit.data.tasks import RetrievalTask
from splade_lit.encoder.document import MlmDocumentEncoder
from splade_lit.encoder.layout import copy_query_side
from splade_lit.encoder.model import AsymmetricSparseEncoder
from splade_lit.encoder.query import IdfQueryEncoder
from splade_lit.engines.exact import ExactIndex
from splade_lit.own_data.held_out import write_beir
from splade_lit.web.answers import Answers
from splade_lit.web.server import bound, make_server

HOSTILE = {
    "<b id=x>bold</b>": "<script>window.hacked = 1</script> song <img src=x onerror='window.hacked = 2'> of the king",
    "rtl \u202e mark": "the \u202eriver\u202c of \u200f the \u2067 city song \u0000 \ufeff",
    "long": "song " + "w" * 3000 + " king",
    "</style><svg/onload=window.hacked=3>": "song {{ 7 * 7 }} ${7 * 7} javascript:alert(1) \u2028 😀 king",
    "half \udce9 pair": "the song \udce9 of a king",
    "a/b?c=d&e#f %41": "the city and the song",
}
TEXTS = {
    f"d{number}": text
    for number, text in enumerate(
        ["the song of the musical film", "the river and the city", "heart disease: cause and treatment"] * 8
        + ["the king of the city wrote a song of water and the country " * 30, "a cell of the heart"]
    )
} | HOSTILE


def shown(text: str) -> str:
    """A text as the page has it: valid Unicode."""
    return text.replace("\udce9", "\ufffd")


def make_encoder(tokenizer: PreTrainedTokenizerBase, seed: int = 0) -> AsymmetricSparseEncoder:
    """A random encoder."""
    document = MlmDocumentEncoder(tiny_masked_lm("bert", len(tokenizer)), tokenizer.pad_token_id)
    idf = torch.rand(len(tokenizer), generator=torch.Generator().manual_seed(seed)) * 3 + 0.1
    return AsymmetricSparseEncoder(IdfQueryEncoder(idf), document, tokenizer, max_document_tokens=48).eval()


def make_collection(folder: Path, tokenizer: PreTrainedTokenizerBase) -> AsymmetricSparseEncoder:
    """Write `model`, two indexes, `index` and `other`, and a retrieval task, `task`; returns the model of the first."""
    encoder = make_encoder(tokenizer)
    for name, one in (("index", encoder), ("other", make_encoder(tokenizer, seed=1))):
        one.save(folder / f"model of {name}")
        texts = list(TEXTS.values())
        vectors = one.encode_document([shown(text) for text in texts], convert_to_csr=True)
        ExactIndex.build(
            folder / name,
            lambda vectors=vectors, texts=texts: [(list(TEXTS), vectors, texts)],
            vectors.shape[1],
            lambda place, name=name: copy_query_side(folder / f"model of {name}", place),
        )
    queries = {"q1": "song of the king", "q2": "the river", "q3": "heart disease"}
    qrels = {"q1": {"d0": 1, "d24": 2}, "q2": {"d1": 1}, "q3": {"d2": 1, "d25": 1}}
    corpus = {id: text for id, text in TEXTS.items() if id.startswith("d")}
    write_beir(RetrievalTask("task", corpus, queries, qrels), folder / "task")
    return encoder


@contextmanager
def serving(answers: Answers, hosts: tuple[str, ...] = ()) -> Iterator[str]:
    """Serve, and give the address."""
    with bound("127.0.0.1", 0) as listening:
        server = make_server(answers, hosts)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        while not server.started and thread.is_alive():
            time.sleep(0.01)
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()


def fetch(address: str, target: str, method: str = "GET", body: bytes | None = None, **headers: str) -> tuple[Any, ...]:
    """Status, headers and content of an answer."""
    connection = http.client.HTTPConnection(urlsplit(address).netloc, timeout=60)
    connection.request(method, target, body, headers)
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    return answer.status, {name.lower(): value for name, value in answer.getheaders()}, content


def ask(address: str, path: str, **parameters: object) -> Any:
    """What the API answers."""
    status, _, content = fetch(address, f"{path}?{urlencode(parameters)}")
    assert status == 200, content
    return json.loads(content)
