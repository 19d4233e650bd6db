"""How saved models lie on disk: folders and settings of a model in sentence-transformers' form, whatever wrote it.

Read are the form that `splade_lit.encoder.saved_writer` describes, the one that newer releases write, repositories
whose query weights are an `idf.json` (OpenSearch's), and plain masked-LM repositories (their query weights are all one:
SPLADE-doc). No weights are read here.
"""

import hashlib
import logging
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import inf
from pathlib import Path
from typing import Any

import xxhash

from splade_lit.core.errors import UserError, first_line
from splade_lit.core.sources import resolve_source
from splade_lit.core.text import parse_json
from splade_lit.encoder.pruning import Pruning

logger = logging.getLogger(__name__)

# As transformers, whose tokenizers say 10^30 where they have none.
NO_LIMIT = 1_000_000
_LARGEST_LIMIT = 2**31 - 1  # that arrays of token ids and dims can be compared with
# The modules of each route, under the names that releases gave them.
_ROUTES: dict[str, list[tuple[str, ...]]] = {
    "query": [("SparseStaticEmbedding", "IDF")],
    "document": [("MLMTransformer", "Transformer"), ("SpladePooling",)],
}
# Files of a Hub repository; weights in torch's own form are fetched only where there are no others.
_TEXTS = ("*.json", "*.txt", "*.model", "README.md")
_WEIGHTS, _WEIGHTS_ELSE = "*.safetensors", "*pytorch_model*.bin"


@dataclass(frozen=True)
class SavedLayout:
    """Where the files of a saved model lie, whatever its form, and its settings: see `AsymmetricSparseEncoder`.

    Attributes:
        source: the folder or Hub id as it was given.
        document_folder: the masked-language model and its tokenizer.
        max_query_tokens: the tokenizer's limit; where it has none, how many positions the model has.
        query_folder: query weights and tokenizer; None for a masked-language model alone.
        idf_json: query weights as a JSON file, if that is their form.
        frozen: whether training keeps the query weights as they are.
        max_document_tokens: None where the files do not say.
    """

    source: str
    document_folder: Path
    max_query_tokens: int
    query_folder: Path | None = None
    idf_json: Path | None = None
    frozen: bool = False
    pooling: Any = "max"
    activation: Any = "relu"
    max_document_tokens: int | None = None
    prompts: dict[str, str] = field(default_factory=dict)
    pruning: Pruning = field(default_factory=Pruning)


def find_saved(source: str | Path, revision: str | None = None, queries_only: bool = False) -> SavedLayout:
    """The layout of a saved model: a folder, a Hub id, or `package:NAME/FOLDER`.

    With `queries_only` the Hub is asked for no weights of the masked-language model.

    Raises:
        UserError: there is no such model, or it is not of a form read here.
    """
    source = str(source)
    path = _local_path(source)
    if path is not None and not path.is_dir():
        raise UserError(f"{source} is not a folder; give the folder of a saved model or a Hub id such as owner/name.")
    folder = path or _fetch(source, revision, *_TEXTS)
    try:
        layout = _read_layout(folder, source)
    except (KeyError, TypeError, AttributeError, IndexError, UnicodeDecodeError) as error:
        raise UserError(
            f"The JSON files of {source} are not laid out as sentence-transformers' are; fetch the model again."
        ) from error
    if path is None and not queries_only:
        _fetch(source, folder.name, _WEIGHTS)
        if not any(folder.rglob("model*.safetensors")):
            _fetch(source, folder.name, _WEIGHTS_ELSE)
    elif path is None and layout.query_folder is not None:
        table = layout.query_folder.relative_to(folder)
        _fetch(source, folder.name, str(table / "model.safetensors"), str(table / "pytorch_model.bin"))
    return layout


def copy_query_side(source: str | Path, target: Path, revision: str | None = None) -> None:
    """Copy what `load_query_side` reads of a saved model: all but the weights of the masked-language model.

    Raises:
        UserError: there is no such model, or it is not of a form read here.
    """
    layout = find_saved(source, revision, queries_only=True)
    folder = layout.document_folder
    while not ((folder / "modules.json").is_file() or layout.query_folder is None):
        folder = folder.parent
    texts = (path for pattern in _TEXTS for path in folder.rglob(pattern))
    tables = layout.query_folder.glob("*model*") if layout.query_folder else ()
    for path in dict.fromkeys([*texts, *tables]):
        place = target / path.relative_to(folder)
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, place)


def model_folder(source: str, revision: str | None = None) -> Path:
    """The folder of a model of any kind; a Hub id is fetched, weights and all.

    Raises:
        UserError: there is no such folder or model.
    """
    if (path := _local_path(source)) is not None:
        if not path.is_dir():
            raise UserError(f"{source} is not a folder; give the folder of a model or a Hub id such as owner/name.")
        return path
    folder = _fetch(source, revision, *_TEXTS, _WEIGHTS)
    return folder if any(folder.rglob("model*.safetensors")) else _fetch(source, folder.name, _WEIGHTS_ELSE)


