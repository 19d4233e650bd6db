"""Sparsity while training: how many dims are active, which ones, and which never."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import lightning as L

from splade_lit.core.distributed import merge, share
from splade_lit.core.files import replace_text
from splade_lit.core.ranges import check_range
from splade_lit.core.tokens import Tokens
from splade_lit.evaluation.sparsity import SparsityMetrics, SparsityStatistics
from splade_lit.training.callbacks.hooks import EveryNSteps, encoder_of
from splade_lit.training.callbacks.loggers import MOST_BINS, log_figures, log_histogram
from splade_lit.training.callbacks.phases import evaluating


@dataclass(frozen=True)
class SparsityReport:
    """How the active dims of a sample of documents are spread, and those of their queries.

    Attributes:
        step: optimizer steps done.
        num_documents: size of the sample.
        active_dims: mean active dims of a document.
        active_dims_median: what half of the documents stay within.
        active_dims_p95: what 95 of 100 documents stay within.
        histogram_edges: bounds of the histogram's bins, active dims.
        histogram_counts: documents in each bin.
        dead_dims_ratio: share of the vocabulary that is active in no document of the sample.
        most_frequent: the dims active in most documents, with the share of documents that they are active in.
        query_active_dims: mean active dims of a query.
        query_histogram_edges: bounds of the bins of the queries' histogram; reports of old runs have none.
        query_histogram_counts: queries in each bin.
    """

    step: int
    num_documents: int
    active_dims: float
    active_dims_median: int
    active_dims_p95: int
    histogram_edges: list[float]
    histogram_counts: list[int]
    dead_dims_ratio: float
    most_frequent: list[tuple[str, float]]
    query_active_dims: float = 0.0
    query_histogram_edges: list[float] = field(default_factory=list)
    query_histogram_counts: list[int] = field(default_factory=list)

    @classmethod
    def of(
        cls,
        statistics: SparsityStatistics,
        queries: SparsityStatistics,
        tokens: list[str],
        step: int,
        num_frequent: int,
        bins: int,
    ) -> "SparsityReport":
        """The report on document and query vectors.

        Args:
            statistics: of the documents, one at least.
            queries: of the queries, one at least.
            tokens: name of each dim.
            step: optimizer steps done.
            num_frequent: how many of the most frequent dims to list.
            bins: bins of each histogram.
        """
        counts, edges = statistics.histogram(bins)
        query_counts, query_edges = queries.histogram(bins)
        return cls(
            step=step,
            num_documents=statistics.num_rows,
            active_dims=statistics.active_dims,
            active_dims_median=statistics.quantile(0.5),
            active_dims_p95=statistics.quantile(0.95),
            histogram_edges=edges.tolist(),
            histogram_counts=counts.tolist(),
            dead_dims_ratio=statistics.dead_dims_ratio,
            most_frequent=[(tokens[dim], share) for dim, share in statistics.most_frequent(num_frequent) if share],
            query_active_dims=queries.active_dims,
            query_histogram_edges=query_edges.tolist(),
            query_histogram_counts=query_counts.tolist(),
        )


class SparsityMonitor(L.Callback):
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

    def __init__(
        self, every_n_steps: int = 500, num_documents: int = 256, num_frequent: int = 20, bins: int = 20
    ) -> None:
        check_range("SparsityMonitor", 1, every_n_steps=every_n_steps, num_documents=num_documents)
        check_range("SparsityMonitor", 1, MOST_BINS, bins=bins)
        check_range("SparsityMonitor", 0, num_frequent=num_frequent)
        self.num_documents = num_documents
        self.num_frequent = num_frequent
        self.bins = bins
        self.reports: list[SparsityReport] = []
        self._timing = EveryNSteps(every_n_steps)
        self._sample: tuple[Tokens, Tokens] | None = None

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        """Report, where due."""
        if self._timing.due(trainer):
            self._report(trainer, pl_module)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Report the final model, unless it has just been reported."""
        if not self.reports or self.reports[-1].step != trainer.global_step:
            self._report(trainer, pl_module)

    def state_dict(self) -> dict[str, Any]:
        """The reports so far, as plain types."""
        return {"reports": [asdict(report) for report in self.reports]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from the reports of a checkpoint."""
        self.reports = [SparsityReport(**report) for report in state_dict["reports"]]

    def _report(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
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
        statistics, query_statistics = metric.statistics.corpus, metric.statistics.queries
        tokens = list(encoder.tokenizer.convert_ids_to_tokens(list(range(encoder.vocab_size))))
        report = SparsityReport.of(
            statistics, query_statistics, tokens, trainer.global_step, self.num_frequent, self.bins
        )
        self.reports.append(report)
        if not trainer.is_global_zero:
            return
        figures = {
            "sparsity/document_active_dims": report.active_dims,
            "sparsity/document_active_dims_median": float(report.active_dims_median),
            "sparsity/document_active_dims_p95": float(report.active_dims_p95),
            "sparsity/dead_dims_ratio": report.dead_dims_ratio,
            "sparsity/top_dim_document_share": report.most_frequent[0][1] if report.most_frequent else 0.0,
            "sparsity/query_active_dims": report.query_active_dims,
        }
        log_figures(trainer, figures)
        log_histogram(trainer, "sparsity/document_histogram", statistics.sorted_row_sizes, self.bins)
        log_histogram(trainer, "sparsity/query_histogram", query_statistics.sorted_row_sizes, self.bins)
        lines = [json.dumps(asdict(report)) for report in self.reports]
        replace_text(Path(trainer.default_root_dir) / "sparsity.jsonl", "\n".join(lines) + "\n")
