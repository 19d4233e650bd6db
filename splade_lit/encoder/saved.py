"""Reading a saved model: a folder or a Hub repository in sentence-transformers' form, whatever release wrote it.

`splade_lit.encoder.layout` says which forms are read. Nothing is unpickled but tensors.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from splade_lit.core.errors import UserError
from splade_lit.encoder.document import MlmDocumentEncoder
from splade_lit.encoder.layout import find_saved
from splade_lit.encoder.masked_lm import load_masked_lm, load_tokenizer
from splade_lit.encoder.pruning import Pruning
from splade_lit.encoder.query import IdfQueryEncoder
from splade_lit.encoder.query_side import check_query_tokenizer
from splade_lit.encoder.table import read_table


@dataclass(frozen=True)
class EncoderParts:
    """The arguments of `AsymmetricSparseEncoder`, as reading a model gives them and writing one takes them."""

    query: IdfQueryEncoder
    document: MlmDocumentEncoder
    tokenizer: PreTrainedTokenizerBase
    max_query_tokens: int | None = None
    max_document_tokens: int | None = None
    prompts: Mapping[str, str] | None = None
    pruning: Pruning = field(default_factory=Pruning)


def read_saved(
    source: str | Path,
    *,
    revision: str | None = None,
    packed: bool = True,
    dropout: float | None = None,
    trust_remote_code: bool = False,
) -> EncoderParts:
    """Read the parts of an encoder from a folder or from the Hub.

    `source` is a folder, a Hub id, or `package:NAME/FOLDER`; `revision` is a branch, tag or commit on the Hub. `packed`
    and `dropout` are as of `splade_lit.training.module.SpladeModule`; `trust_remote_code` runs code of the model.

    Raises:
        UserError: there is no such model, it is not of a form read here, or its files are damaged.
    """
    layout = find_saved(source, revision)
    folder = str(layout.document_folder)
    tokenizer = load_tokenizer(folder, trust_remote_code=trust_remote_code)
    check_query_tokenizer(layout, tokenizer.backend_tokenizer)
    model, grafted = load_masked_lm(folder, tokenizer, dropout, trust_remote_code=trust_remote_code)
    if grafted:
        raise UserError(
            f"{source} has no masked-LM head, so it is a base model to train from and not a SPLADE encoder."
        )
    document = MlmDocumentEncoder(model, tokenizer.pad_token_id, layout.pooling, layout.activation, packed)
    weights = read_table(layout, tokenizer.get_vocab(), document.vocab_size)
    # Some files promise more tokens than the model has positions.
    max_document_tokens = layout.max_document_tokens and min(layout.max_document_tokens, document.max_positions)
    query, limits = IdfQueryEncoder(weights, layout.frozen), (layout.max_query_tokens, max_document_tokens)
    return EncoderParts(query, document, tokenizer, *limits, layout.prompts, layout.pruning)
