"""Writing a model in the on-disk form of sentence-transformers, so that its `SparseEncoder` opens it.

Written is the form of releases 5.0 to 5.3, which all releases from 5.0 to 6.2 read:

    modules.json                       the one module: a Router
    config_sentence_transformers.json  similarity, prompts, max_active_dims, pruning
    router_config.json                 which folders make the query route and the document route
    query_0_SparseStaticEmbedding/     weights [vocab] and the tokenizer
    document_0_MLMTransformer/         the transformers model and the tokenizer
    document_1_SpladePooling/          pooling strategy and activation

Tokenizers are written so that transformers 4 reads them too, which sentence-transformers 5.0 runs on.
"""

import copy
import json
import shutil
import tempfile
from importlib.metadata import version
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from transformers import PreTrainedTokenizerBase

from splade_lit.core.errors import UserError
from splade_lit.core.files import replace_text
from splade_lit.core.text import parse_json
from splade_lit.encoder.document import MlmDocumentEncoder
from splade_lit.encoder.layout import SavedLayout, find_saved, read_json
from splade_lit.encoder.masked_lm import quiet_transformers
from splade_lit.encoder.pruning import Pruning
from splade_lit.encoder.saved import EncoderParts

_CLASSES = "sentence_transformers.sparse_encoder.models"
_QUERY = "query_0_SparseStaticEmbedding"
_DOCUMENT = "document_0_MLMTransformer"
_POOLING = "document_1_SpladePooling"
# The newest form that this writer knows how to write for the oldest release that can read it.
_WRITTEN_FOR = "5.0.0"
# What transformers 5 adds to tokenizer_config.json about the machine it loaded from.
_LOCAL_KEYS = ("backend", "is_local", "local_files_only")


def write_saved(parts: EncoderParts, folder: str | Path) -> None:
    """Write an encoder to a folder, whole or not at all: a new or empty one, or one that holds a saved model.

    The files go to a temporary folder beside it, which then takes its place. What else lies there (a model card, an
    export) stays.

    Raises:
        UserError: the folder holds something else, or cannot be written.
    """
    target = Path(folder)
    is_model = (target / "router_config.json").is_file()
    if target.exists() and not (is_model or (target.is_dir() and not any(target.iterdir()))):
        raise UserError(f"{target} is in use and holds no saved asymmetric model; give a new or an empty folder.")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as scratch:
            new = Path(scratch, "new")
            new.mkdir()
            _write(parts, new)
            for path in (new, *new.rglob("*")):  # safetensors' files are made for their owner alone
                path.chmod(0o755 if path.is_dir() else 0o644)
            _take_place(new, Path(scratch, "old"), target)
    except (OSError, SafetensorError) as error:  # safetensors has an exception of its own for a full disk
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise UserError(
            f"The model cannot be saved to {target} ({reason}), and what was there before is untouched; "
            "free space or choose another folder."
        ) from error


def check_takes_pruning(layout: SavedLayout, folder: str | Path) -> None:
    """Raise a UserError if a saved model has no place to write limits to."""
    if layout.query_folder is None:
        raise UserError(f"{folder} has no place for limits; load it as AsymmetricSparseEncoder and save it first.")


def write_pruning(pruning: Pruning, folder: str | Path) -> None:
    """Set which weights a saved model keeps, whoever saved it; nothing else of it changes.

    Raises:
        UserError: the folder holds no saved asymmetric model, or cannot be written.
    """
    layout, path = find_saved(folder), Path(folder) / "config_sentence_transformers.json"
    check_takes_pruning(layout, folder)
    config = read_json(path, missing={})
    config = {name: value for name, value in config.items() if name not in ("max_active_dims", "pruning")}
    replace_text(path, _as_json(config | pruning.saved))


def _take_place(new: Path, old: Path, target: Path) -> None:
    if target.exists():
        for kept in target.iterdir():
            if not (new / kept.name).exists() and not kept.name.startswith(("query_", "document_")):
                (shutil.copytree if kept.is_dir() else shutil.copy2)(kept, new / kept.name)
        target.rename(old)
    try:
        new.rename(target)
    except BaseException:
        if old.exists():
            old.rename(target)
        raise


