"""Sparsity while training: how many dims are active, which ones, and which never."""

import lightning as L
import numpy as np

from splade_lit.core.distributed import merge, share
from splade_lit.core.ranges import check_range
from splade_lit.core.tokens import Tokens
from splade_lit.evaluation.sparsity import SparsityMetrics
from splade_lit.training.callbacks.hooks import RowsCallback, encoder_of, evaluating
from splade_lit.training.callbacks.loggers import MOST_BINS, log_figures, log_histogram


class SparsityMonitor(RowsCallback):
    """Reports how sparse a fixed sample of training pairs is, every so many optimizer steps and at the end.

    Logged under `sparsity/document_...`: mean, median and 95th percentile of active dims, the share of dead dims
    (active in no document of the sample) and the share of documents that the most frequent dim is active in;
    `sparsity/query_active_dims` is the mean of their queries. W&B and TensorBoard get both histograms of active dims,
    `sparsity/document_histogram` and `sparsity/query_histogram`. The whole report, with histograms and the names of the
    most frequent dims, goes to `sparsity.jsonl` in the folder of the run, a line each time.

    Args:
        every_n_steps: optimizer steps between two reports.
        num_documents: documents of the sample, and queries.
        num_frequent: how many of the most frequent dims are listed.
        bins: bins of each histogram of active dims, 512 at most.

    Raises:
        UserError: a setting is out of range.
    """

    file = "sparsity.jsonl"
    state_name = "reports"

    def __init__(
        self, every_n_steps: int = 500, num_documents: int = 256, num_frequent: int = 20, bins: int = 20
    ) -> None:
        check_range("SparsityMonitor", 1, every_n_steps=every_n_steps, num_documents=num_documents)
        check_range("SparsityMonitor", 1, MOST_BINS, bins=bins)
        check_range("SparsityMonitor", 0, num_frequent=num_frequent)
        super().__init__(every_n_steps)
        self.num_documents = num_documents
        self.num_frequent = num_frequent
        self.bins = bins
        self._sample: tuple[Tokens, Tokens] | None = None

    def look(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Report and log."""
        if self._sample is None:
            data = trainer.datamodule  # type: ignore[attr-defined]
            self._sample = data.sample_documents(self.num_documents, 1), data.sample_queries(self.num_documents, 1)
        documents, queries = ([ids.numpy() for ids in side] for side in self._sample)
        encoder = encoder_of(pl_module)
        metric = SparsityMetrics(encoder.vocab_size)
        with evaluating(trainer):
            metric.update(
                encoder.encode_query_tokens(queries[share()]), encoder.encode_document_tokens(documents[share()])
            )
            merge(metric)
        of_documents, of_queries = metric.statistics.corpus, metric.statistics.queries
        frequent = [(dim, part) for dim, part in of_documents.most_frequent(self.num_frequent) if part]
        names = encoder.tokenizer.convert_ids_to_tokens([dim for dim, _ in frequent])
        counts, edges = np.histogram(of_documents.sorted_row_sizes, self.bins)
        query_counts, query_edges = np.histogram(of_queries.sorted_row_sizes, self.bins)
        report = {
            "step": trainer.global_step,
            "num_documents": of_documents.num_rows,
            "active_dims": of_documents.active_dims,
            "active_dims_median": of_documents.quantile(0.5),
            "active_dims_p95": of_documents.quantile(0.95),
            "histogram_edges": edges.tolist(),
            "histogram_counts": counts.tolist(),
            "dead_dims_ratio": of_documents.dead_dims_ratio,
            "most_frequent": [(name, part) for name, (_, part) in zip(names, frequent, strict=True)],
            "query_active_dims": of_queries.active_dims,
            "query_histogram_edges": query_edges.tolist(),
            "query_histogram_counts": query_counts.tolist(),
        }
        self.add_rows(trainer, [report])
        figures = {
            "sparsity/document_active_dims": of_documents.active_dims,
            "sparsity/document_active_dims_median": float(of_documents.quantile(0.5)),
            "sparsity/document_active_dims_p95": float(of_documents.quantile(0.95)),
            "sparsity/dead_dims_ratio": of_documents.dead_dims_ratio,
            "sparsity/top_dim_document_share": frequent[0][1] if frequent else 0.0,
            "sparsity/query_active_dims": of_queries.active_dims,
        }
        log_figures(trainer, figures)
        log_histogram(trainer, "sparsity/document_histogram", of_documents.sorted_row_sizes, self.bins)
        log_histogram(trainer, "sparsity/query_histogram", of_queries.sorted_row_sizes, self.bins)
