"""The parts of an encoder to train: put on a base model, or those of a saved model, which goes on from where it is."""

import numpy as np
from torch import Tensor

from splade_lit.core.errors import UserError
from splade_lit.encoder.body.sparse_head import Activation, Pooling
from splade_lit.encoder.document import MlmDocumentEncoder
from splade_lit.encoder.layout import find_inference_free
from splade_lit.encoder.masked_lm import load_masked_lm, load_tokenizer
from splade_lit.encoder.parts import EncoderParts, tokenisation_of
from splade_lit.encoder.query import IdfQueryEncoder
from splade_lit.encoder.saved import read_saved
from splade_lit.encoder.table import idf_from_json


def read_base(
    source: str,
    *,
    idf: str | Tensor | np.ndarray | None = None,
    freeze_idf: bool = False,
    max_query_tokens: int | None = None,
    max_document_tokens: int | None = None,
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
    free one, goes on with all that it has: body, head, bias, table, prompts, and what is not given here.

    Args:
        source: Hub id, folder, or `package:NAME/FOLDER`.
        idf: "ones", "model" (the table of the base model), the path of an idf.json, or an array `[vocab]`; "model"
            where the base model has a table, else "ones", if not given.
        freeze_idf: keep the query weights as they are in training.
        max_query_tokens: tokens a query is cut to; the base model's limit if not given.
        max_document_tokens: tokens a document is cut to; the base model's limit if not given.
        pooling: "max" or "sum"; that of a base model with a table, else "max", if not given.
        activation: "relu" or "log1p_relu"; that of a base model with a table, else "relu", if not given.
        packed: run the body without padding where the model allows it.
        dropout: dropout of the model in training, everywhere; that of its config.json if not given.
        revision: branch, tag or commit on the Hub.
        trust_remote_code: run code that comes with the model.

    Raises:
        UserError: the model or its tokenizer cannot be loaded, or has no table where `idf` asks for its own.
    """
    if find_inference_free(source, revision) is not None:
        base = read_saved(
            source, revision=revision, packed=packed, dropout=dropout, trust_remote_code=trust_remote_code
        )
    elif isinstance(idf, str) and idf == "model":
        raise UserError(f"{source} has no query table to go on from; set idf to ones, corpus or an idf.json.")
    else:
        base = _read_plain(source, packed, dropout, revision=revision, trust_remote_code=trust_remote_code)
    document, texts = base.document, base.tokenisation
    document.pooling, document.activation = pooling or document.pooling, activation or document.activation
    table: Tensor | np.ndarray = base.query.idf_weights
    if isinstance(idf, str) and idf == "ones":
        table = np.ones(document.vocab_size, np.float32)
    elif isinstance(idf, str) and idf != "model":
        table = idf_from_json(idf, texts.tokenizer.get_vocab(), document.vocab_size)
    elif idf is not None and not isinstance(idf, str):
        table = idf
    tokenisation = tokenisation_of(
        texts.tokenizer,
        document,
        max_query_tokens or texts.max_query_tokens,
        max_document_tokens or texts.max_document_tokens,
        texts.prompts,
    )
    return EncoderParts(IdfQueryEncoder(table, freeze_idf), document, tokenisation, base.max_active_dims)


def _read_plain(
    source: str, packed: bool, dropout: float | None, *, revision: str | None, trust_remote_code: bool
) -> EncoderParts:
    """A model without a query table: its queries weigh 1."""
    tokenizer = load_tokenizer(source, revision=revision, trust_remote_code=trust_remote_code)
    model, grafted = load_masked_lm(source, tokenizer, dropout, revision=revision, trust_remote_code=trust_remote_code)
    document = MlmDocumentEncoder(model, tokenizer.pad_token_id, packed=packed)
    document.grafted = grafted
    query = IdfQueryEncoder(np.ones(document.vocab_size, np.float32))
    return EncoderParts(query, document, tokenisation_of(tokenizer, document))
