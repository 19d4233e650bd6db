"""The on-disk form of a model: that of sentence-transformers, so that its `SparseEncoder` opens it.

Written is the form of releases 5.0 to 5.3, which all releases from 5.0 to 6.2 read:

    modules.json                       the one module: a Router
    config_sentence_transformers.json  similarity, prompts, max_active_dims
    router_config.json                 which folders make the query route and the document route
    query_0_SparseStaticEmbedding/     weights [vocab] and the tokenizer
    document_0_MLMTransformer/         the transformers model and the tokenizer
    document_1_SpladePooling/          pooling strategy and activation

Read are this form, the one that newer releases write, repositories whose query weights are an `idf.json`, and plain
masked-LM repositories (their query weights are all one: SPLADE-doc).
"""

import json
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from splade_lit.encoder.base import load_masked_lm, load_tokenizer, quiet_transformers
from splade_lit.encoder.document import MlmDocumentEncoder
from splade_lit.encoder.model import AsymmetricSparseEncoder
from splade_lit.encoder.query import IdfQueryEncoder, idf_from_json
from splade_lit.errors import UserError
from splade_lit.sources import resolve_source

_CLASSES = "sentence_transformers.sparse_encoder.models"
_QUERY = "query_0_SparseStaticEmbedding"
_DOCUMENT = "document_0_MLMTransformer"
_POOLING = "document_1_SpladePooling"
# The newest form that this writer knows how to write for the oldest release that can read it.
_WRITTEN_FOR = "5.0.0"
_QUERY_CLASSES = ("SparseStaticEmbedding", "IDF")
_DOCUMENT_CLASSES = ("MLMTransformer", "Transformer")
_DOWNLOADED = ("*.json", "*.safetensors", "*.txt", "*.model", "*.bin", "README.md")


def save(encoder: AsymmetricSparseEncoder, folder: str | Path) -> None:
    """Write an encoder to a folder, whole or not at all.

    The files go to a temporary folder beside it, which then takes its place. Files of another name that an earlier
    save left there (a model card) stay.

    Args:
        encoder: the encoder.
        folder: a new or empty folder, or one that holds a saved model.

    Raises:
        UserError: the folder holds something else, or cannot be written.
    """
    target = Path(folder)
    if target.exists() and (not target.is_dir() or (any(target.iterdir()) and not (target / "modules.json").exists())):
        raise UserError(f"{target} is in use and holds no saved model; give a new or an empty folder.")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    except OSError as error:
        raise UserError(
            f"The model cannot be saved in {target.parent} ({error.strerror}); choose another folder."
        ) from None
    try:
        _write(encoder, scratch)
        scratch.chmod(0o755)
        _take_place(scratch, target)
    except OSError as error:
        raise UserError(
            f"The model cannot be saved to {target} ({error.strerror or error}); what was there before is untouched."
        ) from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _take_place(scratch: Path, target: Path) -> None:
    if target.exists():
        for kept in target.iterdir():
            if kept.is_file() and not (scratch / kept.name).exists():
                shutil.copy2(kept, scratch / kept.name)
        old = Path(tempfile.mkdtemp(prefix=f".{target.name}-old-", dir=target.parent))
        target.rename(old / target.name)
        scratch.rename(target)
        shutil.rmtree(old, ignore_errors=True)
    else:
        scratch.rename(target)


def _write(encoder: AsymmetricSparseEncoder, folder: Path) -> None:
    for name in (_QUERY, _DOCUMENT, _POOLING):
        (folder / name).mkdir()
    _write_json(
        folder / "modules.json", [{"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Router"}]
    )
    config: dict[str, Any] = {
        "model_type": "SparseEncoder",
        "__version__": {
            "sentence_transformers": _WRITTEN_FOR,
            "transformers": version("transformers"),
            "pytorch": version("torch"),
        },
        "prompts": encoder.prompts,
        "default_prompt_name": None,
        "similarity_fn_name": "dot",
    }
    if encoder.max_active_dims is not None:
        config["max_active_dims"] = encoder.max_active_dims
    _write_json(folder / "config_sentence_transformers.json", config)
    _write_json(
        folder / "router_config.json",
        {
            "types": {
                _QUERY: f"{_CLASSES}.SparseStaticEmbedding.SparseStaticEmbedding",
                _DOCUMENT: f"{_CLASSES}.MLMTransformer.MLMTransformer",
                _POOLING: f"{_CLASSES}.SpladePooling.SpladePooling",
            },
            "structure": {"query": [_QUERY], "document": [_DOCUMENT, _POOLING]},
            "parameters": {"default_route": "document", "allow_empty_key": True},
        },
    )
    _write_json(folder / _QUERY / "config.json", {"frozen": encoder.query.frozen})
    weight = encoder.idf_weights.detach().float().cpu().contiguous()
    save_file({"weight": weight}, folder / _QUERY / "model.safetensors")
    _save_tokenizer(encoder, folder / _QUERY, encoder.max_query_tokens)
    with quiet_transformers(), encoder.document.whole_model() as model:
        model.save_pretrained(folder / _DOCUMENT)
    _save_tokenizer(encoder, folder / _DOCUMENT, encoder.max_document_tokens)
    _write_json(
        folder / _DOCUMENT / "sentence_bert_config.json",
        {"max_seq_length": encoder.max_document_tokens, "do_lower_case": False},
    )
    _write_json(
        folder / _POOLING / "config.json",
        {
            "pooling_strategy": encoder.document.pooling,
            "activation_function": encoder.document.activation,
            "word_embedding_dimension": encoder.vocab_size,
        },
    )


