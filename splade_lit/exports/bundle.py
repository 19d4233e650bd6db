"""One folder to deploy: ONNX document encoder, tokenizer, query table, clients without PyTorch, mappings of engines.

    bundle.json       settings, versions, fingerprint of the model, size and checksum of every other file
    model.onnx        the document encoder, pooling inside; model_int8.onnx in its place if so asked
    tokenizer.json    of both sides
    idf.json          token to query weight
    client.py         encodes with numpy, onnxruntime and tokenizers (requirements.txt)
    client.mjs        the same in Node.js (package.json)
    engines/          requests that make an index, add a document and search, for each engine
    README.md         how to run both

The folder is written whole or not at all, once its own Python client has given PyTorch's vectors.
"""

import hashlib
import json
import logging
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from scipy.sparse import csr_array

import splade_lit
from splade_lit.core.errors import UserError
from splade_lit.core.files import whole_folder
from splade_lit.encoder.layout import SavedLayout, document_side_fingerprint
from splade_lit.encoder.model import AsymmetricSparseEncoder
from splade_lit.encoder.pruning import Pruning
from splade_lit.encoder.rows import keep_largest, prune_documents
from splade_lit.engines.features import FeatureNames
from splade_lit.engines.onnx import INT8_MODEL, MODEL, OnnxDocumentEncoder
from splade_lit.exports.mappings import MAPPINGS, Example, mapping_files
from splade_lit.exports.onnx import TOLERANCE, export_onnx

BUNDLE_JSON = "bundle.json"
NPM_PACKAGES = {"onnxruntime-node": "1.30.0", "tokenizers": "0.23.2"}
"""Packages of the JavaScript client, in the releases that it is tested with."""

