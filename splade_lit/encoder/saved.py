"""Reading a saved model: a folder or a Hub repository in sentence-transformers' form, whatever release wrote it.

Read are the form that `splade_lit.encoder.saved_writer` describes, the one that newer releases write, repositories
whose query weights are an `idf.json` (OpenSearch's), and plain masked-LM repositories (their query weights are all one:
SPLADE-doc). Nothing is unpickled but tensors.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from splade_lit.core.errors import UserError, first_line
from splade_lit.core.sources import resolve_source
from splade_lit.encoder.document import MlmDocumentEncoder
from splade_lit.encoder.masked_lm import load_masked_lm, load_tokenizer, quiet_transformers
from splade_lit.encoder.parts import EncoderParts
from splade_lit.encoder.query import IdfQueryEncoder, idf_from_json

_QUERY_CLASSES = ("SparseStaticEmbedding", "IDF")
_DOCUMENT_CLASSES = ("MLMTransformer", "Transformer")
# Files of a Hub repository; weights in torch's own form are fetched only where there are no others.
_DOWNLOADED = ("*.json", "*.safetensors", "*.txt", "*.model", "README.md")
_DOWNLOADED_ELSE = ("pytorch_model*.bin", "*/pytorch_model*.bin")


@dataclass(frozen=True)
class _Layout:
    """Where the files of a saved model lie and what they say, whatever its form."""

    document_folder: Path
    query_folder: Path | None = None
    idf_json: Path | None = None
    frozen: bool = False
    pooling: str = "max"
    activation: str = "relu"
    max_query_tokens: int | None = None
    max_document_tokens: int | None = None
    prompts: dict[str, str] = field(default_factory=dict)
    max_active_dims: int | None = None


def read_saved(
    source: str | Path, *, revision: str | None = None, packed: bool = True, trust_remote_code: bool = False
) -> EncoderParts:
    """Read the parts of an encoder from a folder or from the Hub.

    Args:
        source: a folder, a Hub id, or `package:NAME/FOLDER`.
        revision: branch, tag or commit on the Hub.
        packed: run documents without padding where the model allows it.
        trust_remote_code: run code that comes with the model.

    Raises:
        UserError: there is no such model, it is not of a form read here, or its files are damaged.
    """
    folder = _local_folder(str(source), revision)
    try:
        layout = _read_layout(folder, str(source))
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise UserError(
            f"The JSON files of {source} are not laid out as sentence-transformers' are ({error}); fetch it again."
        ) from error
    tokenizer = load_tokenizer(str(layout.document_folder), trust_remote_code=trust_remote_code)
    _check_query_tokenizer(layout, tokenizer, str(source))
    model, grafted = load_masked_lm(str(layout.document_folder), tokenizer, trust_remote_code=trust_remote_code)
    if grafted:
        raise UserError(
            f"{source} has no masked-LM head, so it is a base model to train from and not a SPLADE encoder."
        )
    document = MlmDocumentEncoder(
        model, tokenizer.pad_token_id or 0, _pooling(layout.pooling), _activation(layout.activation), packed
    )
    return EncoderParts(
        IdfQueryEncoder(_query_weights(layout, tokenizer, document.vocab_size), layout.frozen),
        document,
        tokenizer,
        layout.max_query_tokens,
        layout.max_document_tokens,
        layout.prompts,
        layout.max_active_dims,
    )


def _local_folder(source: str, revision: str | None) -> Path:
    path = Path(resolve_source(source)).expanduser()
    if path.is_dir():
        return path
    if source.startswith((".", "/", "~")) or source.count("/") != 1:
        raise UserError(f"{source} is not a folder; give the folder of a saved model or a Hub id such as owner/name.")
    try:
        folder = Path(snapshot_download(source, revision=revision, allow_patterns=list(_DOWNLOADED)))
        if not any(folder.rglob("model*.safetensors")):
            snapshot_download(source, revision=revision, allow_patterns=list(_DOWNLOADED_ELSE))
        return folder
    except LocalEntryNotFoundError:
        raise UserError(
            f"{source} is not a folder, and the Hub cannot be reached; check the name and the network."
        ) from None
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise UserError(f"{source} is not a folder, and the Hub does not give it: {first_line(error)}.") from None


def _read_layout(folder: Path, source: str) -> _Layout:
    if not (folder / "modules.json").is_file():
        if not (folder / "config.json").is_file():
            raise UserError(f"{source} is not a model folder: it has neither modules.json nor config.json.")
        idf_json = folder / "idf.json"
        return _Layout(folder, idf_json=idf_json if idf_json.is_file() else None)
    modules = _read_json(folder / "modules.json")
    routers = [module for module in modules if module["type"].endswith("Router")]
    if len(modules) != 1 or not routers:
        kinds = ", ".join(module["type"].rpartition(".")[2] for module in modules) or "no modules"
        raise UserError(
            f"{source} is made of {kinds}; only asymmetric models (a Router of query and document) are read."
        )
    root = folder / routers[0]["path"]
    names = ("router_config.json", "config.json")
    router = _read_json(next((root / name for name in names if (root / name).is_file()), root / names[0]))
    structure, types = router["structure"], router["types"]
    query = _route(source, root, structure.get("query", []), types, [_QUERY_CLASSES])
    document = _route(source, root, structure.get("document", []), types, [_DOCUMENT_CLASSES, ("SpladePooling",)])
    query_config = _read_json(query[0] / "config.json")
    pooling = _read_json(document[1] / "config.json")
    model_config = _read_json(folder / "config_sentence_transformers.json", missing={})
    return _Layout(
        document_folder=document[0],
        query_folder=query[0],
        idf_json=_idf_json(folder, query[0], query_config.get("path")),
        frozen=bool(query_config.get("frozen", False)),
        pooling=pooling.get("pooling_strategy", "max"),
        activation=pooling.get("activation_function", "relu"),
        max_query_tokens=_token_limit(query[0]),
        max_document_tokens=_document_limit(document[0]),
        prompts={name: text or "" for name, text in (model_config.get("prompts") or {}).items()},
        max_active_dims=_limit(model_config, "max_active_dims"),
    )


def _route(
    source: str, root: Path, names: Sequence[str], types: dict[str, str], expected: Sequence[tuple[str, ...]]
) -> list[Path]:
    found = [types[name].rpartition(".")[2] for name in names]
    if len(found) != len(expected) or any(kind not in kinds for kind, kinds in zip(found, expected, strict=True)):
        wanted = " and ".join(kinds[0] for kinds in expected)
        raise UserError(f"{source} has a route of {', '.join(found) or 'nothing'}; only {wanted} is read.")
    return [root / name if (root / name).is_dir() else root for name in names]


def _idf_json(folder: Path, query_folder: Path, path: str | None) -> Path | None:
    if path is None or not path.endswith(".json"):
        return None
    candidates = [query_folder / Path(path).name, folder / Path(path).name, folder / path]
    return next((candidate for candidate in candidates if candidate.is_file()), candidates[1])


def _document_limit(folder: Path) -> int | None:
    config = _read_json(folder / "sentence_bert_config.json", missing={})
    return _limit(config, "document_length") or _limit(config, "max_seq_length") or _token_limit(folder)


def _token_limit(folder: Path) -> int | None:
    limit = _limit(_read_json(folder / "tokenizer_config.json", missing={}), "model_max_length")
    return limit if limit is not None and limit < 1_000_000 else None  # transformers' own "no limit" is larger


def _limit(config: dict[str, Any], name: str) -> int | None:
    value = config.get(name)
    if value is not None and not (isinstance(value, int | float) and value >= 1):
        raise UserError(f"{name} is {value!r} in the model's JSON files; it must be a number of at least 1.")
    return None if value is None else int(value)


def _check_query_tokenizer(layout: _Layout, tokenizer: PreTrainedTokenizerBase, source: str) -> None:
    """Check that queries are cut into the same tokens as documents, whose tokenizer is used for both here."""
    folder = layout.query_folder
    if folder is None or not any((folder / name).is_file() for name in ("tokenizer.json", "vocab.txt", "vocab.json")):
        return
    if _tokenizer_files(folder) == _tokenizer_files(layout.document_folder):
        return  # known without the time that loading takes
    try:
        with quiet_transformers():
            query_tokenizer = AutoTokenizer.from_pretrained(folder)
        documents, queries = _tokenisation(tokenizer), _tokenisation(query_tokenizer)
    except Exception as error:  # tokenizers raises bare exceptions for files that it cannot read
        raise UserError(f"The tokenizer in {folder} is damaged or no fast one; fetch the model again.") from error
    if differing := [name for name in documents if documents[name] != queries[name]]:
        raise UserError(
            f"{source} has another tokenizer for queries than for documents (they differ in {', '.join(differing)}); "
            "only models with one tokenizer for both are read."
        )


def _tokenisation(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """What turns a query into token ids; special tokens are not added to queries."""
    parts = json.loads(tokenizer.backend_tokenizer.to_str())
    named = {name: parts[name] for name in ("normalizer", "pre_tokenizer", "model")}
    return named | {"vocabulary": tokenizer.get_vocab()}


def _tokenizer_files(folder: Path) -> tuple[bytes, dict[str, Any]]:
    path = folder / "tokenizer.json"
    config = _read_json(folder / "tokenizer_config.json", missing={})
    return path.read_bytes() if path.is_file() else b"", config | {"model_max_length": None}


def _query_weights(layout: _Layout, tokenizer: PreTrainedTokenizerBase, vocab_size: int) -> Tensor:
    if layout.idf_json is not None:
        return idf_from_json(layout.idf_json, tokenizer, vocab_size)
    if layout.query_folder is None:
        return torch.ones(vocab_size)
    weights = _read_weights(layout.query_folder)
    if weights.ndim != 1 or len(weights) > vocab_size:
        raise UserError(
            f"The query weights in {layout.query_folder} have the shape {list(weights.shape)}, but the vocabulary has "
            f"{vocab_size} entries; fetch the model again."
        )
    if not torch.isfinite(weights).all():
        raise UserError(
            f"{layout.query_folder} holds query weights that are not finite; the model diverged in training."
        )
    # Dims beyond the table belong to padding of the vocabulary: no query reaches them.
    return torch.cat([weights, weights.new_zeros(vocab_size - len(weights))])


def _read_weights(folder: Path) -> Tensor:
    safe, pickled = folder / "model.safetensors", folder / "pytorch_model.bin"
    try:
        if safe.is_file():
            return load_file(safe)["weight"].float()
        if pickled.is_file():
            return torch.load(pickled, map_location="cpu", weights_only=True)["weight"].float()
    except (SafetensorError, KeyError, TypeError, AttributeError, RuntimeError, ValueError, EOFError, UnpicklingError):
        raise UserError(f"The query weights in {folder} are damaged; fetch the model again.") from None
    raise UserError(f"{folder} has no weights (model.safetensors); fetch the model again.")


def _read_json(path: Path, missing: Any = None) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if missing is not None:
            return missing
        raise UserError(f"{path} is missing, so {path.parent} is not a whole model; fetch it again.") from None
    except ValueError:
        raise UserError(f"{path} is not JSON; fetch the model again.") from None


def _pooling(name: str) -> Any:
    if name not in ("max", "sum"):
        raise UserError(f"pooling_strategy {name!r} is not known; max and sum are.")
    return name


def _activation(name: str) -> Any:
    if name not in ("relu", "log1p_relu"):
        raise UserError(f"activation_function {name!r} is not known; relu and log1p_relu are.")
    return name
