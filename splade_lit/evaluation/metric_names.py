"""The metrics that tables, charts and files of figures show; light to import, as the options of commands name them.

Names in small letters are those of sentence-transformers' evaluators (`ndcg@10`); a measure that was asked for has the
name that the library ir_measures writes it by (`nDCG@10`, `AP(rel=2)@100`). Both follow `_dot_` in full names.
"""

import re

METRICS = {"ndcg@10": "nDCG@10", "mrr@10": "MRR@10", "recall@10": "recall@10", "map@100": "MAP@100"}
"""Name of a metric, and how people write it."""

LIST_METRICS = {"map": "MAP", "mrr@10": "MRR@10", "ndcg@10": "nDCG@10"}
"""Name of a metric of a re-ranked list, and how people write it."""

_PEER = re.compile(r"(accuracy|precision|recall|ndcg|mrr|map)@\d+")
_SPARSITY = ("query_", "corpus_", "avg_")


def is_sparsity(figure: str) -> bool:
    """Whether the plain name of a figure is one of sparsity: not of a ranking."""
    return figure.startswith(_SPARSITY)


def is_measure(figure: str) -> bool:
    """Whether the plain name of a figure is that of a measure of ir_measures.

    >>> [is_measure(name) for name in ("nDCG@10", "AP", "ndcg@10", "corpus_active_dims")]
    [True, True, False, False]
    """
    return not is_sparsity(figure) and _PEER.fullmatch(figure) is None


def shown_name(metric: str) -> str:
    """A metric as people write it; the measure that would look like one of the peer's says whose it is.

    >>> shown_name("ndcg@10"), shown_name("R@1000"), shown_name("nDCG@10")
    ('nDCG@10', 'R@1000', 'ir nDCG@10')
    """
    return METRICS.get(metric) or (f"ir {metric}" if metric in METRICS.values() else metric)