_FORMAT = 1
_KEPT = (BUNDLE_JSON, "idf.json", "tokenizer.json", "client.py", "client.mjs")
_TEMPLATES = Path(__file__).with_name("templates")
_QUERY, _DOCUMENT = "who wrote the song", "The song was written by a film composer."
# Encoded by client and model before a bundle is kept: scripts, accents, emoji, white space, nothing, and too much.
_TEXTS = (
    "The capital of France is Paris, isn't it?",
    "",
    "Émile Zola visited São Paulo; naïve façade, Ærø, \u017ftraße ﬁn, İstanbul, ΑΣ",
    "巴黎是法国的首都。 東京タワー 서울",
    "👩\u200d👩\u200d👧 🇫🇷 \U0001f600 \u200b[MASK] <s> a\u0301 e\u0300\u0301 Ⅷ ½",
    " \t\r\n  spaces\u00a0and\u3000tabs ",
    "one " * 3000,
    " ".join(f"{number} {number * number}" for number in range(10, 3000)),
)

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class BundleFile:
    """Size and SHA-256 of a file."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class Bundle:
    """What bundle.json says.

    Attributes:
        format: of the bundle; a client reads its own.
        name: of the model, a Hub id or the name of a folder.
        fingerprint: of all that whole document vectors depend on, as `document_side_fingerprint` gives it; vectors that
            `python -m splade_lit.encode` has written, and indexes, tell theirs by the same.
        versions: of the packages that made and checked the bundle.
        model: the file of the graph.
        vocab_size: dims of a vector; a dim is the id of a token.
        max_query_tokens: queries are cut after this many tokens; no special tokens are added.
        max_document_tokens: documents are cut to this many, special tokens included.
        truncation: the side that is cut off, `right` or `left`.
        padding_id: token that fills a batch up.
        pooling: of tokens, inside the graph.
        activation: inside the graph.
        prompts: texts put before every `query` and `document`.
        features: the names of tokens that some engine refuses as names, such as a full stop.
        max_query_active_dims: see `Pruning`, as for the three that follow.
        files: name to size and checksum.
    """

    format: int
    name: str
    fingerprint: str
    versions: dict[str, str]
    model: str
    vocab_size: int
    max_query_tokens: int
    max_document_tokens: int
    truncation: str
    padding_id: int
    pooling: str
    activation: str
    prompts: dict[str, str]
    features: dict[str, str]
    max_query_active_dims: int | None
    max_document_active_dims: int | None
    min_document_weight: float
    min_document_weight_share: float
    files: dict[str, BundleFile]


def check_bundle_folder(folder: Path) -> None:
    """Raise a UserError if a folder holds something else than a bundle."""
    taken = folder.exists() and not (folder.is_dir() and not any(folder.iterdir()))
    if taken and not (folder / BUNDLE_JSON).is_file():
        raise UserError(f"{folder} is in use and holds no bundle; give a new or an empty folder.")


def write_bundle(encoder: AsymmetricSparseEncoder, folder: Path, layout: SavedLayout, *, int8: bool = False) -> Bundle:
    """Write a bundle; one that is there already is replaced.

    Args:
        encoder: the encoder, on the CPU, with the limits that the bundle gets.
        folder: a new or empty folder, or one with a bundle.
        layout: the files of the encoder, which the bundle's name and fingerprint are made of.
        int8: the graph with 8-bit weights, in place of the whole one.

    Raises:
        UserError: the folder holds something else or cannot be written, packages are missing, the model cannot be
            exported, or the vectors of graph or client are not those of the model; what was there is untouched.
    """
    check_bundle_folder(folder)
    try:
        with whole_folder(folder) as new:
            bundle = _write(encoder, new, layout, int8)
    except OSError as error:
        raise UserError(
            f"The bundle cannot be written to {folder} ({error.strerror}); free space or choose another folder."
        ) from error
    if negative := int((encoder.idf_weights < 0).sum()):
        tokens = "1 token has a query weight" if negative == 1 else f"{negative:,} tokens have query weights"
        logger.warning("%s below 0, which engines do not take by name; `terms` of the clients leaves them out.", tokens)
    return bundle


def _write(encoder: AsymmetricSparseEncoder, folder: Path, layout: SavedLayout, int8: bool) -> Bundle:
    export_onnx(encoder, folder, int8=int8)
    expected = OnnxDocumentEncoder(folder, INT8_MODEL) if int8 else None
    engine = encoder.tokenizer.backend_tokenizer
    names = FeatureNames.of_tokens([engine.id_to_token(dim) for dim in range(encoder.vocab_size)])
    bundle = Bundle(
        format=_FORMAT,
        name=_model_name(layout.source),
        fingerprint=document_side_fingerprint(layout),
        versions={"splade_lit": splade_lit.__version__}
        | {package: version(package) for package in ("torch", "onnxruntime", "tokenizers", "numpy")},
        model=INT8_MODEL if int8 else MODEL,
        vocab_size=encoder.vocab_size,
        max_query_tokens=encoder.max_query_tokens,
        max_document_tokens=encoder.max_document_tokens,
        truncation=encoder.tokenizer.truncation_side,
        padding_id=encoder.document.padding_id,
        pooling=encoder.document.pooling,
        activation=encoder.document.activation,
        prompts=dict(encoder.prompts),
        features=names.renamed,
        **asdict(encoder.pruning),
        files={},
    )
    for path in _TEMPLATES.glob("client.*"):
        shutil.copyfile(path, folder / path.name)
    _write_json(folder / BUNDLE_JSON, asdict(bundle))
    client = load_client(folder / "client.py").Client(folder)
    _check_client(client, encoder, expected)
    _write_mappings(client, encoder.vocab_size, names, folder / "engines")
    for path in folder.iterdir():  # what bundle.json says instead, and what only transformers reads of a tokenizer
        if path.is_file() and path.name not in _KEPT and not path.name.startswith(bundle.model):
            path.unlink()
    _write_texts(bundle, encoder.pruning.documents_keep, folder)
    written = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != BUNDLE_JSON]
    files = {path.relative_to(folder).as_posix(): _described(path) for path in written}
    bundle = replace(bundle, files=files)
    _write_json(folder / BUNDLE_JSON, asdict(bundle))
    return bundle


def _model_name(source: str) -> str:
    """A Hub id, or the name of a folder; that of the run for the folder `model` of a run.

    >>> _model_name("me/my-model"), _model_name("/runs/quickstart/model")
    ('me/my-model', 'quickstart')
    """
    path = Path(source)
    if not path.exists() and not path.is_absolute():
        return source
    path = path.resolve()
    return path.parent.name if path.name == "model" else path.name


def _write_texts(bundle: Bundle, documents_keep: str, folder: Path) -> None:
    """Write what people read, and what their package managers do."""
    environment = Environment(
        loader=PackageLoader("splade_lit.exports"), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    text = environment.get_template("bundle.md.jinja").render(
        bundle=bundle,
        int8=bundle.model == INT8_MODEL,
        documents_keep=documents_keep,
        sizes={path.name: path.stat().st_size for path in folder.iterdir()},
        engines={f"engines/{name}": what for name, what in MAPPINGS.items()},
        query=_QUERY,
        document=_DOCUMENT,
    )
    (folder / "README.md").write_text(text + "\n", encoding="utf-8")
    pinned = [f"{package}=={bundle.versions[package]}\n" for package in ("numpy", "onnxruntime", "tokenizers")]
    (folder / "requirements.txt").write_text("".join(pinned), encoding="utf-8")
    package = {
        "name": "sparse-encoder-bundle",
        "private": True,
        "type": "module",
        "main": "client.mjs",
        "engines": {"node": ">=20.11"},
        "dependencies": NPM_PACKAGES,
    }
    _write_json(folder / "package.json", package)


def _write_mappings(client: Any, vocab_size: int, names: FeatureNames, folder: Path) -> None:
    """Write what engines need, with the positive weights of examples."""
    examples = []
    for encode, text in ((client.encode_document, _DOCUMENT), (client.encode_query, _QUERY)):
        ((dims, weights),) = encode([text])
        examples.append(Example(text, dims[weights > 0], weights[weights > 0]))
    folder.mkdir()
    for name, content in mapping_files(vocab_size, names, *examples).items():
        (folder / name).write_text(content, encoding="utf-8")


def _check_client(client: Any, encoder: AsymmetricSparseEncoder, graph: OnnxDocumentEncoder | None) -> None:
    """Compare the vectors of the Python client with the model's, or with those of a graph in onnxruntime.

    Whole vectors are compared first: the last digit of a weight may decide whether a limit lets it stay.
    """
    limits, vocab_size = encoder.pruning, encoder.vocab_size
    client.settings |= asdict(Pruning())
    whole, queries = (_matrix(encode(_TEXTS), vocab_size) for encode in (client.encode_document, client.encode_query))
    tokens = encoder.tokenisation.documents(_TEXTS)
    try:
        encoder.pruning = Pruning()
        expected_queries = encoder.encode_query(_TEXTS, convert_to_csr=True)
        if graph is None:
            expected = encoder.encode_document_tokens(tokens)
        else:
            graph.pruning = Pruning()
            expected = graph.encode_document_tokens(tokens)
    finally:
        encoder.pruning = limits
    client.settings |= asdict(limits)
    kept, kept_queries = (
        _matrix(encode(_TEXTS), vocab_size) for encode in (client.encode_document, client.encode_query)
    )
    for what, found, wanted, tolerance in (
        ("documents", whole, expected, TOLERANCE),
        ("documents within their limits", kept, prune_documents(whole, limits), TOLERANCE),
        ("queries", queries, expected_queries, 0.0),
        ("queries within their limit", kept_queries, keep_largest(queries, limits.max_query_active_dims), 0.0),
    ):
        if not np.allclose(found.toarray(), wanted.toarray(), rtol=tolerance, atol=tolerance):
            raise UserError(
                f"The bundle's client gives other vectors of {what} than the model (by "
                f"{np.abs(found - wanted).max():.2g}), as where a tokenizer does more than its tokenizer.json says, so "
                "nothing is written; python -m splade_lit.export onnx writes the graph alone."
            )


def load_client(path: Path) -> ModuleType:
    """The module of a bundle's client.py, whose `Client` encodes."""
    module = ModuleType("_bundle_client")
    module.__file__ = str(path)
    exec(
        compile(path.read_text(encoding="utf-8"), path.name, "exec"), module.__dict__
    )  # an import would leave bytecode
    return module


def _matrix(vectors: Sequence[tuple[np.ndarray, np.ndarray]], vocab_size: int) -> csr_array:
    dims, weights = zip(*vectors, strict=True)
    pointers = np.cumsum([0, *map(len, dims)])
    return csr_array((np.concatenate(weights), np.concatenate(dims), pointers), shape=(len(vectors), vocab_size))


def _described(path: Path) -> BundleFile:
    with path.open("rb") as file:
        return BundleFile(path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest())


def _write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
