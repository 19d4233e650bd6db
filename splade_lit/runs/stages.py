"""Figures of retrieval by set, from the full names of metrics.json."""

from collections.abc import Mapping

MAIN = "dot_ndcg@10"


def by_set(metrics: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """Set or group to its figures under the names that they have in the metadata of a card.

    >>> by_set({"NanoNQ_dot_ndcg@10": 0.5, "NanoNQ_corpus_active_dims": 60.0, "bm25_words_ndcg@10": 0.3})
    {'NanoNQ': {'dot_ndcg@10': 0.5, 'corpus_active_dims': 60.0}}
    """
    sets = [name.removesuffix(f"_{MAIN}") for name in metrics if name.endswith(f"_{MAIN}")]
    return {
        one: {name.removeprefix(f"{one}_"): value for name, value in metrics.items() if _belongs(name, one)}
        for one in sets
    }


def _belongs(name: str, one: str) -> bool:
    rest = name.removeprefix(f"{one}_")
    return rest != name and rest.startswith(("dot_", "query_", "corpus_", "avg_"))


def main_figure(metrics: Mapping[str, float]) -> str | None:
    """Full name of the figure that stands for all: nDCG@10 of the first group, else of the first set.

    >>> main_figure({"NanoNQ_dot_ndcg@10": 0.5, "NanoBEIR_mean_dot_ndcg@10": 0.4})
    'NanoBEIR_mean_dot_ndcg@10'
    """
    names = [name for name in metrics if name.endswith(f"_{MAIN}")]
    return next((name for name in names if name.endswith(f"_mean_{MAIN}")), names[0] if names else None)
