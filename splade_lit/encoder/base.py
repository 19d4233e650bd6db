"""The parts of an encoder to train: put on a base model, or those of a saved model, which goes on from where it is."""

from dataclasses import replace
from typing import Any

import numpy as np
from torch import Tensor

from splade_lit.core.errors import UserError
from splade_lit.encoder.body.sparse_head import Activation, Pooling
from splade_lit.encoder.document import MlmDocumentEncoder
from splade_lit.encoder.layout import find_inference_free
from splade_lit.encoder.masked_lm import load_masked_lm, load_tokenizer
from splade_lit.encoder.query import IdfQueryEncoder
from splade_lit.encoder.saved import EncoderParts, read_saved
from splade_lit.encoder.table import idf_from_json


def read_base(
    source: str,
    *,
    idf: str | Tensor | np.ndarray | None = None,
    freeze_idf: bool = False,
    max_query_tokens: int | None = None,
    max_document_tokens: int | None = None,
    max_query_active_dims: int | None = None,
    max_document_active_dims: int | None = None,
    min_document_weight: float | None = None,
    min_document_weight_share: float | None = None,
    pooling: Pooling | None = None,
    activation: Activation | None = None,
    packed: bool = True,
    dropout: float | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> EncoderParts:
    """Put a query table and a document encoder on a base model.

    An encoder without a masked-LM head gets the grafted head (see `splade_lit.encoder.grafted`); its decoder bias is
    still to be calibrated on documents. A model that has a query table already, one saved here or another inference-
    free one, goes on with all that it has: body, head, bias, table, prompts, and what is not given here. For a plain
    base model that is the limits of its tokenizer, "max", "relu", and whole vectors.

    Settings are documented under the same names in `splade_lit.training.module.SpladeModule`. `idf` may be an array
    `[vocab]` too, but not "corpus"; `revision` is that of the base model on the Hub.

    Raises:
        UserError: the model or its tokenizer cannot be loaded, or has no table where `idf` asks for its own.
    """
    name = idf if isinstance(idf, str) else None
    loading: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
    if find_inference_free(source, revision) is not None:
        base = read_saved(source, packed=packed, dropout=dropout, **loading)
    elif name == "model":
        raise UserError(f"{source} has no query table to go on from; set idf to ones, corpus or an idf.json.")
    else:
        tokenizer = load_tokenizer(source, **loading)
        model, grafted = load_masked_lm(source, tokenizer, dropout, **loading)
        document = MlmDocumentEncoder(model, tokenizer.pad_token_id, packed=packed)
        document.grafted = grafted
        base = EncoderParts(IdfQueryEncoder(np.ones(document.vocab_size, np.float32)), document, tokenizer)
    limits = {
        "max_query_active_dims": max_query_active_dims,
        "max_document_active_dims": max_document_active_dims,
        "min_document_weight": min_document_weight,
        "min_document_weight_share": min_document_weight_share,
    }
    document = base.document
    document.pooling, document.activation = pooling or document.pooling, activation or document.activation
    table: Tensor | np.ndarray = base.query.idf_weights
    if name == "ones":
        table = np.ones(document.vocab_size, np.float32)
    elif idf is not None and name != "model":
        vocabulary = base.tokenizer.get_vocab()
        table = idf_from_json(idf, vocabulary, document.vocab_size) if isinstance(idf, str) else idf
    return replace(
        base,
        query=IdfQueryEncoder(table, freeze_idf),
        max_query_tokens=max_query_tokens or base.max_query_tokens,
        max_document_tokens=max_document_tokens or base.max_document_tokens,
        pruning=base.pruning.changed(limits),
    )
