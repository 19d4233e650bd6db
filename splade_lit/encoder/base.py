"""A new asymmetric encoder on a base model: a Hub id, a folder, or a folder inside an installed package."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForMaskedLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from splade_lit.encoder.document import MlmDocumentEncoder
from splade_lit.encoder.grafted import graft_head
from splade_lit.encoder.model import AsymmetricSparseEncoder
from splade_lit.encoder.query import IdfQueryEncoder, idf_from_json
from splade_lit.encoder.sparse_head import Activation, Pooling
from splade_lit.errors import UserError
from splade_lit.sources import resolve_source

logger = logging.getLogger(__name__)


def from_base(
    source: str,
    *,
    idf: str | torch.Tensor = "ones",
    freeze_idf: bool = False,
    max_query_tokens: int | None = None,
    max_document_tokens: int | None = None,
    pooling: Pooling = "max",
    activation: Activation = "relu",
    packed: bool = True,
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> AsymmetricSparseEncoder:
    """Put a query table and a document encoder on a base model.

    An encoder without a masked-LM head gets the grafted head (see `splade_lit.encoder.grafted`); its decoder bias is
    still to be calibrated on documents.

    Args:
        source: Hub id, folder, or `package:NAME/FOLDER`.
        idf: "ones", the path of an idf.json, or a tensor `[vocab]`.
        freeze_idf: keep the query weights as they are in training.
        max_query_tokens: tokens a query is cut to; the tokenizer's limit if not given.
        max_document_tokens: tokens a document is cut to; the tokenizer's limit if not given.
        pooling: "max" or "sum".
        activation: "relu" or "log1p_relu".
        packed: run the body without padding where the model allows it.
        revision: branch, tag or commit on the Hub.
        trust_remote_code: run code that comes with the model.

    Raises:
        UserError: the model or its tokenizer cannot be loaded; the sentence says why.
    """
    tokenizer = load_tokenizer(source, revision=revision, trust_remote_code=trust_remote_code)
    model, grafted = load_masked_lm(source, tokenizer, revision=revision, trust_remote_code=trust_remote_code)
    document = MlmDocumentEncoder(model, tokenizer.pad_token_id or 0, pooling, activation, packed)
    document.grafted = grafted
    if isinstance(idf, str):
        idf = torch.ones(document.vocab_size) if idf == "ones" else idf_from_json(idf, tokenizer, document.vocab_size)
    return AsymmetricSparseEncoder(
        IdfQueryEncoder(idf, freeze_idf), document, tokenizer, max_query_tokens, max_document_tokens
    )


def load_tokenizer(source: str, **settings: Any) -> PreTrainedTokenizerBase:
    """The tokenizer of a base model.

    Raises:
        UserError: there is none, or it has no id for padding.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(resolve_source(source), **settings)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(_load_failure(source, "tokenizer", error)) from error
    if not tokenizer.is_fast:
        raise UserError(f"{source} has no fast tokenizer; save one as tokenizer.json beside the model.")
    return tokenizer


def load_masked_lm(source: str, tokenizer: PreTrainedTokenizerBase, **settings: Any) -> tuple[PreTrainedModel, bool]:
    """A masked-language model in fp32 whose vocabulary has the size of the tokenizer's.

    Returns:
        The model, and whether its head had to be grafted because the checkpoint has none.

    Raises:
        UserError: the model cannot be loaded.
    """
    path = resolve_source(source)
    try:
        config = AutoConfig.from_pretrained(path, **settings)
        with quiet_transformers():
            model, info = AutoModelForMaskedLM.from_pretrained(
                path, config=config, dtype=torch.float32, output_loading_info=True, **settings
            )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise UserError(_load_failure(source, "masked-language model", error)) from error
    except Exception as error:  # safetensors raises a type of its own for a file that is not one
        if type(error).__name__ != "SafetensorError":
            raise
        raise UserError(_load_failure(source, "masked-language model", error)) from error
    if info["mismatched_keys"]:
        raise UserError(f"{source}: its weights do not fit its config.json; use a matching pair.")
    missing = set(info["missing_keys"])
    head = {name for name in missing if not name.startswith(f"{model.base_model_prefix}.")}
    if missing - head:
        raise UserError(
            f"{source} is not a checkpoint of a {type(model).__name__}: its body lacks {sorted(missing - head)[0]}."
        )
    if head:
        logger.info("%s has no masked-LM head; one is grafted on (tied decoder, identity dense layer).", source)
        graft_head(model, head)
    vocab_size = max(tokenizer.get_vocab().values()) + 1
    if vocab_size != model.config.vocab_size:
        # Entries without a token would be dims that no query reaches; tokens without an entry would fail.
        model.resize_token_embeddings(vocab_size, mean_resizing=False)
    return model, bool(head)


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """No table of missing parameters, no bars of its own: what matters is told in one line by the caller."""
    verbosity = transformers_logging.get_verbosity()
    bar = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bar:
            transformers_logging.enable_progress_bar()


def _load_failure(source: str, what: str, error: Exception) -> str:
    text = str(error)
    folder = Path(resolve_source(source))
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            return f"{source} is not a model folder: it has no config.json."
        if (
            what != "tokenizer"
            and not list(folder.glob("*.safetensors"))
            and not list(folder.glob("pytorch_model*.bin"))
        ):
            return f"{source} has no weights (model.safetensors); copy them beside its config.json."
        return f"The {what} in {source} cannot be loaded: {text.splitlines()[0] if text else type(error).__name__}."
    if source.startswith((".", "/", "~")):
        return f"{source} is not a folder; give a model folder, a Hub id, or package:NAME/FOLDER."
    return (
        f"The {what} of {source} cannot be loaded from the Hub; check the name and the network, or give a model folder "
        f"({text.splitlines()[0][:200] if text else type(error).__name__})."
    )
