"""The asymmetric encoder: a table for queries, a masked-language model for documents, one vocabulary for both."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.sparse import csr_array
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from splade_lit.core.errors import UserError
from splade_lit.core.progress import WorkProgress
from splade_lit.core.ranges import check_range
from splade_lit.core.tokenisation import Tokenisation
from splade_lit.core.tokens import Tokens
from splade_lit.encoder.base import read_base
from splade_lit.encoder.body.packing import evaluation_mode
from splade_lit.encoder.document import MlmDocumentEncoder
from splade_lit.encoder.explain import ReadToken, TermShare, term_shares
from splade_lit.encoder.layout import NO_LIMIT
from splade_lit.encoder.pruning import Pruning
from splade_lit.encoder.query import IdfQueryEncoder
from splade_lit.encoder.rows import encode_by_length, keep_largest, split_rows
from splade_lit.encoder.saved import EncoderParts, read_saved
from splade_lit.encoder.saved_writer import write_saved
from splade_lit.encoder.vectors import Vectors, as_csr, csr_to_torch

# Tokens a packed batch holds at inference; enough to keep the matrix products busy.
_TOKENS_PER_BATCH = {"cpu": 4096, "cuda": 65536}


class AsymmetricSparseEncoder(nn.Module):
    """Inference-free SPLADE: `encode_query` looks tokens up, `encode_document` runs the masked-language model.

    Arguments, defaults and shapes of the methods are those of sentence-transformers' `SparseEncoder`; every method that
    takes embeddings takes torch tensors (sparse or dense) and scipy CSR alike.

    Args:
        query: table of query weights.
        document: document encoder over the same vocabulary.
        tokenizer: fast tokenizer of both sides.
        max_query_tokens: queries are cut after this many tokens; the tokenizer's limit if not given.
        max_document_tokens: documents are cut to this many, special tokens included; likewise if not given.
        prompts: texts put before every query and document, under the names "query" and "document".
        max_active_dims: keep this many largest weights of each vector, on a side for which `pruning` has no cap of its
            own; all if not given.
        pruning: which weights of queries and of documents are kept; an attribute, which may be set at any time.

    Raises:
        ValueError: the sides differ in size.
        UserError: `max_document_tokens` leaves no room beside the special tokens, or is more than there are positions.
    """

    def __init__(
        self,
        query: IdfQueryEncoder,
        document: MlmDocumentEncoder,
        tokenizer: PreTrainedTokenizerBase,
        max_query_tokens: int | None = None,
        max_document_tokens: int | None = None,
        prompts: Mapping[str, str] | None = None,
        max_active_dims: int | None = None,
        pruning: Pruning | None = None,
    ) -> None:
        super().__init__()
        if len(query.idf_weights) != document.vocab_size:
            raise ValueError(f"query side has {len(query.idf_weights)} dims, document side {document.vocab_size}")
        limit, positions = int(min(tokenizer.model_max_length, NO_LIMIT)), document.max_positions
        if limit >= NO_LIMIT:  # the tokenizer has none
            limit = min(getattr(document.model.config, "max_position_embeddings", NO_LIMIT), NO_LIMIT)
        self.query = query
        self.document = document
        prompts = {"query": "", "document": ""} | dict(prompts or {})
        self.tokenisation = Tokenisation(tokenizer, max_query_tokens or limit, min(limit, positions), prompts)
        self.max_document_tokens = max_document_tokens or min(limit, positions)
        self.pruning = (pruning or Pruning()).capped(max_active_dims)

    @classmethod
    def from_base(cls, source: str, **settings: Any) -> "AsymmetricSparseEncoder":
        """A new encoder on a base model; settings are those of `splade_lit.encoder.base.read_base`."""
        return cls(**vars(read_base(source, **settings)))

    @classmethod
    def load(
        cls,
        source: str | Path,
        *,
        revision: str | None = None,
        device: str | torch.device | None = None,
        packed: bool = True,
        trust_remote_code: bool = False,
    ) -> "AsymmetricSparseEncoder":
        """A saved encoder, in evaluation mode, on `device` (the CPU if not given).

        The other arguments are those of `splade_lit.encoder.saved.read_saved`, which says what it raises.
        """
        parts = read_saved(source, revision=revision, packed=packed, trust_remote_code=trust_remote_code)
        return cls(**vars(parts)).to(device or "cpu").eval()

    def save(self, folder: str | Path) -> None:
        """Write the encoder in sentence-transformers' format; see `splade_lit.encoder.saved_writer.write_saved`."""
        settings = self.max_query_tokens, self.max_document_tokens, self.prompts, self.pruning
        write_saved(EncoderParts(self.query, self.document, self.tokenizer, *settings), folder)

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Fast tokenizer of both sides."""
        return self.tokenisation.tokenizer

    @property
    def max_query_tokens(self) -> int:
        """Queries are cut after this many tokens; may be set."""
        return self.tokenisation.max_query_tokens

    @max_query_tokens.setter
    def max_query_tokens(self, tokens: int) -> None:
        check_range("encoder", 1, max_query_tokens=tokens)
        self.tokenisation = replace(self.tokenisation, max_query_tokens=tokens)

    @property
    def max_document_tokens(self) -> int:
        """Documents are cut to this many tokens, special tokens included; may be set, as for longer documents."""
        return self.tokenisation.max_document_tokens

    @max_document_tokens.setter
    def max_document_tokens(self, tokens: int) -> None:
        special_tokens, positions = self.tokenizer.num_special_tokens_to_add(), self.document.max_positions
        if not special_tokens < tokens <= positions:
            raise UserError(
                f"max_document_tokens is {tokens}; it must be at least {special_tokens + 1}, "
                f"as the tokenizer adds {special_tokens} special tokens, "
                f"and at most {positions}, the positions that the model has."
            )
        self.tokenisation = replace(self.tokenisation, max_document_tokens=tokens)

    @property
    def prompts(self) -> Mapping[str, str]:
        """Texts put before every query and document, by name."""
        return self.tokenisation.prompts

    @property
    def max_active_dims(self) -> int | None:
        """The cap of both sides, None where there is none or they differ; see `pruning`."""
        return self.pruning.max_active_dims

    @max_active_dims.setter
    def max_active_dims(self, cap: int | None) -> None:
        self.pruning = replace(self.pruning, max_query_active_dims=cap, max_document_active_dims=cap)

    @property
    def vocab_size(self) -> int:
        """Dims of a vector."""
        return self.document.vocab_size

    @property
    def idf_weights(self) -> nn.Parameter:
        """Query weights, `[vocab]`."""
        return self.query.idf_weights

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return self.idf_weights.device

    def encode_query(
        self,
        inputs: str | Sequence[str] | np.ndarray,
        prompt_name: str | None = None,
        prompt: str | None = None,
        batch_size: int = 32,
        show_progress_bar: bool | None = None,
        convert_to_tensor: bool = True,
        convert_to_sparse_tensor: bool = True,
        save_to_cpu: bool = False,
        device: str | torch.device | None = None,
        max_active_dims: int | None = None,
        convert_to_csr: bool = False,
    ) -> Any:
        """Query vectors: IDF weights of the tokens present.

        Arguments and result are as of `encode_document`, the prompt named "query" if none is given. A lookup needs no
        batches and shows no progress.
        """
        token_ids = self.tokenisation.queries(_texts(inputs), prompt_name or "query", prompt)
        matrix = self.encode_query_tokens(token_ids, max_active_dims=max_active_dims)
        return self._converted(
            matrix, inputs, convert_to_csr, convert_to_tensor, convert_to_sparse_tensor, save_to_cpu, device
        )

    def encode_document(
        self,
        inputs: str | Sequence[str] | np.ndarray,
        prompt_name: str | None = None,
        prompt: str | None = None,
        batch_size: int = 32,
        show_progress_bar: bool | None = None,
        convert_to_tensor: bool = True,
        convert_to_sparse_tensor: bool = True,
        save_to_cpu: bool = False,
        device: str | torch.device | None = None,
        max_active_dims: int | None = None,
        convert_to_csr: bool = False,
    ) -> Any:
        """Document vectors: the masked-language model's logits, pooled.

        Args:
            inputs: one document or several.
            prompt_name: name of the prompt to use; "document" if neither this nor `prompt` is given.
            prompt: text to put before each document.
            batch_size: accepted for compatibility; see `tokens_per_batch` of `encode_document_tokens`.
            show_progress_bar: show a bar with documents/s (see `WorkProgress`); no bar if not given.
            convert_to_tensor: one stacked tensor, else a list of one vector each.
            convert_to_sparse_tensor: sparse COO tensors, else dense ones.
            save_to_cpu: return the result on the CPU.
            device: device to run on and of the result; moves the model there, as the peer does.
            max_active_dims: keep this many largest weights; the model's setting if not given. Its other limits
                (`pruning`) hold as well.
            convert_to_csr: return a scipy CSR array (float32 values, int32 indices), whatever the three above say.

        Returns:
            `[documents, vocab]`, or `[vocab]` for a single string; no texts give shape `[0]`, as in the peer, but CSR
            `[0, vocab]`.

        Raises:
            ValueError: unknown prompt name, or `max_active_dims` below 1.
        """
        if device is not None:
            self.to(device)
        token_ids = self.tokenisation.documents(_texts(inputs), prompt_name or "document", prompt)
        with WorkProgress("encoding", "documents", len(token_ids), show=bool(show_progress_bar)) as progress:
            matrix = self.encode_document_tokens(token_ids, on_batch=progress.advance, max_active_dims=max_active_dims)
        return self._converted(
            matrix, inputs, convert_to_csr, convert_to_tensor, convert_to_sparse_tensor, save_to_cpu, device
        )

    def encode_query_tokens(self, token_ids: Sequence[np.ndarray], *, max_active_dims: int | None = None) -> csr_array:
        """Query vectors `[queries, vocab]` from distinct token ids of each query (`tokenize_queries`)."""
        limit = self.pruning.max_query_active_dims if max_active_dims is None else max_active_dims
        return keep_largest(self.query.encode(token_ids), limit)

    def encode_document_tokens(
        self,
        token_ids: Sequence[np.ndarray],
        *,
        on_batch: Callable[[int], None] | None = None,
        max_active_dims: int | None = None,
        tokens_per_batch: int | None = None,
    ) -> csr_array:
        """Document vectors `[documents, vocab]` from token ids of each document (`tokenize_documents`).

        Args:
            token_ids: one array a document.
            on_batch: called with the number of documents of each batch, such as `WorkProgress.advance`.
            max_active_dims: keep this many largest weights; the model's setting if not given. Its other limits
                (`pruning`) hold as well.
            tokens_per_batch: documents of like length go in batches of so many tokens; chosen by device if not given.
        """
        budget = tokens_per_batch or _TOKENS_PER_BATCH.get(self.device.type, 4096)
        limit = self.pruning.max_document_active_dims if max_active_dims is None else max_active_dims
        pruning = replace(self.pruning, max_document_active_dims=limit)

        def encode(batch: Sequence[np.ndarray]) -> csr_array:
            return as_csr(self.document(Tokens.from_lists(batch).to(self.device)))

        with evaluation_mode(self), torch.no_grad():
            return encode_by_length(encode, token_ids, budget, pruning, on_batch)

    def similarity(self, embeddings_1: Vectors, embeddings_2: Vectors) -> Tensor:
        """Dot products, dense float32 `[rows 1, rows 2]` on the device of the first set."""
        scores = torch.from_numpy((as_csr(embeddings_1) @ as_csr(embeddings_2).T).toarray())
        return scores.to(embeddings_1.device) if isinstance(embeddings_1, Tensor) else scores

    def sparsity(self, embeddings: Vectors) -> dict[str, float]:
        """Mean number of non-zero dims, `active_dims`, and share of zeros, `sparsity_ratio`, of one or more vectors."""
        matrix = as_csr(embeddings)
        if 0 in matrix.shape:
            return {"active_dims": 0.0, "sparsity_ratio": 1.0}
        active_dims = matrix.nnz / matrix.shape[0]
        return {"active_dims": active_dims, "sparsity_ratio": 1.0 - active_dims / matrix.shape[1]}

    def decode(
        self, embeddings: Vectors, top_k: int | None = None
    ) -> list[tuple[str, float]] | list[list[tuple[str, float]]]:
        """The terms of each vector with their weights, the `top_k` largest or all, the largest first.

        Returns:
            A list of `(token, weight)` for one vector `[vocab]`, a list of such lists for several.

        Raises:
            ValueError: `top_k` below 1.
        """
        if top_k is not None and top_k < 1:
            raise ValueError(f"top_k must be at least 1, got {top_k}")
        rows = []
        for dims, weights in split_rows(as_csr(embeddings)):
            best = np.argsort(-weights, kind="stable")[:top_k]
            tokens = self.tokenizer.convert_ids_to_tokens(dims[best].tolist())
            rows.append(list(zip(tokens, weights[best].tolist(), strict=True)))
        return rows[0] if getattr(embeddings, "ndim", 2) == 1 else rows

    def intersection(self, embeddings_1: Vectors, embeddings_2: Vectors) -> Any:
        """What each shared dim adds to the dot product of one vector and others: elementwise products above 0.

        Returns:
            Of the shape of `embeddings_2`: a sparse tensor if that is a tensor, else CSR `[rows, vocab]`.

        Raises:
            ValueError: the first is no single vector, or the sizes differ.
        """
        one, other = as_csr(embeddings_1), as_csr(embeddings_2)
        if one.shape[0] != 1 or one.shape[1] != other.shape[1]:
            raise ValueError(
                f"intersection needs one vector and vectors of its size, got {one.shape} and {other.shape}"
            )
        product = csr_array(other.multiply(one.toarray()))
        product.data[product.data < 0] = 0
        product.eliminate_zeros()
        if not isinstance(embeddings_2, Tensor):
            return product
        sparse = csr_to_torch(product).to(embeddings_2.device)
        return sparse[0] if embeddings_2.ndim == 1 else sparse

    def explain(self, query: str, document: str) -> list[TermShare]:
        """What each term of a query adds to the score of a document, where from, and how; the largest share first."""
        vector = self.encode_query(query, convert_to_csr=True)
        read = self.tokenisation.read_document(document).ids
        weights = self.encode_document_tokens([read]).toarray()[0, vector.indices]
        tokens = self.tokenizer.convert_ids_to_tokens(vector.indices.tolist())
        return term_shares(vector, weights, tokens, read, self.raised_by(document, vector.indices))

    def raised_by(self, document: str, dims: Sequence[int] | np.ndarray) -> list[ReadToken | None]:
        """The token of a document that raised each of these dims: the one with the largest logit of it.

        Max pooling takes no other; with sum pooling it is the one that adds most. None where there are no tokens.
        """
        read = self.tokenisation.read_document(document)
        if not len(read.ids):
            return [None] * len(dims)
        wanted = torch.as_tensor(np.asarray(dims, np.int64), device=self.device)
        with evaluation_mode(self):
            places = self.document.raising_tokens(Tokens.from_lists([read.ids]).to(self.device), wanted).tolist()
        tokens = self.tokenizer.convert_ids_to_tokens(read.ids[places].tolist())
        spans = [read.spans[place] or (None, None) for place in places]
        return [ReadToken(token, *span) for token, span in zip(tokens, spans, strict=True)]

    def _converted(
        self,
        matrix: csr_array,
        inputs: str | Sequence[str] | np.ndarray,
        to_csr: bool,
        to_tensor: bool,
        sparse: bool,
        to_cpu: bool,
        device: str | torch.device | None,
    ) -> Any:
        if to_csr:
            return matrix
        tensor = csr_to_torch(matrix) if sparse else torch.from_numpy(matrix.toarray())
        tensor = tensor.to("cpu" if to_cpu else device or self.device)
        if isinstance(inputs, str):
            return tensor[0]
        if not to_tensor:
            return [tensor[i] for i in range(len(tensor))]
        return tensor if len(tensor) else tensor.new_empty(0)  # no text: the peer's shape is [0]


def _texts(inputs: str | Sequence[str] | np.ndarray) -> Sequence[str]:
    return [inputs] if isinstance(inputs, str) else list(inputs)