def _save_tokenizer(encoder: AsymmetricSparseEncoder, folder: Path, max_tokens: int) -> None:
    encoder.tokenizer.save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    _write_json(path, json.loads(path.read_text(encoding="utf-8")) | {"model_max_length": max_tokens})


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


@dataclass(frozen=True)
class _Parts:
    """What a saved model is made of, whatever its form."""

    document_folder: Path
    query_folder: Path | None = None
    idf_json: Path | None = None
    frozen: bool = False
    pooling: str = "max"
    activation: str = "relu"
    max_query_tokens: int | None = None
    max_document_tokens: int | None = None
    prompts: dict[str, str] | None = None
    max_active_dims: int | None = None


def load(
    source: str | Path,
    *,
    revision: str | None = None,
    device: str | torch.device | None = None,
    packed: bool = True,
    trust_remote_code: bool = False,
) -> AsymmetricSparseEncoder:
    """Read an encoder from a folder or from the Hub.

    Args:
        source: a folder, a Hub id, or `package:NAME/FOLDER`.
        revision: branch, tag or commit on the Hub.
        device: where to put it; the CPU if not given.
        packed: run documents without padding where the model allows it.
        trust_remote_code: run code that comes with the model.

    Raises:
        UserError: there is no such model, it is not of a form read here, or its files are damaged.
    """
    folder = _local_folder(str(source), revision)
    parts = _read_parts(folder, str(source))
    tokenizer = load_tokenizer(str(parts.document_folder), trust_remote_code=trust_remote_code)
    model, grafted = load_masked_lm(str(parts.document_folder), tokenizer, trust_remote_code=trust_remote_code)
    if grafted:
        raise UserError(
            f"{source} has no masked-LM head, so it is a base model to train from and not a SPLADE encoder."
        )
    document = MlmDocumentEncoder(
        model, tokenizer.pad_token_id or 0, _pooling(parts.pooling), _activation(parts.activation), packed
    )
    weights = _query_weights(parts, document.vocab_size)
    encoder = AsymmetricSparseEncoder(
        IdfQueryEncoder(weights, parts.frozen),
        document,
        tokenizer,
        parts.max_query_tokens,
        parts.max_document_tokens,
        parts.prompts,
        parts.max_active_dims,
    )
    return encoder.to(device or "cpu").eval()


def _local_folder(source: str, revision: str | None) -> Path:
    path = Path(resolve_source(source)).expanduser()
    if path.is_dir():
        return path
    if source.startswith((".", "/", "~")) or source.count("/") != 1:
        raise UserError(f"{source} is not a folder; give the folder of a saved model or a Hub id such as owner/name.")
    try:
        return Path(snapshot_download(source, revision=revision, allow_patterns=list(_DOWNLOADED)))
    except LocalEntryNotFoundError:
        raise UserError(
            f"{source} is not a folder, and the Hub cannot be reached; check the name and the network."
        ) from None
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise UserError(f"{source} is not a folder, and the Hub does not give it: {reason}") from None


def _read_parts(folder: Path, source: str) -> _Parts:
    if not (folder / "modules.json").is_file():
        if not (folder / "config.json").is_file():
            raise UserError(f"{source} is not a model folder: it has neither modules.json nor config.json.")
        idf_json = folder / "idf.json"
        return _Parts(folder, idf_json=idf_json if idf_json.is_file() else None)
    modules = _read_json(folder / "modules.json")
    routers = [module for module in modules if module["type"].endswith("Router")]
    if len(modules) != 1 or not routers:
        kinds = ", ".join(module["type"].rpartition(".")[2] for module in modules)
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
    return _Parts(
        document_folder=document[0],
        query_folder=query[0],
        idf_json=_idf_json(folder, query[0], query_config.get("path")),
        frozen=bool(query_config.get("frozen", False)),
        pooling=pooling.get("pooling_strategy", "max"),
        activation=pooling.get("activation_function", "relu"),
        max_query_tokens=_token_limit(query[0]),
        max_document_tokens=_document_limit(document[0]),
        prompts={name: text or "" for name, text in (model_config.get("prompts") or {}).items()},
        max_active_dims=model_config.get("max_active_dims"),
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
    return config.get("document_length") or config.get("max_seq_length") or _token_limit(folder)


def _token_limit(folder: Path) -> int | None:
    limit = _read_json(folder / "tokenizer_config.json", missing={}).get("model_max_length")
    return int(limit) if limit is not None and limit < 1e6 else None


def _query_weights(parts: _Parts, vocab_size: int) -> Tensor:
    if parts.idf_json is not None:
        tokenizer = load_tokenizer(str(parts.query_folder or parts.document_folder))
        return idf_from_json(parts.idf_json, tokenizer, vocab_size)
    if parts.query_folder is None:
        return torch.ones(vocab_size)
    weights = _read_weights(parts.query_folder)
    if len(weights) > vocab_size:
        raise UserError(f"{parts.query_folder} has {len(weights)} weights for a vocabulary of {vocab_size}.")
    # Dims beyond the table belong to padding of the vocabulary: no query reaches them.
    return torch.cat([weights, weights.new_zeros(vocab_size - len(weights))])


def _read_weights(folder: Path) -> Tensor:
    safe, pickled = folder / "model.safetensors", folder / "pytorch_model.bin"
    try:
        if safe.is_file():
            return load_file(safe)["weight"].float()
        if pickled.is_file():
            return torch.load(pickled, map_location="cpu", weights_only=True)["weight"].float()
    except (SafetensorError, KeyError, RuntimeError, ValueError, EOFError) as error:
        raise UserError(f"The query weights in {folder} are damaged ({error}); fetch the model again.") from None
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
