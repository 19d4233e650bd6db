"""Why a document is found: the texts that are read, the shares of a score, and the tokens that raised terms."""

import json
import re

import numpy as np
import pytest
import torch
from command_runs import call
from scipy.sparse import csr_array
from test_query_side import other_tokenizer
from transformers import AutoTokenizer

from splade_lit import encode, index, load_query_side, search
from splade_lit.core.tokenisation import EngineTokenizer, Tokenisation
from splade_lit.encoder.document import MlmDocumentEncoder
from splade_lit.encoder.explain import term_shares
from splade_lit.encoder.model import AsymmetricSparseEncoder
from splade_lit.encoder.query import IdfQueryEncoder

TEXTS = [
    "who wrote the song of the musical film",
    "The THE ÉTAT the river, a cell-protein!",
    "",
    " \n\t",
    "[CLS] song [SEP] [PAD] [MASK] 😀 中国 zebra ∮ don't",
    "river " * 300,
    "x" * 3000,
    "song " + "y" * 900 + " of the king",
]


@pytest.mark.parametrize("settings", [{}, {"do_lower_case": False}, {"truncation_side": "left"}, "roberta"])
@pytest.mark.parametrize("prompt", ["", "passage: ", "so"])
def test_a_document_is_read_as_the_model_reads_it(tiny_tokenizer_dir, tmp_path, settings, prompt):
    if settings == "roberta":
        tokenizer = other_tokenizer(settings, tiny_tokenizer_dir, tmp_path)
    else:
        tokenizer = AutoTokenizer.from_pretrained(tiny_tokenizer_dir, **settings)
    whole = Tokenisation(tokenizer, 16, 20, {"document": prompt})
    engine = EngineTokenizer(tokenizer.backend_tokenizer, tokenizer.truncation_side)
    alone = Tokenisation(engine, 16, 20, {"document": prompt})
    for text, expected in zip(TEXTS, whole.documents(TEXTS), strict=True):
        for side in (whole, alone):
            read = side.read_document(text)
            assert read.ids.tolist() == expected.tolist()
            assert read.ids.dtype == np.int32
            assert len(read.spans) == len(read.ids)
            offsets = tokenizer(
                prompt + text, truncation=True, max_length=20, return_offsets_mapping=True
            )["offset_mapping"]  # fmt: skip
            moved = [(max(start - len(prompt), 0), end - len(prompt)) for start, end in offsets]
            assert [span or (0, 0) for span in read.spans] == [(a, b) if a < b else (0, 0) for a, b in moved]


@pytest.fixture(params=["max", "sum"])
def encoder(request, make_masked_lm, tiny_tokenizer) -> AsymmetricSparseEncoder:
    document = MlmDocumentEncoder(make_masked_lm("bert", len(tiny_tokenizer)), pooling=request.param)
    idf = torch.rand(len(tiny_tokenizer), generator=torch.Generator().manual_seed(0)) + 0.5
    return AsymmetricSparseEncoder(
        IdfQueryEncoder(idf), document, tiny_tokenizer, max_document_tokens=24, prompts={"document": "a: "}
    ).eval()


def test_shares_add_up_and_terms_come_from_the_token_with_the_largest_logit(encoder):
    query = "the song of a king and the river"
    for text in (TEXTS[0], TEXTS[1], TEXTS[4], TEXTS[7]):
        shares = encoder.explain(query, text)
        score = encoder.similarity(encoder.encode_query(query), encoder.encode_document(text))
        assert sum(term.share for term in shares) == pytest.approx(score.item(), rel=1e-5)
        assert shares == sorted(shares, key=lambda term: (-term.share, term.dim))
        ids = encoder.tokenisation.documents([text])[0]
        with encoder.document.whole_model() as model, torch.no_grad():
            inputs = torch.tensor(ids[None].astype(np.int64))
            logits = model(input_ids=inputs, attention_mask=torch.ones_like(inputs)).logits[0]
        for term in shares:
            assert term.in_text == (term.dim in ids.tolist())
            if not term.document_weight:
                assert (term.raised_by, term.label) == (None, term.token)
                continue
            assert term.label == (term.token if term.in_text else f"({term.token})")
            raised = term.raised_by
            places = encoder.tokenizer.convert_ids_to_tokens(ids.tolist())
            assert raised.token == places[int(logits[:, term.dim].argmax())]
            if raised.start is None:
                assert raised.token in ("[CLS]", "[SEP]", "a", "[UNK]")  # ":" is not in the vocabulary
            else:
                assert raised.token == "[UNK]" or text[raised.start].lower() in ("é", raised.token.strip("#")[0])


