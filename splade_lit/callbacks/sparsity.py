"""Sparsity of documents while training: how many dims are active, which ones, and which never."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import lightning as L

from splade_lit.callbacks.hooks import EveryNSteps, encoder_of, log_figures
from splade_lit.callbacks.phases import evaluating
from splade_lit.evaluation.sparsity import SparsityStatistics
from splade_lit.files import replace_text
from splade_lit.tokens import Tokens


@dataclass(frozen=True)
class SparsityReport:
    """How the active dims of a sample of documents are spread.

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

    @classmethod
    def of(
        cls, statistics: SparsityStatistics, tokens: list[str], step: int, num_frequent: int, bins: int
    ) -> "SparsityReport":
        """The report on document vectors.

        Args:
            statistics: of the documents, one at least.
            tokens: name of each dim.
            step: optimizer steps done.
            num_frequent: how many of the most frequent dims to list.
            bins: bins of the histogram.
        """
        counts, edges = statistics.histogram(bins)
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
        )


class SparsityMonitor(L.Callback):
    """Reports how sparse a fixed sample of training documents is, every so many optimizer steps and at the end.

    Logged under `sparsity/document_...`: mean, median and 95th percentile of active dims, the share of dead dims
    (active in no document of the sample) and the share of documents that the most frequent dim is active in. The whole
    report, with the histogram and the names of the most frequent dims, goes to `sparsity.jsonl` in the folder of the
    run, a line each time.

    Args:
        every_n_steps: optimizer steps between two reports.
        num_documents: documents of the sample.
        num_frequent: how many of the most frequent dims are listed.
        bins: bins of the histogram of active dims.
    """

    def __init__(
        self, every_n_steps: int = 500, num_documents: int = 256, num_frequent: int = 20, bins: int = 20
    ) -> None:
        self.num_documents = num_documents
        self.num_frequent = num_frequent
        self.bins = bins
        self.reports: list[SparsityReport] = []
        self._timing = EveryNSteps(every_n_steps)
        self._sample: Tokens | None = None

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
        if not trainer.is_global_zero:
            return
        if self._sample is None:
            self._sample = trainer.datamodule.sample_documents(self.num_documents, seed=1)  # type: ignore[attr-defined]
        encoder = encoder_of(pl_module)
        with evaluating(trainer):
            documents = encoder.encode_document_tokens([ids.numpy() for ids in self._sample])
        tokens = list(encoder.tokenizer.convert_ids_to_tokens(list(range(encoder.vocab_size))))
        statistics = SparsityStatistics.of(documents)
        report = SparsityReport.of(statistics, tokens, trainer.global_step, self.num_frequent, self.bins)
        self.reports.append(report)
        figures = {
            "sparsity/document_active_dims": report.active_dims,
            "sparsity/document_active_dims_median": float(report.active_dims_median),
            "sparsity/document_active_dims_p95": float(report.active_dims_p95),
            "sparsity/dead_dims_ratio": report.dead_dims_ratio,
            "sparsity/top_dim_document_share": report.most_frequent[0][1] if report.most_frequent else 0.0,
        }
        log_figures(trainer, figures)
        lines = [json.dumps(asdict(report)) for report in self.reports]
        replace_text(Path(trainer.default_root_dir) / "sparsity.jsonl", "\n".join(lines) + "\n")
