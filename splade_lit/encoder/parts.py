"""What an encoder is made of: what reading a base model or a saved model gives, and what the writer takes."""

from collections.abc import Mapping
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from splade_lit.core.errors import UserError
from splade_lit.core.tokenisation import Tokenisation
from splade_lit.encoder.document import MlmDocumentEncoder
from splade_lit.encoder.layout import NO_LIMIT
from splade_lit.encoder.query import IdfQueryEncoder


@dataclass(frozen=True)
class EncoderParts:
    """The two sides of an encoder and their settings.

    Attributes:
        query: table of query weights.
        document: document encoder over the same vocabulary.
        tokenisation: tokenizer, limits and prompts of both sides.
        max_active_dims: keep this many largest weights of each vector; all if None.
    """

    query: IdfQueryEncoder
    document: MlmDocumentEncoder
    tokenisation: Tokenisation
    max_active_dims: int | None = None


def tokenisation_of(
    tokenizer: PreTrainedTokenizerBase,
    document: MlmDocumentEncoder,
    max_query_tokens: int | None = None,
    max_document_tokens: int | None = None,
    prompts: Mapping[str, str] | None = None,
) -> Tokenisation:
    """How a model's texts become token ids, its limits checked.

    Args:
        tokenizer: fast tokenizer of both sides.
        document: says how many positions there are.
        max_query_tokens: tokens of a query that are looked at; the tokenizer's own limit if not given.
        max_document_tokens: tokens of a document that are read, special tokens included; the tokenizer's own limit if
            not given.
        prompts: texts put before every query and document, under the names "query" and "document".

    Raises:
        UserError: documents have no room beside the special tokens, or more tokens than the model has positions.
    """
    limit, positions = int(tokenizer.model_max_length), document.max_positions
    if limit >= NO_LIMIT:  # the tokenizer has none
        limit = min(getattr(document.config, "max_position_embeddings", NO_LIMIT), NO_LIMIT)
    special_tokens = tokenizer.num_special_tokens_to_add()
    max_document_tokens = max_document_tokens or min(limit, positions)
    if not special_tokens < max_document_tokens <= positions:
        raise UserError(
            f"max_document_tokens is {max_document_tokens}; it must be at least {special_tokens + 1}, as the tokenizer "
            f"adds {special_tokens} special tokens, and at most {positions}, the positions that the model has."
        )
    prompts = {"query": "", "document": ""} | dict(prompts or {})
    return Tokenisation(tokenizer, max_query_tokens or limit, max_document_tokens, prompts)
