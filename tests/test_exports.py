"""Exports of a corpus: what is written is read back, by the programs that it is for where they are there."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from command_runs import call, read_json
from export_world import QUERIES, TEXTS, lines_of, make_export_world, matrix, names_of, run, vectors_of
from hypothesis import given
from hypothesis import strategies as st
from scipy.sparse import csr_array

from splade_lit import export, index
from splade_lit.core.errors import UserError
from splade_lit.encoder.model import AsymmetricSparseEncoder
from splade_lit.encoder.query_side import load_query_side
from splade_lit.engines.cluster_bodies import cut_to_feature
from splade_lit.engines.documents import Documents
from splade_lit.engines.features import FeatureNames, escape, plain_floats, unescape
from splade_lit.exports.clusters import ClusterExport, doc_only_table
from splade_lit.exports.impacts import Counts, scaled_back
from splade_lit.exports.vespa import vespa_lines


@pytest.fixture(scope="module")
def world(tmp_path_factory, tiny_tokenizer, make_masked_lm) -> Path:
    """See `make_export_world`."""
    return make_export_world(tmp_path_factory.mktemp("exports"), tiny_tokenizer, make_masked_lm)


@given(st.text(max_size=6))
def test_names_are_escaped_and_back(token):
    assert unescape(escape(token)) == token
    assert escape(token)
    assert not re.search(r"[.\s]", escape(token))


@given(st.lists(st.floats(0, 100, width=32), max_size=20))
def test_numbers_are_short_and_exact(weights):
    made = np.array(weights, np.float32)
    read = np.array(json.loads(json.dumps(plain_floats(made))), np.float32)
    assert (made == read).all()
    assert len(json.dumps(plain_floats(np.array([0.1], np.float32)))) == 5


@pytest.mark.parametrize("form", ["terms", "indices"])
def test_vectors_are_read_back_to_the_last_bit(world, tmp_path, form):
    run(world, tmp_path / "out", "vectors", "--form", form)
    ids, vectors = vectors_of(world)
    rows, asked = lines_of(tmp_path / "out", "documents-*.jsonl"), lines_of(tmp_path / "out", "queries.jsonl")
    assert [row["id"] for row in rows] == ids
    side = load_query_side(world / "model")
    expected = side.encode(list(QUERIES.values()))
    for found, wanted in ((rows, vectors), (asked, expected)):
        if form == "terms":
            made = matrix([row["vector"] for row in found], wanted.shape[1], names_of(world, escaped=False).dim)
        else:
            pairs = [dict(zip(row["indices"], row["values"], strict=True)) for row in found]
            made = matrix(pairs, wanted.shape[1], int)
        assert (made != wanted).nnz == 0
    record = read_json(tmp_path / "out" / "export.json")
    assert (record["format"], record["documents"], record["postings"]) == ("vectors", len(ids), vectors.nnz)


def test_an_index_gives_vectors_and_texts(world, tmp_path):
    made = ("--model", world / "model", "--vectors", world / "vectors", "--corpus", world / "docs.jsonl")
    assert call(index.main, *made, "--output", tmp_path / "index").code == 0
    outcome = call(export.main, "vectors", "--index", tmp_path / "index", "--output", tmp_path / "out")
    assert outcome.code == 0, outcome.err
    of_corpus = call(export.main, "vectors", *made, "--output", tmp_path / "of_corpus")
    assert of_corpus.code == 0, of_corpus.err
    found = [(tmp_path / name / "documents-00000.jsonl").read_text() for name in ("out", "of_corpus")]
    assert found[0] == found[1]
    assert json.loads(found[0].splitlines()[1])["content"] == TEXTS[1].strip()


def test_a_corpus_is_encoded_first(world, tmp_path):
    given = ("--model", world / "model", "--corpus", world / "docs.jsonl", "--output", tmp_path / "out")
    outcome = call(export.main, "vectors", *given)
    assert outcome.code == 0, outcome.err
    vectors = vectors_of(world)[1]
    rows = lines_of(tmp_path / "out", "documents-*.jsonl")
    made = matrix([row["vector"] for row in rows], vectors.shape[1], names_of(world, escaped=False).dim)
    np.testing.assert_allclose(made.toarray(), vectors.toarray(), rtol=1e-4, atol=1e-5)
    assert not (tmp_path / "out" / ".vectors").exists()


def test_a_limit_is_kept_for_once(world, tmp_path):
    given = ("--model", world / "model", "--corpus", world / "docs.jsonl", "--output", tmp_path / "out")
    outcome = call(export.main, "vectors", *given, "--max-document-active-dims", 3)
    assert outcome.code == 0, outcome.err
    rows = [row["vector"] for row in lines_of(tmp_path / "out", "documents-*.jsonl")]
    assert max(map(len, rows)) == 3
    vectors = vectors_of(world)[1].toarray()
    for row, vector in zip(rows, vectors, strict=True):
        assert sorted(row.values()) == pytest.approx(sorted(vector[vector > 0])[-3:], rel=1e-4)


def test_anserini_has_whole_numbers(world, tmp_path):
    out, _ = run(world, tmp_path / "out", "anserini", "--scale", 50, "--names", "dims")
    rows = lines_of(tmp_path / "out" / "documents", "*.jsonl")
    ids, vectors = vectors_of(world)
    assert [row["id"] for row in rows] == ids
    made = matrix([row["vector"] for row in rows], vectors.shape[1], int)
    np.testing.assert_allclose(made.toarray() / 50, scaled_back(vectors, 50).toarray(), rtol=1e-6)
    assert all(isinstance(impact, int) and impact > 0 for row in rows for impact in row["vector"].values())
    assert out.startswith(f"anserini: {tmp_path / 'out'}  documents 15  postings {made.nnz:,}  scale 50\n")


def test_vespa_has_tensors_that_are_exact(world, tmp_path):
    run(world, tmp_path / "out", "vespa", "--query", "the song")
    rows = lines_of(tmp_path / "out", "documents-*.jsonl")
    ids, vectors = vectors_of(world)
    assert [row["put"] for row in rows] == [f"id:splade_lit:doc::{id}" for id in ids]
    made = matrix([row["fields"]["vector"]["cells"] for row in rows], vectors.shape[1], int)
    assert (made != vectors).nnz == 0
    for row in rows:
        terms, cells = row["fields"]["terms"], row["fields"]["vector"]["cells"]
        assert terms == {name: max(round(weight * 100), 1) for name, weight in cells.items()}
    query = read_json(tmp_path / "out" / "query.json")
    vector = load_query_side(world / "model").encode("the song")
    asked = {str(d): w for d, w in zip(vector.indices.tolist(), plain_floats(vector.data), strict=True)}
    assert json.loads(query["input.query(q)"]) == asked
    assert "wand(terms, @terms)" in query["yql"]
    searches = lines_of(tmp_path / "out", "queries.jsonl")
    assert [line["id"] for line in searches] == list(QUERIES)
    run(world, tmp_path / "out", "vespa", "--query", QUERIES["q1"])
    assert searches[0]["body"] == read_json(tmp_path / "out" / "query.json")
    schema = (tmp_path / "out" / "doc.sd").read_text()
    assert schema.count("{") == schema.count("}")
    assert "schema doc {" in schema


def test_vespa_gets_no_character_that_it_refuses(world, tmp_path, caplog):
    names, vectors = names_of(world), csr_array(np.ones((1, 3), np.float32))
    wrong, right = "\x0b\x0c\x1f\ufdd0\U0001ffff\ud800", "\t\n\r\x7f\x85\ue000\ufffd\U0001f600"

    def lines(id: str) -> list[dict]:
        documents = Documents(3, 1, lambda: iter([([id], vectors, [f"a{wrong}b{right}"])]))
        return [json.loads(line) for line in vespa_lines(documents, names, 100, Counts())]

    assert lines("d 1")[0]["fields"]["text"] == f"a{' ' * len(wrong)}b{right}"
    assert f"{len(wrong)} characters of texts are refused by Vespa" in caplog.text
    with pytest.raises(UserError, match="has a character that Vespa refuses"):
        lines("d\x0c1")


@pytest.mark.parametrize("format", ["anserini", "ciff"])
def test_queries_without_weights_are_left_out_of_topics_and_told(world, tmp_path, caplog, format):
    (tmp_path / "asked.jsonl").write_text('{"_id": "q1", "text": "song"}\n{"_id": "q2", "text": ""}')
    given = ("--model", world / "model", "--vectors", world / "vectors", "--queries-file", tmp_path / "asked.jsonl")
    assert call(export.main, format, *given, "--output", tmp_path / "out").code == 0
    lines = (tmp_path / "out" / "queries.tsv").read_text().splitlines()
    assert [line.split("\t")[0] for line in lines] == ["q1"]
    assert "1 query has no token with an impact; queries.tsv leaves out such queries" in caplog.text


def test_weights_of_queries_are_clipped_for_seismic_and_told(world, caplog):
    side = load_query_side(world / "model")
    (song,) = side.encode("song").indices.tolist()
    side.weights[song] = 100
    names = FeatureNames.of_dims(len(side.weights))
    for product, field, most in (("opensearch", "sparse_vector", 64), ("opensearch", "rank_features", 100)):
        assert ClusterExport(product, field, names, side).weights("song")[str(song)] == most
    assert "Weights of queries above 64 are clipped" in caplog.text


def test_the_loss_is_that_of_the_written_vectors(world, tmp_path, caplog):
    task = tmp_path / "task"
    (task / "qrels").mkdir(parents=True)
    (task / "corpus.jsonl").write_text((world / "docs.jsonl").read_text())
    (task / "queries.jsonl").write_text((world / "queries.jsonl").read_text())
    (task / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq1\td 0\t1\nq2\td 1\t1\nq3\td 2\t1\n")
    figures = {}
    for scale in (100, 0.2):
        caplog.clear()
        out, _ = run(world, tmp_path / f"out{scale}", "anserini", "--scale", scale, "--tasks", task)
        found = re.search(r"task nDCG@10: float32 ([\d.]+), as written ([\d.]+) \(([+-][\d.]+)\)", out)
        assert found, out
        assert "was not measured" not in caplog.text
        figures[scale] = [float(text) for text in found.groups()]
    assert figures[100][0] == figures[0.2][0]
    assert abs(figures[100][2]) < 0.2
    assert figures[0.2][1] != figures[100][1]
    (task / "corpus.jsonl").write_text("\n".join((world / "docs.jsonl").read_text().splitlines()[:9]))
    out, _ = run(world, tmp_path / "other", "anserini", "--tasks", task)  # which are encoded now
    assert "task nDCG@10: float32" in out


@pytest.mark.parametrize("field", ["rank_features", "sparse_vector"])
@pytest.mark.parametrize("product", ["opensearch", "elasticsearch"])
def test_files_of_clusters(world, tmp_path, product, field):
    run(world, tmp_path / "out", product, "--field", field, "--corpus", world / "docs.jsonl", "--query", "song.")
    lines = lines_of(tmp_path / "out", "bulk-*.ndjson")
    actions, sources = lines[::2], lines[1::2]
    ids, vectors = vectors_of(world)
    assert actions == [{"index": {"_id": id}} for id in ids]
    assert [source["text"] for source in sources] == [text.strip() for text in TEXTS]
    by_number = (product, field) == ("opensearch", "sparse_vector")
    dim_of = int if by_number else names_of(world).dim
    made = matrix([source["vector"] for source in sources], vectors.shape[1], dim_of)
    assert (made != vectors).nnz == 0
    assert not [name for source in sources for name in source["vector"] if "." in name]
    body = read_json(tmp_path / "out" / "create_index.json")
    assert body["mappings"]["properties"]["vector"]["type"] == field
    searches = lines_of(tmp_path / "out", "msearch.ndjson")
    assert searches[::2] == [{}] * 3
    query = read_json(tmp_path / "out" / "query.json")
    assert ("%2E" in json.dumps(query)) != by_number
    assert ('"prune": false' in json.dumps(query)) == ((product, field) == ("elasticsearch", "sparse_vector"))
    assert (tmp_path / "out" / "features.json").exists() != by_number


def test_files_of_documents_have_the_size_that_is_asked_for(world, tmp_path, monkeypatch):
    from splade_lit.exports import clusters

    sizes: list[int] = []
    real = clusters.ClusterExport.write
    monkeypatch.setattr(
        clusters.ClusterExport, "write", lambda self, output, documents, queries, example, most_bytes: real(
            self, output, documents, queries, example, 8000
        )
    )  # fmt: skip
    run(world, tmp_path / "out", "elasticsearch")
    files = sorted((tmp_path / "out").glob("bulk-*.ndjson"))
    assert len(files) > 2
    assert [path.name for path in files] == read_json(tmp_path / "out" / "export.json")["files"]
    for path in files:
        lines = path.read_text().splitlines()
        sizes.append(path.stat().st_size)
        assert len(lines) % 2 == 0
        assert path.stat().st_size <= 8000 or len(lines) == 2
    assert sum(len(path.read_text().splitlines()) for path in files) == 30


def test_negative_weights_of_queries_are_left_out_and_told(world, tmp_path, caplog):
    model = AsymmetricSparseEncoder.load(world / "model")
    token = model.tokenizer.convert_tokens_to_ids("song")
    with torch.no_grad():
        model.idf_weights[token] = -1.0
    model.save(tmp_path / "model")
    given = ("--model", tmp_path / "model", "--vectors", world / "vectors", "--queries-file", world / "queries.jsonl")
    for format in ("anserini", "elasticsearch", "vespa"):
        caplog.clear()
        more = ["--query", "song of the king"] if format != "anserini" else []
        made = call(export.main, format, *given, *more, "--output", tmp_path / format)
        assert made.code == 0, made.err
        told = "1 token has a query weight below 0, for which there is no place in this format; queries leave them out."
        assert told in caplog.messages
    assert "song" not in (tmp_path / "anserini" / "queries.tsv").read_text()
    assert "king" in (tmp_path / "anserini" / "queries.tsv").read_text()
    for format in ("elasticsearch", "vespa"):
        assert "song" not in (tmp_path / format / "query.json").read_text()
        assert "-" not in (tmp_path / format / "query.json").read_text()


def test_files_that_no_export_has_written_stay(world, tmp_path):
    """Beside nothing, beside an export of another format, and where they are read."""
    folder, asked = tmp_path / "mine", "q 1\tsong\n"
    folder.mkdir()
    (folder / "queries.tsv").write_text(asked)
    given = ("--model", world / "model", "--vectors", world / "vectors", "--output", folder)
    told = call(export.main, "ciff", *given)
    assert (told.code, "is in use and holds queries.tsv" in told.errors[0]) == (2, True)
    (folder / "export.json").write_text('{"format": "anserini"}')
    told = call(export.main, "ciff", *given)
    assert (told.code, "is in use and holds queries.tsv" in told.errors[0]) == (2, True)
    (folder / "export.json").write_text('{"format": "ciff"}')
    told = call(export.main, "ciff", *given, "--queries-file", folder / "queries.tsv")
    assert (told.code, "queries.tsv is what is read" in told.errors[0]) == (2, True)
    assert (folder / "queries.tsv").read_text() == asked


def test_an_export_that_was_stopped_is_begun_again(world, tmp_path, monkeypatch):
    given = ("--model", world / "model", "--vectors", world / "vectors", "--output", tmp_path / "out")
    with monkeypatch.context() as changes:
        changes.setattr("splade_lit.exports.output.OutputFolder.finish", lambda *_: (_ for _ in ()).throw(KeyError()))
        with pytest.raises(KeyError):
            call(export.main, "vectors", *given)
    assert not (tmp_path / "out" / "export.json").exists()
    assert call(export.main, "ciff", *given).code == 2
    assert call(export.main, "vectors", *given).code == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} <= {"documents-00000.jsonl", "export.json", ".lock"}


def test_an_index_of_another_model_is_told(world, tmp_path):
    made = ("--model", world / "model", "--vectors", world / "vectors", "--output", tmp_path / "index")
    assert call(index.main, *made).code == 0
    model = AsymmetricSparseEncoder.load(world / "model")
    model.document.decoder.bias.data += 0.1
    model.save(tmp_path / "other")
    arguments = ("vectors", "--index", tmp_path / "index", "--output", tmp_path / "out")
    told = call(export.main, *arguments, "--model", tmp_path / "other")
    assert (told.code, "was made with another model" in told.errors[0]) == (2, True)
    assert call(export.main, *arguments, "--model", world / "model").code == 0


@pytest.mark.parametrize(
    ("query", "what"),
    [
        ({"_id": "a\tb\nc", "text": "song"}, r"The id 'a\tb\nc' has white space, which a file of topics cannot hold"),
        ({"_id": "q", "text": None}, "line 2: a query needs _id and text, both strings"),
        ({"_id": None, "text": "song"}, "line 2: a query needs _id and text, both strings"),
    ],
)
def test_queries_that_topics_cannot_hold_are_told_at_once(world, tmp_path, query, what):
    asked = [{"_id": 7, "text": "song"}, query]
    (tmp_path / "asked.jsonl").write_text("\n".join(map(json.dumps, asked)))
    given = ("--model", world / "model", "--vectors", world / "vectors", "--queries-file", tmp_path / "asked.jsonl")
    told = call(export.main, "anserini", *given, "--output", tmp_path / "out")
    assert (told.code, what in told.errors[0]) == (2, True), told.err
    assert not (tmp_path / "out").exists()


def test_ids_of_queries_that_are_no_unicode_are_mended(world, tmp_path):
    (tmp_path / "asked.jsonl").write_text(r'{"_id": "q\ud800", "text": "song"}')
    given = ("--model", world / "model", "--vectors", world / "vectors", "--queries-file", tmp_path / "asked.jsonl")
    assert call(export.main, "anserini", *given, "--output", tmp_path / "out").code == 0
    assert (tmp_path / "out" / "queries.tsv").read_text().startswith("q\ufffd\tsong")


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (["vectors", "--model", "MODEL"], "give --corpus, --vectors"),
        (["vectors", "--vectors", "VECTORS"], "give --model, or --index"),
        (["vectors", "--index", "nothing"], "holds no index"),
        (["vectors", "--index", "nothing", "--vectors", "VECTORS"], "leave out --vectors"),
        (["vectors", "--index", "OTHER"], "is an index of seismic, and an exact one is needed"),
        (["ciff", "--model", "MODEL", "--vectors", "VECTORS", "--tasks", "none"], "'none' is neither"),
        (["ciff", "--model", "MODEL", "--vectors", "VECTORS", "--min-document-weight", 0.1], "what --vectors names"),
        (["vectors", "--index", "OTHER", "--max-document-active-dims", 9], "what --index names is there already"),
        (["ciff", "--model", "MODEL", "--vectors", "VECTORS", "--scale", "1e30"], "give a smaller --scale"),
        (["opensearch", "--doc-only", "--names", "dims", "--model", "MODEL"], "leave out --field sparse_vector"),
        (["vectors", "--model", "MODEL", "--vectors", "VECTORS", "--queries-file", "none.jsonl"], "none.jsonl"),
    ],
)
def test_what_cannot_be_exported_is_told(world, tmp_path, arguments, what):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "index.json").write_text('{"engine": "seismic"}')
    places = {"MODEL": world / "model", "VECTORS": world / "vectors", "OTHER": tmp_path / "other"}
    told = call(export.main, *(places.get(word, word) for word in arguments), "--output", tmp_path / "out")
    assert (told.code, len(told.errors)) == (2, 1), told.err
    assert what in told.errors[0]
    assert not (tmp_path / "out" / "export.json").exists()


def test_the_tokenizer_model_gives_our_weights(world, tmp_path):
    """As OpenSearch's plugin computes them: each id decoded on its own, no special tokens, 1 where none is known."""
    import hashlib
    import zipfile

    from tokenizers import Tokenizer

    run(world, tmp_path / "out", "opensearch", "--doc-only")
    with zipfile.ZipFile(tmp_path / "out" / "tokenizer.zip") as archive:
        engine = Tokenizer.from_str(archive.read("tokenizer.json").decode())
        table = json.loads(archive.read("idf.json"))
    register = read_json(tmp_path / "out" / "register.json")
    content = (tmp_path / "out" / "tokenizer.zip").read_bytes()
    assert register["model_content_hash_value"] == hashlib.sha256(content).hexdigest()
    side = load_query_side(world / "model")
    for text in QUERIES.values():
        ids = dict.fromkeys(engine.encode(text).ids)
        tokens = [token for id in ids if (token := engine.decode([id], skip_special_tokens=True))]
        assert {token: table.get(token, 1.0) for token in tokens} == pytest.approx(side.terms(text))
    query = read_json(tmp_path / "out" / "query.json")["query"]
    assert query == {"neural_sparse": {"vector": {"query_text": "an example", "model_id": "MODEL_ID"}}}


def test_a_tokenizer_whose_pieces_change_when_they_stand_alone_is_refused(world):
    from tokenizers import decoders

    side = load_query_side(world / "model")
    side.tokenisation.tokenizer.backend_tokenizer.decoder = decoders.Replace("s", "z")
    with pytest.raises(UserError, match="in another way than documents have them"):
        doc_only_table(side)


@given(st.lists(st.floats(2.0**-100, 1000, width=32), min_size=1, max_size=10))
def test_features_keep_nine_bits(weights):
    made = np.array(weights, np.float32)
    kept = cut_to_feature(made)
    assert (kept <= made).all()
    assert ((made - kept) <= made * 2.0**-8).all()
    mantissa, _ = np.frexp(kept.astype(np.float64))
    assert (mantissa * 512 == np.rint(mantissa * 512)).all()
