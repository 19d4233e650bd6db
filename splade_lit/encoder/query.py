"""The query side: a lookup in a learned table of IDF weights, no neural network.

`q_j = w_j * [j in tokens(q)]`: presence counts, not frequency (Geng et al. 2024, "Towards competitive search relevance
for inference-free learned sparse retrievers"). In training nothing of size `[queries, vocab]` is made: scores gather
the documents' values at the queries' tokens.
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from scipy.sparse import csr_array
from torch import Tensor, nn

from splade_lit.core.tokens import Tokens
from splade_lit.encoder.idf import idf_of
from splade_lit.encoder.rows import look_up


class IdfQueryEncoder(nn.Module):
    """Table of one weight a vocabulary entry, float `[vocab]`; `frozen`, it stays as it is in training."""

    def __init__(self, idf_weights: Tensor | np.ndarray, frozen: bool = False) -> None:
        super().__init__()
        self.idf_weights = nn.Parameter(torch.as_tensor(idf_weights).detach().clone().float(), requires_grad=not frozen)

    @property
    def frozen(self) -> bool:
        """Whether the table stays as it is in training."""
        return not self.idf_weights.requires_grad

    def forward(self, tokens: Tokens) -> Float[Tensor, "queries vocab"]:
        """Dense query vectors, for small batches and for comparison; `scores` and `encode` do without."""
        embeddings = self.idf_weights.new_zeros(len(tokens), len(self.idf_weights))
        embeddings[tokens.text_index, tokens.input_ids] = self.idf_weights[tokens.input_ids]
        return embeddings

    def scores(self, tokens: Tokens, documents: Float[Tensor, "documents vocab"]) -> Float[Tensor, "queries documents"]:
        """Dot products of all queries, as their distinct tokens, with all documents, in the documents' dtype.

        `S_ij = sum_{t in q_i} w_t d_jt`.
        """
        weights = self.idf_weights[tokens.input_ids].to(documents.dtype)
        matches = documents[:, tokens.input_ids] * weights  # [documents, query tokens]
        scores = documents.new_zeros(len(tokens), len(documents))
        return scores.index_add(0, tokens.text_index, matches.T)

    def mean_embedding(self, tokens: Tokens) -> Float[Tensor, " vocab"]:
        """Mean of the vectors of one query or more.

        A penalty on this mean, as a batch of one, is the penalty on all of them: FLOPS takes the square of the mean,
        and what a dim holds is its weight or 0, so that nothing cancels.
        """
        counts = torch.zeros_like(self.idf_weights, requires_grad=False)
        counts.index_add_(0, tokens.input_ids, torch.ones_like(tokens.input_ids, dtype=counts.dtype))
        return self.idf_weights * (counts / len(tokens))

    def active_dims(self, tokens: Tokens) -> Tensor:
        """Mean number of active dims of the queries, without waiting for the device: scalar tensor."""
        return (self.idf_weights[tokens.input_ids] != 0).sum() / max(len(tokens), 1)

    @torch.no_grad()
    def encode(self, token_ids: Sequence[np.ndarray]) -> csr_array:
        """Query vectors as CSR `[queries, vocab]`; see `look_up`."""
        return look_up(self.idf_weights.float().cpu().numpy(), token_ids)

    @torch.no_grad()
    def project_nonnegative(self) -> None:
        """Set negative weights to zero (a projection, applied after an optimizer step)."""
        self.idf_weights.clamp_(min=0)


def idf_from_document_frequencies(document_frequencies: np.ndarray, num_documents: int) -> Tensor:
    """`idf_of` as a tensor: float32 `[vocab]`.

    Its scale makes scores start as large as with weights that are all 1. Without it they are five times as large, and
    the ranking loss, which has no temperature, learns from the worst negative only.

    >>> idf_from_document_frequencies(np.array([0, 1, 3]), num_documents=3)
    tensor([6.0212, 2.8401, 0.3866])
    """
    return torch.from_numpy(idf_of(document_frequencies, num_documents))
