"""What an encoder is made of: what reading a base model or a saved model gives, and what the writer takes."""

from dataclasses import dataclass, field

from transformers import PreTrainedTokenizerBase

from splade_lit.encoder.document import MlmDocumentEncoder
from splade_lit.encoder.query import IdfQueryEncoder


@dataclass(frozen=True)
class EncoderParts:
    """The two sides of an encoder and their settings.

    Attributes:
        query: table of query weights.
        document: document encoder over the same vocabulary.
        tokenizer: fast tokenizer of both sides.
        max_query_tokens: queries are cut after this many tokens; the tokenizer's own limit if None.
        max_document_tokens: documents are cut to this many tokens, special tokens included; the tokenizer's own limit
            if None.
        prompts: texts put before every query and document, under the names "query" and "document".
        max_active_dims: keep this many largest weights of each vector; all if None.
    """

    query: IdfQueryEncoder
    document: MlmDocumentEncoder
    tokenizer: PreTrainedTokenizerBase
    max_query_tokens: int | None = None
    max_document_tokens: int | None = None
    prompts: dict[str, str] = field(default_factory=dict)
    max_active_dims: int | None = None
