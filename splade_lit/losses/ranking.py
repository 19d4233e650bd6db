"""Ranking losses over a matrix of scores."""

import torch
from jaxtyping import Float
from torch import Tensor


def in_batch_ranking_loss(scores: Float[Tensor, "queries documents"]) -> Float[Tensor, ""]:
    """Mean over queries of `logsumexp_j S_ij - S_ii`: cross-entropy with all other documents as negatives.

    The positive of query i is document i; documents beyond the number of queries are hard negatives of the batch and
    count for every query (Henderson et al. 2017; sentence-transformers' MultipleNegativesRankingLoss with scale 1).
    Computed in fp32 at least.

    Args:
        scores: dot products of the queries with the positives, then the hard negatives.

    >>> in_batch_ranking_loss(torch.tensor([[2.0, 0.0], [0.0, 2.0]]))
    tensor(0.1269)
    """
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    return (torch.logsumexp(scores, dim=1) - scores.diagonal()).mean()
