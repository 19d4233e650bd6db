"""Query weights from the documents that hold each token, and weights that were learned moved to another corpus."""

import numpy as np
from jaxtyping import Bool, Float32


def idf_of(document_frequencies: np.ndarray, num_documents: int) -> Float32[np.ndarray, " vocab"]:
    """IDF weights of a corpus: `log(1 + (N - df + 0.5) / (df + 0.5))` (Robertson and Zaragoza 2009; Lucene's form).

    `df`, int `[vocab]`, counts the documents that hold each token. Weights are never negative; a token that no document
    holds gets the largest one. All are scaled by one number, so that the tokens of a document weigh 1 on average.

    >>> idf_of(np.array([0, 1, 3]), num_documents=3)
    array([6.0211563 , 2.8400538 , 0.38664868], dtype=float32)
    """
    df = np.asarray(document_frequencies, dtype=np.float64)
    weights = np.log1p((num_documents - df + 0.5) / (df + 0.5))
    return (weights * (df.sum() / (df @ weights)) if df.any() else weights).astype(np.float32)


def moved_weights(
    learned: np.ndarray,
    document_frequencies: np.ndarray,
    num_documents: int,
    mix: float,
    reference: np.ndarray | None = None,
) -> tuple[Float32[np.ndarray, " vocab"], Bool[np.ndarray, " vocab"]]:
    """Learned query weights as they might be had the model been trained on another corpus.

    `w'_j = w_j (a v_j / r_j)^mix` with the corpus's IDF `v` and a reference `r`: the IDF of the documents that the
    model was trained on. What training has found out beyond IDF, `w_j / r_j`, then stays, and IDF is exchanged: for
    `mix` 1 wholly. Where nobody knows `r`, `w` takes its place: `w'_j = w_j^(1 - mix) (a v_j)^mix`, the geometric mean,
    weighted by `mix`, of what was learned and the corpus's IDF. `a` is one number, such that the tokens of a document
    keep their weight on average (of logarithms): those that move stay comparable with those that do not.

    A token that no document of the corpus holds keeps its weight, for nothing is known of it, and so does one whose
    weight or reference is not above 0: training has switched it off.

    Args:
        learned: query weights `[vocab]`.
        document_frequencies: documents of the corpus that hold each token, `[vocab]`.
        num_documents: documents of the corpus.
        mix: from 0, where nothing moves, to 1.
        reference: `r`, `[vocab]`, if it is known.

    Returns:
        The weights, and which ones could move.
    """
    learned = np.asarray(learned, dtype=np.float64)
    reference = learned if reference is None else np.asarray(reference, dtype=np.float64)
    df = np.asarray(document_frequencies, dtype=np.float64)
    idf = idf_of(document_frequencies, num_documents).astype(np.float64)
    movable = (df > 0) & (learned > 0) & (reference > 0) & (idf > 0)
    change = np.zeros_like(learned)
    change[movable] = np.log(idf[movable] / reference[movable])
    if movable.any():
        change[movable] -= np.average(change[movable], weights=df[movable])
    return (learned * np.exp(mix * change)).astype(np.float32), movable