def find_inference_free(source: str | Path, revision: str | None = None) -> SavedLayout | None:
    """The layout of a source if it is a model with a query table; None for any other, such as a plain base model.

    Raises:
        UserError: it is one, but not of a form read here.
    """
    source = str(source)
    if (modules := _file_of(source, "modules.json", revision)) is None:
        has_table = _file_of(source, "idf.json", revision) is not None
    else:
        try:
            has_table = _is_router(read_json(modules, kind=list))
        except (UserError, KeyError, TypeError, AttributeError):
            has_table = False  # of no use to a base model either
    return find_saved(source, revision) if has_table else None


def _is_router(modules: Sequence[dict[str, Any]]) -> bool:
    return [module["type"].endswith("Router") for module in modules] == [True]


def _local_path(source: str) -> Path | None:
    """The path that a source names; None for what can only be a Hub id."""
    path = Path(resolve_source(source))
    is_id = source.count("/") == 1 and not source.startswith((".", "/", "~"))
    return None if is_id and not path.exists() else path


def _file_of(source: str, name: str, revision: str | None) -> Path | None:
    """A file of a folder or a Hub repository, None where it has none."""
    if (path := _local_path(source)) is not None:
        return path / name if (path / name).is_file() else None
    from huggingface_hub import hf_hub_download  # here, as it takes longer than a query on a local model
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(source, name, revision=revision))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError):
        return None  # whoever loads the model says what is wrong with it


