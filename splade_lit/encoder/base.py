"""The parts of a new encoder on a base model: a Hub id, a folder, or a folder inside an installed package."""

import torch

from splade_lit.encoder.body.sparse_head import Activation, Pooling
from splade_lit.encoder.document import MlmDocumentEncoder
from splade_lit.encoder.masked_lm import load_masked_lm, load_tokenizer
from splade_lit.encoder.parts import EncoderParts
from splade_lit.encoder.query import IdfQueryEncoder, idf_from_json


def read_base(
    source: str,
    *,
    idf: str | torch.Tensor = "ones",
    freeze_idf: bool = False,
    max_query_tokens: int | None = None,
    max_document_tokens: int | None = None,
    pooling: Pooling = "max",
    activation: Activation = "relu",
    packed: bool = True,
    dropout: float | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> EncoderParts:
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
        dropout: dropout of the model in training, everywhere; that of its config.json if not given.
        revision: branch, tag or commit on the Hub.
        trust_remote_code: run code that comes with the model.

    Raises:
        UserError: the model or its tokenizer cannot be loaded; the sentence says why.
    """
    tokenizer = load_tokenizer(source, revision=revision, trust_remote_code=trust_remote_code)
    model, grafted = load_masked_lm(source, tokenizer, dropout, revision=revision, trust_remote_code=trust_remote_code)
    document = MlmDocumentEncoder(model, tokenizer.pad_token_id or 0, pooling, activation, packed)
    document.grafted = grafted
    if isinstance(idf, str):
        idf = torch.ones(document.vocab_size) if idf == "ones" else idf_from_json(idf, tokenizer, document.vocab_size)
    return EncoderParts(IdfQueryEncoder(idf, freeze_idf), document, tokenizer, max_query_tokens, max_document_tokens)
