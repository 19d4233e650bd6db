"""The query side of a saved model on its own: tokenizer and table, without torch, without transformers.

    side = load_query_side("runs/quickstart/model")
    side.encode(["sort a table by a column"])  # the vectors of `AsymmetricSparseEncoder.encode_query`, as CSR
    side.terms("sort a table by a column")     # token to weight, the form that search engines take

It loads in a fraction of a second, unless only transformers can build the tokenizer: there is no tokenizer.json, or
tokenizer_config.json says something else than it does.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.sparse import csr_array
from tokenizers import Tokenizer
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import ByteLevel

from splade_lit.core.errors import UserError
from splade_lit.core.tokenisation import EngineTokenizer, Tokenisation, vocabulary_size
from splade_lit.encoder.layout import SavedLayout, find_saved, read_json
from splade_lit.encoder.rows import keep_largest, look_up, split_rows
from splade_lit.encoder.table import read_table

_TOKENIZER_FILES = ("tokenizer.json", "vocab.txt", "vocab.json")
# Classes of transformers that take tokenizer.json as it is.
_PLAIN_CLASSES = ("PreTrainedTokenizerFast", "TokenizersBackend")
_NAMED_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


@dataclass(frozen=True)
class QuerySide:
    """Looks queries up in a table of weights, float32 `[vocab]`, and keeps `max_active_dims` of each (all if None)."""

    weights: np.ndarray
    tokenisation: Tokenisation
    max_active_dims: int | None

    def encode(self, texts: str | Sequence[str], prompt_name: str = "query", prompt: str | None = None) -> csr_array:
        """Vectors `[queries, vocab]` of one query or several: float32 weights of the tokens present, int32 indices.

        The prompt is as of `Tokenisation.queries`.
        """
        token_ids = self.tokenisation.queries([texts] if isinstance(texts, str) else texts, prompt_name, prompt)
        return keep_largest(look_up(self.weights, token_ids), self.max_active_dims)

    def terms(self, text: str) -> dict[str, float]:
        """Token to weight of one query, the form that search engines take; the largest weight first."""
        ((dims, weights),) = split_rows(self.encode(text))
        order = np.argsort(-weights, kind="stable")
        return dict(zip(self.tokens(dims[order]), weights[order].tolist(), strict=True))

    def tokens(self, dims: Sequence[int] | np.ndarray) -> list[str]:
        """The token of each of these dims."""
        engine = self.tokenisation.tokenizer.backend_tokenizer
        return [str(engine.id_to_token(int(dim))) for dim in dims]


def load_query_side(source: str | Path, *, revision: str | None = None) -> QuerySide:
    """Read tokenizer and table of a saved model: a folder, a Hub id, or `package:NAME/FOLDER`.

    `revision` is a branch, tag or commit on the Hub, which is asked for no more than this takes.

    Raises:
        UserError: there is no such model, it is not of a form read here, or its files are damaged.
    """
    layout = find_saved(source, revision, queries_only=True)
    folder = layout.document_folder
    if layout.query_folder is not None and not _has_tokenizer(folder):  # the queries' is all that is there
        folder = layout.query_folder
    tokenizer = _load_tokenizer(folder)
    check_query_tokenizer(layout, tokenizer.backend_tokenizer)
    vocabulary = tokenizer.backend_tokenizer.get_vocab()
    weights = read_table(layout, vocabulary, vocabulary_size(vocabulary, source))
    limit = layout.max_query_tokens
    tokenisation = Tokenisation(tokenizer, limit, layout.max_document_tokens or limit, layout.prompts)
    return QuerySide(weights, tokenisation, layout.pruning.max_query_active_dims)


def check_query_tokenizer(layout: SavedLayout, engine: Tokenizer) -> None:
    """Check that queries are cut into the same tokens as documents, whose tokenizer (`engine`) is used for both here.

    Raises:
        UserError: they are not.
    """
    folder = layout.query_folder
    if folder is None or not _has_tokenizer(folder):
        return
    if _tokenizer_files(folder) == _tokenizer_files(layout.document_folder):
        return  # known without the time that loading takes
    documents, queries = _pieces(engine), _pieces(_load_tokenizer(folder).backend_tokenizer)
    if differing := [name for name in documents if documents[name] != queries[name]]:
        raise UserError(
            f"{layout.source} has another tokenizer for queries than for documents (they differ in "
            f"{', '.join(differing)}); only models with one tokenizer for both are read."
        )


def _load_tokenizer(folder: Path) -> EngineTokenizer:
    """The tokenizer that `AsymmetricSparseEncoder.load` takes."""
    path, config = folder / "tokenizer.json", read_json(folder / "tokenizer_config.json", missing={})
    try:
        if path.is_file() and _is_taken_as_it_is(engine := Tokenizer.from_file(str(path)), config):
            side = (engine.truncation or {}).get("direction", "right")
            return EngineTokenizer(engine, config.get("truncation_side", side))
    except Exception as error:  # tokenizers raises bare exceptions
        raise UserError(f"The tokenizer in {folder} is damaged or no fast one; fetch the model again.") from error
    from splade_lit.encoder.masked_lm import load_tokenizer

    built = load_tokenizer(str(folder))
    return EngineTokenizer(built.backend_tokenizer, built.truncation_side)


def _has_tokenizer(folder: Path) -> bool:
    return any((folder / name).is_file() for name in _TOKENIZER_FILES)


def _is_taken_as_it_is(engine: Tokenizer, config: dict[str, Any]) -> bool:
    """Whether transformers gives the ids of tokenizer.json. Many classes build parts of it from their own settings."""
    named = [config.get(name) for name in _NAMED_TOKENS] + list(config.get("additional_special_tokens") or [])
    contents = [token["content"] if isinstance(token, dict) else token for token in named if token is not None]
    special = {token.content for token in engine.get_added_tokens_decoder().values() if token.special}
    if not special.issuperset(contents) or config.get("split_special_tokens"):
        return False
    if config.get("tokenizer_class") in _PLAIN_CLASSES:
        return config.get("pad_token") is not None  # else one is chosen when the model is loaded
    normalizer, pre_tokenizer = engine.normalizer, engine.pre_tokenizer
    if isinstance(normalizer, BertNormalizer):
        settings = (("do_lower_case", True), ("strip_accents", None), ("tokenize_chinese_chars", True))
        parts = [normalizer.lowercase, normalizer.strip_accents, normalizer.handle_chinese_chars]
        return parts == [config.get(name, default) for name, default in settings]
    return not isinstance(pre_tokenizer, ByteLevel) or (
        pre_tokenizer.add_prefix_space == config.get("add_prefix_space", False)
    )


def _pieces(engine: Tokenizer) -> dict[str, Any]:
    """What turns a query into token ids; special tokens are not added to queries."""
    parts = json.loads(engine.to_str())
    named = {name: parts[name] for name in ("normalizer", "pre_tokenizer", "model")}
    return named | {"vocabulary": engine.get_vocab()}


def _tokenizer_files(folder: Path) -> tuple[bytes, dict[str, Any]]:
    path = folder / "tokenizer.json"
    config = read_json(folder / "tokenizer_config.json", missing={})
    return path.read_bytes() if path.is_file() else b"", config | {"model_max_length": None}