def _fetch(source: str, revision: str | None, *patterns: str) -> Path:
    """The folder in the Hub's cache that has the files of a repository whose paths match."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(source, revision=revision, allow_patterns=list(patterns)))
    except LocalEntryNotFoundError:
        raise UserError(
            f"{source} is not a folder, and the Hub cannot be reached; check the name and the network."
        ) from None
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise UserError(f"{source} is not a folder, and the Hub does not give it: {first_line(error)}.") from None


def _read_layout(folder: Path, source: str) -> SavedLayout:
    if not (folder / "modules.json").is_file():
        if not (folder / "config.json").is_file():
            raise UserError(f"{source} is not a model folder: it has neither modules.json nor config.json.")
        idf_json = folder / "idf.json"
        return SavedLayout(source, folder, _query_limit(folder), idf_json=idf_json if idf_json.is_file() else None)
    modules = read_json(folder / "modules.json", kind=list)
    if not _is_router(modules):
        kinds = ", ".join(module["type"].rpartition(".")[2] for module in modules) or "no modules"
        raise UserError(
            f"{source} is made of {kinds}; only asymmetric models (a Router of query and document) are read."
        )
    root = _inside(folder, modules[0]["path"])
    there = [name for name in ("router_config.json", "config.json") if (root / name).is_file()]
    router = read_json(root / (there or ["router_config.json"])[0])
    folders: list[Path] = []
    for route, expected in _ROUTES.items():
        names = router["structure"].get(route, [])
        found = [router["types"][name].rpartition(".")[2] for name in names]
        if len(found) != len(expected) or any(kind not in kinds for kind, kinds in zip(found, expected, strict=True)):
            wanted = " and ".join(kinds[0] for kinds in expected)
            raise UserError(f"{source} has a route of {', '.join(found) or 'nothing'}; only {wanted} is read.")
        inner = [_inside(folder, Path(modules[0]["path"], name)) for name in names]
        folders += [path if path.is_dir() else root for path in inner]
    query, document, pooling_folder = folders
    query_config, pooling = read_json(query / "config.json"), read_json(pooling_folder / "config.json")
    model_config = read_json(folder / "config_sentence_transformers.json", missing={})
    limits = read_json(document / "sentence_bert_config.json", missing={})
    return SavedLayout(
        source=source,
        document_folder=document,
        query_folder=query,
        idf_json=_idf_json(folder, query, query_config.get("path")),
        frozen=bool(query_config.get("frozen", False)),
        pooling=_choice(pooling, "pooling_strategy", "max", "sum"),
        activation=_choice(pooling, "activation_function", "relu", "log1p_relu"),
        max_query_tokens=_token_limit(query) or _query_limit(document),
        max_document_tokens=(
            _limit(limits, "document_length") or _limit(limits, "max_seq_length") or _token_limit(document)
        ),
        prompts={name: _prompt(name, text) for name, text in (model_config.get("prompts") or {}).items()},
        pruning=read_pruning(model_config),
    )


def _inside(folder: Path, name: str | Path) -> Path:
    """The path in a folder that one of its files names; a UserError if it leads elsewhere."""
    path = folder / name
    if not Path(os.path.abspath(path)).is_relative_to(os.path.abspath(folder)):
        raise UserError(f"{folder}: a file of the model names {str(name)!r}, outside of its folder; nothing is read.")
    return path


def read_pruning(model_config: dict[str, Any]) -> Pruning:
    """The limits as `Pruning.saved` writes them; where sentence-transformers wrote the file, its cap of both sides.

    Raises:
        UserError: a limit is out of range.
    """
    limits = model_config.get("pruning") or {}
    if not limits:
        return Pruning().capped(_limit(model_config, "max_active_dims"))
    return Pruning(
        max_query_active_dims=_limit(limits, "max_query_active_dims"),
        max_document_active_dims=_limit(limits, "max_document_active_dims"),
        min_document_weight=_size(limits, "min_document_weight"),
        min_document_weight_share=_size(limits, "min_document_weight_share", 1.0),
    )


def _idf_json(folder: Path, query_folder: Path, path: str | None) -> Path | None:
    if path is None or not path.endswith(".json"):
        return None
    candidates = [query_folder / Path(path).name, folder / Path(path).name]
    found = next((candidate for candidate in candidates if candidate.is_file()), None)
    return found or (inner if (inner := _inside(folder, path)).is_file() else candidates[1])


def _token_limit(folder: Path) -> int | None:
    limit = _limit(read_json(folder / "tokenizer_config.json", missing={}), "model_max_length")
    return limit if limit is not None and limit < NO_LIMIT else None


def _query_limit(folder: Path) -> int:
    config = read_json(folder / "config.json", missing={})
    return _token_limit(folder) or _limit(config, "max_position_embeddings") or NO_LIMIT


def _choice(config: dict[str, Any], name: str, default: str, other: str) -> Any:
    value = config.get(name, default)
    if value not in (default, other):
        raise UserError(f"{name} {value!r} is not known; {default} and {other} are.")
    return value


def _limit(config: dict[str, Any], name: str) -> int | None:
    value = config.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not (isinstance(value, int | float) and 1 <= value < inf):
        raise UserError(f"{name} is {value!r} in the model's JSON files; it must be a number of at least 1.")
    return min(int(value), _LARGEST_LIMIT)


def _prompt(name: str, text: Any) -> str:
    if not isinstance(text, str | None):
        raise UserError(f"The prompt {name} is {text!r} in the model's JSON files; it must be a text.")
    return text or ""


def _size(config: dict[str, Any], name: str, most: float = inf) -> float:
    value = config.get(name, 0.0)
    if isinstance(value, bool) or not (isinstance(value, int | float) and 0 <= value <= most and value < inf):
        ends = "at least 0" if most == inf else f"from 0 to {most:g}"
        raise UserError(f"{name} is {value!r} in the model's JSON files; it must be a number {ends}.")
    return float(value)


def read_json(path: Path, missing: Any = None, kind: type = dict) -> Any:
    """What a JSON file of a model holds, `missing` where there is no such file.

    Raises:
        UserError: there is no such file and no `missing`, it is not JSON, or not of this `kind`.
    """
    try:
        content = parse_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if missing is not None:
            return missing
        raise UserError(f"{path} is missing, so {path.parent} is not a whole model; fetch it again.") from None
    except (OSError, ValueError):
        raise UserError(f"{path} is not JSON; fetch the model again.") from None
    if not isinstance(content, kind):
        raise UserError(f"{path} is not laid out as sentence-transformers' files are; fetch the model again.")
    return content


def document_side_fingerprint(layout: SavedLayout) -> str:
    """A hash of the files that document vectors depend on: models in which they are equal give equal whole vectors.

    What `pruning` leaves of them is no part of it. It takes as long as reading the weights from the disk.
    """
    digest = xxhash.xxh3_64(repr((layout.pooling, layout.activation, layout.max_document_tokens)).encode())
    digest.update(repr((layout.prompts.get("document"), None)).encode())  # None: hashes of before stay what they are
    for path in sorted(layout.document_folder.iterdir()):
        _add_file(digest, path, path.name)
    return digest.hexdigest()


def folder_fingerprint(folder: Path) -> str:
    """A hash of all files of a model; it takes as long as reading the weights from the disk."""
    digest = xxhash.xxh3_64()
    for path in sorted(folder.rglob("*")):
        _add_file(digest, path, str(path.relative_to(folder)))
    return digest.hexdigest()


def _add_file(digest: xxhash.xxh3_64, path: Path, name: str) -> None:
    if path.suffix in (".json", ".safetensors", ".bin", ".txt", ".model"):
        with path.open("rb") as file:
            digest.update(f"{name} {hashlib.file_digest(file, xxhash.xxh3_64).hexdigest()}".encode())


def warn_of_export(folder: Path, changed: str) -> None:
    """Warn if a saved model, of which something has changed, holds an ONNX export of before."""
    export = folder / "onnx"
    if (export / "config.json").is_file():
        logger.warning("%s has the %s of before; export again.", export, changed)