def test_a_text_that_is_not_known_leaves_it_open():
    query = csr_array(np.array([[0.0, 2.0, 1.0]]))
    assert [term.in_text for term in term_shares(query, [0.5, 0.0], ["song", "film"])] == [None, None]
    assert [term.label for term in term_shares(query, [0.5, 0.0], ["song", "film"])] == ["song", "film"]


def test_search_tells_terms_that_the_model_added_and_explains_hits(encoder, tmp_path):
    encoder.save(tmp_path / "model")
    (tmp_path / "docs.jsonl").write_text(
        "\n".join(json.dumps({"_id": f"d{number}", "text": text}) for number, text in enumerate(TEXTS[:2]))
    )
    shared = ("--model", tmp_path / "model", "--corpus", tmp_path / "docs.jsonl")
    query = "song king river"
    shown = ("--terms", 20, query)
    direct = call(search.main, *shared, *shown)
    assert direct.code == 0, direct.err
    for number, text in enumerate(TEXTS[:2]):
        line = direct.out.split(f"  d{number}\n")[1].splitlines()[1]
        expected = [term for term in encoder.explain(query, text) if term.document_weight]
        assert line.strip() == " + ".join(f"{term.label} {term.share:.3f}" for term in expected)
    assert "(" in direct.out
    assert call(index.main, *shared, "--output", tmp_path / "index").code == 0
    assert call(search.main, "--index", tmp_path / "index", "--terms", 20, query).out == direct.out
    assert call(encode.main, *shared, "--output", tmp_path / "vectors").code == 0
    bare = call(search.main, "--model", tmp_path / "model", "--vectors", tmp_path / "vectors", "--terms", 20, query)
    lines = [line for line in direct.out.splitlines() if line.strip() not in TEXTS]
    assert bare.out.splitlines() == [line.replace("(", "").replace(")", "") for line in lines]
    explained = [
        call(search.main, "--index", tmp_path / "index", "--model", tmp_path / "model", "--explain", *shown),
        call(search.main, "--index", tmp_path / "index", "--explain", *shown),
        call(search.main, *shared, "--explain", *shown),
    ]
    assert explained[2].out == explained[0].out
    for number, text in enumerate(TEXTS[:2]):
        expected = [term for term in encoder.explain(query, text) if term.document_weight]
        for outcome, has_model in zip(explained, (True, False, True), strict=True):
            assert outcome.code == 0, outcome.err
            head, *lines = outcome.out.split(f"  d{number}\n")[1].splitlines()[1 : len(expected) + 2]
            assert head.split() == ["term", "query", "document", "product", "where", *["raised", "by"] * has_model]
            for term, line in zip(expected, lines, strict=True):
                figures = [f"{value:.3f}" for value in (term.query_weight, term.document_weight, term.share)]
                where = ["in", "text"] if term.in_text else ["added"]
                assert line.split() == [term.token, *figures, *where, *[term.raised_by.token] * has_model]
    more = call(search.main, *shared, "--explain", "--terms", 1, "--top", 1, "the song of a river").out.splitlines()[-1]
    assert re.fullmatch(r" {6}\d+ more +[\d.]+ *", more)
    side = load_query_side(tmp_path / "model")
    assert side.tokenisation.read_document(TEXTS[0]).ids.tolist() == encoder.tokenisation.documents(TEXTS)[0].tolist()
