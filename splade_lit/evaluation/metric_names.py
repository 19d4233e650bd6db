"""The metrics that tables, charts and files of figures show; light to import, as the options of commands name them."""

METRICS = {"ndcg@10": "nDCG@10", "mrr@10": "MRR@10", "recall@10": "recall@10", "map@100": "MAP@100"}
"""Name of a metric, and how people write it."""
