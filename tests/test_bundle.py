"""The bundle: its clients give the vectors of PyTorch, in processes without PyTorch, and it is whole or not there."""

import copy
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from command_runs import call
from conftest import tiny_masked_lm
from test_query_side import other_tokenizer

from splade_lit import AsymmetricSparseEncoder, UserError, export
from splade_lit.encoder.document import MlmDocumentEncoder
from splade_lit.encoder.layout import document_side_fingerprint, find_saved
from splade_lit.encoder.pruning import Pruning
from splade_lit.encoder.query import IdfQueryEncoder
from splade_lit.engines.features import escape
from splade_lit.engines.onnx import INT8_MODEL, MODEL
from splade_lit.exports import bundle, onnx
from splade_lit.exports.bundle import Bundle, write_bundle
from splade_lit.exports.mappings import MAPPINGS

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

TEXTS = [
    "Who wrote the song of the river? 5.5%",
    "",
    "river " * 90,
    "Café, naïve façade, ÉTAT a\u0301 ﬁn İstanbul ΑΣ \u017ftraße",
    "中文 city 東京 서울",
    "😀 zebra 👩\u200d👩\u200d👧 ∮ don't \u200b",
    " \n\t[CLS] song [SEP] [PAD] <s> </s>",
    "heart disease " * 12,
    "x",
]
LIMITS = {"bert": Pruning(4, 40, 0.2), "roberta": Pruning(None, None, 0.0, 0.3)}
# Keeps whoever imports these from running.
PYTHON = """
import json, sys
for name in ("torch", "transformers", "splade_lit", "scipy"):
    sys.modules[name] = None
from client import Client
client, texts = Client(), json.load(sys.stdin)
found = {"query": client.encode_query(texts), "document": client.encode_document(texts, int(sys.argv[1]))}
vectors = {side: [[dims.tolist(), weights.tolist()] for dims, weights in rows] for side, rows in found.items()}
json.dump(vectors | {"terms": client.terms(*found["query"][0])}, sys.stdout)
"""
NODE = """
import { readFileSync } from "node:fs";
import { Client } from "./client.mjs";
const client = await Client.open();
const texts = JSON.parse(readFileSync(0, "utf8"));
const query = await client.encodeQuery(texts), document = await client.encodeDocument(texts, Number(process.argv[2]));
const rows = (vectors) => vectors.map(({ dims, weights }) => [dims, weights]);
console.log(JSON.stringify({ query: rows(query), document: rows(document), terms: client.terms(query[0]) }));
"""


def make_encoder(kind: str, tiny_tokenizer_dir: Path, folder: Path) -> AsymmetricSparseEncoder:
    """A model with prompts and limits on the tokenizer of this kind."""
    tokenizer = other_tokenizer(kind, tiny_tokenizer_dir, folder)
    if kind == "roberta":
        tokenizer.truncation_side = "left"
    model = tiny_masked_lm("roberta" if kind == "roberta" else "bert", len(tokenizer), tokenizer.pad_token_id)
    idf = torch.rand(len(tokenizer), generator=torch.Generator().manual_seed(0)) * 3
    idf[::7] = 0
    idf[30] = -2.5
    document = MlmDocumentEncoder(model, tokenizer.pad_token_id)
    prompts = {"query": "who is ", "document": "song: "}
    settings = {"max_query_tokens": 9, "max_document_tokens": 30, "prompts": prompts, "pruning": LIMITS[kind]}
    return AsymmetricSparseEncoder(IdfQueryEncoder(idf), document, tokenizer, **settings).eval()


@pytest.fixture(scope="module")
def bundles(tiny_tokenizer_dir, tmp_path_factory) -> dict[str, tuple[AsymmetricSparseEncoder, Path, Bundle]]:
    """Encoder, folder and manifest of a bundle, by the kind of tokenizer."""
    made = {}
    for kind in ("bert", "roberta"):
        folder = tmp_path_factory.mktemp(kind)
        encoder = make_encoder(kind, tiny_tokenizer_dir, folder)
        encoder.save(folder / kind)
        made[kind] = encoder, folder / "bundle", write_bundle(encoder, folder / "bundle", find_saved(folder / kind))
    return made


