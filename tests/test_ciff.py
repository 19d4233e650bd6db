"""The Common Index File Format: read back by protobuf and by BMP."""

from pathlib import Path

import numpy as np
import pytest
from command_runs import call
from export_world import QUERIES, make_export_world, names_of, run, vectors_of
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_array, random_array

from splade_lit import export
from splade_lit.encoder.query_side import load_query_side
from splade_lit.engines.documents import Documents
from splade_lit.engines.features import FeatureNames
from splade_lit.evaluation.exact_search import SearchIndex
from splade_lit.exports.ciff import posting_messages, write_ciff
from splade_lit.exports.impacts import scaled_back, to_impacts


@pytest.fixture(scope="module")
def world(tmp_path_factory, tiny_tokenizer, make_masked_lm) -> Path:
    """See `make_export_world`."""
    return make_export_world(tmp_path_factory.mktemp("exports"), tiny_tokenizer, make_masked_lm)


def ciff_messages() -> dict[str, type]:
    """The messages of the format, made here by protobuf itself."""
    kinds = {"int32": 5, "int64": 3, "double": 1, "string": 9}
    fields = {
        "Header": "int32 version,int32 num_postings_lists,int32 num_docs,int32 total_postings_lists,int32 total_docs,"
        "int64 total_terms_in_collection,double average_doclength,string description",
        "Posting": "int32 docid,int32 tf",
        "PostingsList": "string term,int64 df,int64 cf,Posting postings",
        "DocRecord": "int32 docid,string collection_docid,int32 doclength",
    }
    file = descriptor_pb2.FileDescriptorProto(name="ciff.proto", package="ciff", syntax="proto3")
    for name, text in fields.items():
        message = file.message_type.add(name=name)
        for number, field in enumerate(text.split(","), start=1):
            kind, field_name = field.split()
            if kind in kinds:
                message.field.add(name=field_name, number=number, type=kinds[kind], label=1)
            else:
                message.field.add(name=field_name, number=number, type=11, type_name=f".ciff.{kind}", label=3)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"ciff.{name}")) for name in fields}


def read_ciff(path: Path) -> tuple[object, dict[str, dict[int, int]], list]:
    """Header, term to document to impact, and records of documents, as protobuf reads them."""
    content, place, messages = path.read_bytes(), 0, ciff_messages()

    def following(kind: str):
        nonlocal place
        size = shift = 0
        while True:
            byte = content[place]
            place += 1
            size |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                break
        place += size
        return messages[kind].FromString(content[place - size : place])

    header = following("Header")
    lists: dict[str, dict[int, int]] = {}
    for _ in range(header.num_postings_lists):
        found = following("PostingsList")
        row, postings = 0, {}
        for posting in found.postings:
            row += posting.docid
            postings[row] = posting.tf
        assert (found.df, found.cf) == (len(postings), sum(postings.values()))
        lists[found.term] = postings
    records = [following("DocRecord") for _ in range(header.num_docs)]
    assert place == len(content)
    return header, lists, records


def test_ciff_holds_the_impacts(world, tmp_path, caplog):
    out, _ = run(world, tmp_path / "out", "ciff")
    header, lists, records = read_ciff(tmp_path / "out" / "index.ciff")
    ids, vectors = vectors_of(world)
    scale = 255 / float(vectors.data.max())
    expected = scaled_back(vectors, scale)
    assert [record.collection_docid for record in records] == ids
    assert list(lists) == sorted(lists, key=str.encode)
    names = names_of(world)
    found = np.zeros(vectors.shape)
    for term, postings in lists.items():
        for row, impact in postings.items():
            found[row, names.dim(term)] = impact
    np.testing.assert_allclose(found / scale, expected.toarray(), rtol=1e-6)
    assert found.max() == 255
    assert [record.doclength for record in records] == found.sum(axis=1).astype(int).tolist()
    assert header.total_terms_in_collection == found.sum()
    assert header.description == f"impacts are weights times {scale!r}; written by splade_lit"
    assert f"postings {expected.nnz:,}  scale {scale:.6g}  largest impact 255" in out
    vanished = f"{vectors.nnz - expected.nnz} weights are so small that the impact is 0, and left out."
    assert (vanished in caplog.messages) == (expected.nnz < vectors.nnz)
    assert "1 token has another name, in queries too: '.' is %2E." in caplog.messages
    topics = dict(line.split("\t") for line in (tmp_path / "out" / "queries.tsv").read_text().splitlines())
    side = load_query_side(world / "model")
    for id, text in QUERIES.items():
        vector = side.encode(text)
        counts = {names.dim(name): topics[id].split(" ").count(name) for name in topics[id].split(" ")}
        impacts = to_impacts(vector.data, 100).tolist()
        assert counts == {dim: n for dim, n in zip(vector.indices.tolist(), impacts, strict=True) if n}


@settings(max_examples=30)
@given(st.lists(st.tuples(st.integers(0, 2**31 - 1), st.integers(1, 2**31 - 1)), max_size=30))
def test_postings_are_those_of_protobuf(pairs):
    messages = ciff_messages()
    made = posting_messages(np.array([a for a, _ in pairs], np.int64), np.array([b for _, b in pairs], np.int64))
    read = messages["PostingsList"].FromString(made)
    assert [(posting.docid, posting.tf) for posting in read.postings] == pairs


def test_bmp_finds_what_the_impacts_say(tmp_path):
    """2,000 documents, which BMP converts and searches; it rounds queries to 5 bits."""
    bmp = pytest.importorskip("bmp")
    rng = np.random.default_rng(5)
    made = csr_array(random_array((2000, 400), density=0.1, rng=rng, dtype=np.float32))
    ids = [f"d{row}" for row in range(2000)]
    documents = Documents(400, 2000, lambda: [(ids[:900], made[:900], None), (ids[900:], made[900:], None)])
    path, names = tmp_path / "index.ciff", FeatureNames.of_tokens([f"t.{dim}" for dim in range(400)])
    record = write_ciff(path, documents, names, tmp_path / "postings")
    bmp.ciff2bmp(ciff_file=str(path), output=str(tmp_path / "index.bmp"), bsize=32, compress_range=False)
    searcher = bmp.Searcher(str(tmp_path / "index.bmp"))
    queries = csr_array(random_array((20, 400), density=0.02, rng=rng, dtype=np.float32))
    queries.data = np.ceil(queries.data * 31).astype(np.float32)
    queries.data[queries.indptr[:-1]] = 32  # of each query one weight is the largest, which BMP makes 32
    exact = SearchIndex(scaled_back(made, record.scale)).search(queries, 10)
    for row in range(20):
        terms = names.weights(queries[[row]].indices.tolist(), queries[[row]].data)
        found, scores = searcher.search(terms, k=10, alpha=1.0, beta=1.0)
        np.testing.assert_allclose(np.array(scores) / record.scale, exact.scores[row], rtol=1e-5)
        surely = exact.scores[row] > exact.scores[row][-1]
        assert {ids[document] for document in exact.documents[row][surely]} <= set(found)


def test_an_export_is_replaced_by_the_next_one_only(world, tmp_path):
    run(world, tmp_path / "out", "ciff")
    run(world, tmp_path / "out", "ciff", "--names", "dims")
    assert set(read_ciff(tmp_path / "out" / "index.ciff")[1]) <= {str(dim) for dim in range(300)}
    told = call(
        export.main, "vespa", "--model", world / "model", "--vectors", world / "vectors", "--output", tmp_path / "out"
    )
    assert (told.code, "is in use and holds index.ciff" in told.errors[0]) == (2, True)
