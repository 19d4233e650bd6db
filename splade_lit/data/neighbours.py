"""An order of rows in which rows that are alike stand next to each other."""

import numpy as np
from jaxtyping import Float, Int64

_CHUNK = 32_768  # rows among which neighbours are sought: time and memory grow with its square


def neighbour_order(
    vectors: Float[np.ndarray, "rows dims"], group_rows: int, seed: int = 0
) -> Int64[np.ndarray, " rows"]:
    """Rows in groups: one drawn by chance, then those left that are nearest to it, the nearest first.

    Nearest is by dot product. Of many rows, neighbours are sought among some ten thousand drawn by chance. The last
    groups are of what the others left, and less alike.

    Args:
        vectors: one of each row.
        group_rows: rows of a group.
        seed: of what is drawn.

    >>> neighbour_order(np.array([[1.0, 0.0], [0.0, 1.0], [0.9, 0.1], [0.1, 0.9]]), 2, seed=1).reshape(2, 2).tolist()
    [[0, 2], [1, 3]]
    """
    drawn = np.random.default_rng(seed).permutation(len(vectors))
    chunks = [_grouped(chunk, vectors, group_rows) for chunk in np.array_split(drawn, -(-len(drawn) // _CHUNK) or 1)]
    return np.concatenate(chunks)


def _grouped(rows: np.ndarray, vectors: np.ndarray, group_rows: int) -> np.ndarray:
    """These rows, which are in an order drawn by chance, in groups."""
    left, left_vectors = rows, vectors[rows]
    groups = []
    while len(left):
        # As many groups at a time as use up half of the rows: those that are used up are passed over until then.
        free = np.ones(len(left), dtype=bool)
        for first in range(len(left)):
            if free.mean() <= 0.5:
                break
            if not free[first]:
                continue
            likeness = np.where(free, left_vectors @ left_vectors[first], -np.inf)
            likeness[first] = np.inf
            size = min(group_rows, int(free.sum()))
            nearest = np.argpartition(-likeness, size - 1)[:size]
            groups.append(left[nearest[np.argsort(-likeness[nearest], kind="stable")]])
            free[nearest] = False
        left, left_vectors = left[free], left_vectors[free]
    return np.concatenate([rows[:0], *groups])
