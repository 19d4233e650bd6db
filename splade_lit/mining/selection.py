"""Which of the documents that a miner finds become hard negatives: ranks, margins, and how they are drawn."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float32, Int64

from splade_lit.core.errors import UserError
from splade_lit.core.ranges import LARGEST_SEED, check_choice, check_range

Strategy = Literal["top", "random"]


@dataclass(frozen=True)
class Rules:
    """What a negative must be. The conditions are those of sentence-transformers' `mine_hard_negatives`.

    Attributes:
        num_negatives: negatives a pair.
        first_rank: how many of the best documents are passed over; answers of the query do not count.
        last_rank: how many of the best documents are looked at, those passed over among them.
        strategy: take the `top` ones by score, or draw at `random`.
        absolute_margin: by how much the score of a negative is below that of the query's worst answer, at least.
        relative_margin: the same, as a share of the answer's score (Moreira et al. 2024, NV-Retriever, which takes
            0.05); a share of its magnitude where that is negative.
        max_score: highest score of a negative.
        min_score: lowest score of a negative.
        seed: of what is drawn.

    Raises:
        UserError: one is out of range, or there are fewer ranks than negatives.
    """

    num_negatives: int = 5
    first_rank: int = 10
    last_rank: int = 100
    strategy: Strategy = "random"
    absolute_margin: float | None = None
    relative_margin: float | None = None
    max_score: float | None = None
    min_score: float | None = None
    seed: int = 12

    def __post_init__(self) -> None:
        check_range("", 1, num_negatives=self.num_negatives)
        check_range("", 0, LARGEST_SEED, seed=self.seed)
        check_range("", absolute_margin=self.absolute_margin, relative_margin=self.relative_margin)
        check_range("", max_score=self.max_score, min_score=self.min_score)
        check_choice("strategy", self.strategy, ("top", "random"))
        if not 0 <= self.first_rank <= self.last_rank - self.num_negatives:
            raise UserError(
                f"ranks {self.first_rank}:{self.last_rank} leave no room for {self.num_negatives} negatives; give "
                f"--ranks FIRST:LAST, such as 10:100."
            )

    @property
    def need_answers(self) -> bool:
        """Whether scores of answers count."""
        return self.absolute_margin is not None or self.relative_margin is not None


def in_ranks(candidates: Bool[np.ndarray, "queries k"], rules: Rules) -> Bool[np.ndarray, "queries k"]:
    """Which of the candidates are within the ranks; the documents of a query stand in the order of their scores.

    >>> candidates = np.array([[True, False, True, True, True]])
    >>> in_ranks(candidates, Rules(num_negatives=1, first_rank=1, last_rank=3))
    array([[False, False,  True,  True, False]])
    """
    ranks = np.cumsum(candidates, axis=1) - 1
    return candidates & (ranks >= rules.first_rank) & (ranks < rules.last_rank)


def refused(
    scores: Float32[np.ndarray, "queries k"], answers: Float32[np.ndarray, " queries"], rules: Rules
) -> Iterator[tuple[str, Bool[np.ndarray, "queries k"]]]:
    """For each condition that is set its name, and which documents do not meet it.

    Args:
        scores: of the documents.
        answers: the score of each query's worst answer; looked at only for margins.
        rules: the conditions.
    """
    if rules.absolute_margin is not None:
        yield "absolute margin", scores + np.float32(rules.absolute_margin) > answers[:, None]
    if rules.relative_margin is not None:
        most = answers - np.abs(answers) * np.float32(rules.relative_margin)
        yield "relative margin", scores > most[:, None]
    if rules.max_score is not None:
        yield "highest score", scores > np.float32(rules.max_score)
    if rules.min_score is not None:
        yield "lowest score", scores < np.float32(rules.min_score)


def drawn(
    scores: Float32[np.ndarray, "rows k"], allowed: Bool[np.ndarray, "rows k"], rules: Rules, rng: np.random.Generator
) -> Int64[np.ndarray, "rows negatives"]:
    """The places of the negatives of each row, highest score first; -1 where there are no more.

    >>> scores = np.array([[9, 8, 7, 6]], dtype=np.float32)
    >>> rules = Rules(num_negatives=3, first_rank=0, strategy="top")
    >>> drawn(scores, np.array([[False, True, False, True]]), rules, np.random.default_rng(0))
    array([[ 1,  3, -1]])
    """
    keys = -scores if rules.strategy == "top" else rng.random(scores.shape)
    places = np.argsort(np.where(allowed, keys, np.inf), axis=1, kind="stable")[:, : rules.num_negatives]
    found = np.take_along_axis(allowed, places, axis=1)
    order = np.argsort(np.where(found, -np.take_along_axis(scores, places, axis=1), np.inf), axis=1, kind="stable")
    places = np.where(np.take_along_axis(found, order, axis=1), np.take_along_axis(places, order, axis=1), -1)
    missing = rules.num_negatives - places.shape[1]
    return np.pad(places, ((0, 0), (0, max(missing, 0))), constant_values=-1)