def python_vectors(folder: Path, texts: list[str], batch_size: int = 4) -> dict:
    command = [sys.executable, "-c", PYTHON, str(batch_size)]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment["PYTHONDONTWRITEBYTECODE"] = "1"  # another test looks what is in the folder
    done = subprocess.run(
        command, cwd=folder, env=environment, input=json.dumps(texts), capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def node_vectors(folder: Path, texts: list[str], batch_size: int = 4) -> dict:
    (folder / "run.mjs").write_text(NODE)
    try:
        command = ["node", "run.mjs", str(batch_size)]
        done = subprocess.run(command, cwd=folder, input=json.dumps(texts), capture_output=True, text=True, timeout=300)
    finally:
        (folder / "run.mjs").unlink()
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture
def node_modules() -> Path:
    """The folder of the packages of npm that the client in JavaScript needs."""
    places = [
        Path(place)
        for name in ("SPLADE_LIT_NODE_MODULES", "NODE_PATH")
        for place in os.environ.get(name, "").split(":")
    ]
    found = next((place for place in places if all((place / name).is_dir() for name in bundle.NPM_PACKAGES)), None)
    if found is None or shutil.which("node") is None:
        pytest.skip("no Node.js, or no onnxruntime-node and tokenizers in SPLADE_LIT_NODE_MODULES; see CONTRIBUTING.md")
    return found


def dense(rows: list, vocab_size: int) -> np.ndarray:
    matrix = np.zeros((len(rows), vocab_size), np.float32)
    for row, (dims, weights) in enumerate(rows):
        assert dims == sorted(set(dims))
        matrix[row, dims] = weights
    return matrix


def terms(encoder: AsymmetricSparseEncoder, query: str) -> dict[str, float]:
    """What engines get: positive weights, and other names of tokens that they refuse."""
    pairs = encoder.decode(encoder.encode_query(query))
    return {escape(token): weight for token, weight in pairs if weight > 0}


def assert_vectors(found: dict, encoder: AsymmetricSparseEncoder, texts: list[str]) -> None:
    expected = encoder.encode_query(texts, convert_to_csr=True)
    np.testing.assert_array_equal(dense(found["query"], encoder.vocab_size), expected.toarray())
    assert found["terms"] == terms(encoder, texts[0])
    documents = encoder.encode_document(texts, convert_to_csr=True).toarray()
    np.testing.assert_allclose(dense(found["document"], encoder.vocab_size), documents, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_the_python_client_gives_the_vectors_of_pytorch(bundles, kind):
    encoder, folder, _ = bundles[kind]
    for batch_size in (1, 4, 100):
        assert_vectors(python_vectors(folder, TEXTS, batch_size), encoder, TEXTS)


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_the_javascript_client_gives_the_vectors_of_pytorch(bundles, node_modules, kind, tmp_path):
    encoder, folder, _ = bundles[kind]
    shutil.copytree(folder, tmp_path / "bundle")
    (tmp_path / "node_modules").symlink_to(node_modules)
    for batch_size in (1, 4, 100):
        assert_vectors(node_vectors(tmp_path / "bundle", TEXTS, batch_size), encoder, TEXTS)
    installed = {
        name: json.loads((node_modules / name / "package.json").read_text())["version"] for name in bundle.NPM_PACKAGES
    }
    assert installed == bundle.NPM_PACKAGES


@pytest.mark.parametrize("limits", [Pruning(2, 7), Pruning(None, None, 1.1), Pruning(None, None, 0.0, 0.6), Pruning()])
def test_limits_are_those_of_the_model(bundles, tmp_path, limits):
    """Somebody may change them in bundle.json."""
    encoder, folder, _ = bundles["bert"]
    shutil.copytree(folder, tmp_path / "copy")
    settings = json.loads((folder / "bundle.json").read_text()) | asdict(limits)
    (tmp_path / "copy" / "bundle.json").write_text(json.dumps(settings))
    parts = encoder.query, encoder.document, encoder.tokenizer, 9, 30, encoder.prompts
    changed = AsymmetricSparseEncoder(*parts, pruning=limits)
    client = bundle.load_client(tmp_path / "copy" / "client.py").Client(tmp_path / "copy")
    found = {"query": client.encode_query(TEXTS), "document": client.encode_document(TEXTS)}
    vectors = {side: [(dims.tolist(), weights.tolist()) for dims, weights in rows] for side, rows in found.items()}
    assert_vectors(vectors | {"terms": client.terms(*found["query"][0])}, changed, TEXTS)
    with pytest.raises(TypeError, match="give a list of texts"):
        client.encode_query("one text")


def test_what_is_in_it(bundles):
    encoder, folder, made = bundles["bert"]
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    texts = {"README.md", "package.json", "requirements.txt", "client.py", "client.mjs"}
    assert files == {
        MODEL,
        "idf.json",
        "tokenizer.json",
        "bundle.json",
        *texts,
        *(f"engines/{one}" for one in MAPPINGS),
    }
    assert files == {*made.files, "bundle.json"}
    for name, file in made.files.items():
        content = (folder / name).read_bytes()
        assert (len(content), hashlib.sha256(content).hexdigest()) == (file.bytes, file.sha256)
    written = json.loads((folder / "bundle.json").read_text())
    assert written == asdict(made)
    assert {name: written[name] for name in asdict(LIMITS["bert"])} == asdict(LIMITS["bert"])
    layout = find_saved(folder.parent / "bert")
    assert (written["name"], written["fingerprint"]) == ("bert", document_side_fingerprint(layout))
    idf = json.loads((folder / "idf.json").read_text())
    weights = encoder.idf_weights.tolist()
    assert idf == {token: weights[id] for token, id in encoder.tokenizer.get_vocab().items() if weights[id]}
    assert json.loads((folder / "package.json").read_text())["dependencies"] == bundle.NPM_PACKAGES
    assert (folder / "client.py").stat().st_mode & 0o777 == 0o644


def test_the_readme_runs(bundles, tmp_path):
    """The block of Python as it stands, in a copy of the folder; installing needs a network."""
    encoder, folder, _ = bundles["roberta"]
    text = (folder / "README.md").read_text()
    python, node = re.findall(r"```bash\n(.*?)```", text, re.DOTALL)
    assert [len(block.splitlines()) for block in (python, node)] == [4, 4]
    block = python.replace("pip install -r requirements.txt", f"export PATH={Path(sys.executable).parent}:$PATH")
    done = subprocess.run(["bash", "-e", "-c", block], cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    query = re.search(r'encode_query\(\["(.*?)"\]', python)[1]
    assert done.stdout.splitlines()[0] == str(terms(encoder, query))
    assert "Kept of a document: weights from 30% of the largest." in text
    assert '"who is "' in text


def test_the_command_with_8_bit_weights(bundles, tmp_path, monkeypatch, caplog):
    encoder, folder, _ = bundles["bert"]
    monkeypatch.setattr(onnx, "_write_graph", lambda _, path, values: shutil.copy(folder / MODEL, path))  # takes long
    shutil.copytree(folder.parent / "bert", tmp_path / "my_run" / "model")
    lifted = [f"--{name.replace('_', '-')}=0" for name in asdict(Pruning())]
    arguments = ["bundle", tmp_path / "my_run" / "model", "--output", tmp_path / "bundle", "--int8", *lifted]
    outcome = call(export.main, *arguments)
    assert outcome.code == 0, outcome.err
    assert "1 token has a query weight below 0, which engines do not take by name" in caplog.text
    made = json.loads((tmp_path / "bundle" / "bundle.json").read_text())
    assert outcome.out.startswith(f"bundle: {tmp_path / 'bundle'}  files {len(made['files']) + 1}  ")
    assert (made["name"], made["model"]) == ("my_run", INT8_MODEL)
    assert MODEL not in made["files"]
    assert {name: made[name] for name in asdict(Pruning())} == asdict(Pruning())
    found = python_vectors(tmp_path / "bundle", TEXTS)
    whole = AsymmetricSparseEncoder(encoder.query, encoder.document, encoder.tokenizer, 9, 30, encoder.prompts)
    expected = whole.encode_document(TEXTS, convert_to_csr=True).toarray()
    difference = np.linalg.norm(dense(found["document"], whole.vocab_size) - expected) / np.linalg.norm(expected)
    assert 0 < difference < 0.1


def test_what_cannot_be_written_is_told_before_anything_is_loaded(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    outcome = call(export.main, "bundle", tmp_path / "no model", "--output", tmp_path)
    assert (outcome.code, "is in use and holds no bundle" in outcome.errors[0]) == (2, True)
    outcome = call(export.main, "bundle", tmp_path / "no model")
    assert (outcome.code, "--output" in outcome.errors[0]) == (2, True)


def copy_export(folder: Path, new: Path) -> None:
    for name in (MODEL, "idf.json", "tokenizer.json"):
        shutil.copyfile(folder / name, new / name)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_bundle_is_replaced_and_nothing_else_is(bundles, tmp_path, monkeypatch):
    encoder, folder, _ = bundles["bert"]
    layout = find_saved(folder.parent / "bert")
    shutil.copytree(folder, tmp_path / "bundle")
    (tmp_path / "bundle" / "old.txt").write_text("of before")
    files = contents(tmp_path / "bundle")
    monkeypatch.setattr(bundle, "export_onnx", lambda encoder, new, **_: copy_export(folder, new))  # takes long
    tokenizer = copy.deepcopy(encoder.tokenizer)
    tokenizer.split_special_tokens = True  # which no tokenizer.json tells
    other = AsymmetricSparseEncoder(encoder.query, encoder.document, tokenizer, 9, 30, encoder.prompts)
    with pytest.raises(UserError, match=r"client gives other vectors of documents than the model .*nothing is written"):
        write_bundle(other, tmp_path / "bundle", layout)
    assert contents(tmp_path / "bundle") == files
    write_bundle(encoder, tmp_path / "bundle", layout)
    assert {path.name for path in tmp_path.iterdir()} == {"bundle"}
    assert not (tmp_path / "bundle" / "old.txt").exists()
    with pytest.raises(UserError, match="is in use and holds no bundle"):
        write_bundle(encoder, tmp_path, layout)


def test_mappings_are_what_engines_take(bundles):
    """Each with the example of the README: OpenSearch's and Elasticsearch's bodies have tests of their own."""
    encoder, folder, _ = bundles["bert"]
    read = {name: (folder / "engines" / name).read_text() for name in MAPPINGS}
    text, query = "The song was written by a film composer.", "who wrote the song"
    document = encoder.encode_document(text, convert_to_csr=True)
    asked = encoder.encode_query(query, convert_to_csr=True)
    asked.data[asked.data < 0] = 0
    score = float((document @ asked.T).toarray()[0, 0])
    for name in ("opensearch.json", "elasticsearch.json"):
        index, source, search = json.loads(read[name]).values()
        assert index["mappings"]["properties"]["vector"]["type"] in ("rank_features", "sparse_vector")
        found = dict(zip(source["vector"], source["vector"].values(), strict=True))
        names = [escape(token) for token in encoder.tokenizer.convert_ids_to_tokens(document.indices.tolist())]
        assert found == pytest.approx(dict(zip(names, document.data.tolist(), strict=True)), rel=1e-4)
        assert search["query"]
    assert f"sparsevec({encoder.vocab_size})" in read["pgvector.sql"]
    dims, size = re.search(r"\{(.*?)\}/(\d+)", read["pgvector.sql"]).groups()
    assert int(size) == encoder.vocab_size
    assert [int(pair.split(":")[0]) - 1 for pair in dims.split(",")] == document.indices.tolist()
    qdrant = pytest.importorskip("qdrant_client")
    create, points, ask = json.loads(read["qdrant.json"]).values()
    client = qdrant.QdrantClient(":memory:")
    made = qdrant.models.CreateCollection.model_validate(create)
    client.create_collection("documents", vectors_config={}, sparse_vectors_config=made.sparse_vectors)
    client.upsert("documents", qdrant.models.PointsList.model_validate(points).points)
    request = qdrant.models.QueryRequest.model_validate(ask)
    (hit,) = client.query_points("documents", request.query, using=request.using, limit=request.limit).points
    assert hit.score == pytest.approx(score, rel=1e-4)


@pytest.mark.slow
def test_the_statements_for_pgvector_run(bundles):
    psycopg = pytest.importorskip("psycopg")
    from servers import postgres

    encoder, folder, _ = bundles["roberta"]
    text, query = "The song was written by a film composer.", "who wrote the song"
    expected = encoder.similarity(encoder.encode_query(query), encoder.encode_document(text))
    assert (encoder.encode_query(query).to_dense() >= 0).all()
    statements = (folder / "engines" / "pgvector.sql").read_text()
    with postgres() as url, psycopg.connect(url, autocommit=True) as connection:
        connection.execute(statements)
        connection.execute(f"INSERT INTO documents VALUES ('2', 'of no shared term', '{{}}/{encoder.vocab_size}')")
        ((id, found, score),) = connection.execute("SELECT" + statements.rpartition(";\nSELECT")[2]).fetchall()
    assert (id, found) == ("1", text)
    assert score == pytest.approx(float(expected), rel=1e-4)