def _write(parts: EncoderParts, folder: Path) -> None:
    config: dict[str, Any] = {
        "model_type": "SparseEncoder",
        "__version__": {
            "sentence_transformers": _WRITTEN_FOR,
            "transformers": version("transformers"),
            "pytorch": version("torch"),
        },
        "prompts": dict(parts.prompts or {}),
        "default_prompt_name": None,
        "similarity_fn_name": "dot",
        **parts.pruning.saved,
    }
    contents = {
        "modules.json": [{"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Router"}],
        "config_sentence_transformers.json": config,
        "router_config.json": {
            "types": {
                _QUERY: f"{_CLASSES}.SparseStaticEmbedding.SparseStaticEmbedding",
                _DOCUMENT: f"{_CLASSES}.MLMTransformer.MLMTransformer",
                _POOLING: f"{_CLASSES}.SpladePooling.SpladePooling",
            },
            "structure": {"query": [_QUERY], "document": [_DOCUMENT, _POOLING]},
            "parameters": {"default_route": "document", "allow_empty_key": True},
        },
        f"{_QUERY}/config.json": {"frozen": parts.query.frozen},
        f"{_DOCUMENT}/sentence_bert_config.json": {"max_seq_length": parts.max_document_tokens, "do_lower_case": False},
        f"{_POOLING}/config.json": {
            "pooling_strategy": parts.document.pooling,
            "activation_function": parts.document.activation,
            "word_embedding_dimension": parts.document.vocab_size,
        },
    }
    for name, content in contents.items():
        (folder / name).parent.mkdir(exist_ok=True)
        _write_json(folder / name, content)
    weight = parts.query.idf_weights.detach().float().cpu().contiguous()
    save_file({"weight": weight}, folder / _QUERY / "model.safetensors")
    with quiet_transformers(), parts.document.whole_model() as model:
        _without_adapters(model).save_pretrained(folder / _DOCUMENT)
    for name, max_tokens in ((_QUERY, parts.max_query_tokens), (_DOCUMENT, parts.max_document_tokens)):
        save_tokenizer(parts.tokenizer, parts.document, folder / name, max_tokens)


def _without_adapters(model: Any) -> Any:
    """The model itself, or a copy with the adapters of peft merged, so that training can go on."""
    if not hasattr(model, "merge_and_unload"):
        return model
    decoder = model.get_output_embeddings().weight
    merged = copy.deepcopy(model).merge_and_unload()
    if not torch.equal(merged.get_output_embeddings().weight, decoder):
        raise UserError("An adapter of input embeddings that are the decoder's too cannot be saved; leave it out.")
    return merged


def save_tokenizer(
    tokenizer: PreTrainedTokenizerBase, document: MlmDocumentEncoder, folder: Path, max_tokens: int | None
) -> None:
    """Write a tokenizer with a limit of tokens, in a form that transformers 4 and `tokenizers` read too."""
    # A tokenizer keeps the limit of its last call, of whichever side, and would be written with it.
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.backend_tokenizer.no_padding()
    tokenizer.save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    config = parse_json(path.read_text(encoding="utf-8"))
    config = {name: value for name, value in config.items() if name not in _LOCAL_KEYS}
    # Names that transformers 5 gave to what transformers 4 knows as these; 5 reads both.
    if config.get("tokenizer_class") == "TokenizersBackend":
        config["tokenizer_class"] = "PreTrainedTokenizerFast"
    if isinstance(config.get("extra_special_tokens"), list):
        config["additional_special_tokens"] = config.pop("extra_special_tokens")
    # transformers 5 writes DistilBERT's tokenizer as BERT's, whose token types transformers 4 would hand to the model.
    if "token_type_ids" not in signature(document.model.forward).parameters:
        config["model_input_names"] = ["input_ids", "attention_mask"]
    _write_json(path, dict(sorted(config.items())) | {"model_max_length": max_tokens})


def _write_json(path: Path, content: Any) -> None:
    path.write_text(_as_json(content), encoding="utf-8")


def _as_json(content: Any) -> str:
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"
