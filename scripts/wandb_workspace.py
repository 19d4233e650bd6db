"""Makes the dashboard of a W&B project: losses, retrieval, sparsity, terms of example documents, energy and emissions.

    python scripts/wandb_workspace.py --project splade
    python scripts/wandb_workspace.py --project splade --metric docstrings_dot_ndcg@10
    python scripts/wandb_workspace.py --project splade --entity me --print

The project is made if there is none. Needs `pip install -c constraints.txt -e '.[dashboard]'` and `wandb login`;
`--print` needs no network and prints the view as JSON.
"""

import argparse
import re
import sys
from collections.abc import Sequence
from typing import Any

import wandb
import wandb_workspaces.reports.v2 as wr
import wandb_workspaces.workspaces as ws

from splade_lit.training.callbacks.terms import TABLE
from splade_lit.training.callbacks.wandb_log import STEP, best_value

METRIC = "NanoBEIR_mean_dot_ndcg@10"


def lines(title: str, *metrics: str, unit: str, **settings: Any) -> wr.LinePlot:
    """Metrics over optimizer steps."""
    return wr.LinePlot(title=title, x=STEP, y=list(metrics), title_x="optimizer step", title_y=unit, **settings)


def all_tasks(title: str, suffix: str, unit: str) -> wr.LinePlot:
    """A metric of every retrieval task over optimizer steps."""
    return lines(title, unit=unit, metric_regex=f"^val/.*_{re.escape(suffix)}$")


def workspace(entity: str, project: str, name: str, metric: str) -> ws.Workspace:
    """The dashboard, not yet saved; runs are listed with `metric` and their active dims on its task, best and last."""
    quality, active_dims = f"val/{metric}", f"val/{metric.partition('_dot_')[0]}_corpus_active_dims"
    of_documents = (f"sparsity/document_active_dims{suffix}" for suffix in ("", "_median", "_p95"))
    learning_rates = ("train/learning_rate_transformer", "train/learning_rate_idf")
    panels = {
        "Retrieval": [
            all_tasks("nDCG@10 of each task", "dot_ndcg@10", "nDCG@10"),
            all_tasks("MRR@10 of each task", "dot_mrr@10", "MRR@10"),
            all_tasks("Recall@10 of each task", "dot_recall@10", "recall@10"),
            wr.ScatterPlot(
                title="Quality against active dims of a document, a point a run",
                x=wr.SummaryMetric(f"{active_dims}.last"),
                y=wr.SummaryMetric(f"{quality}.last"),
            ),
        ],
        "Losses": [
            lines("Loss: trained on, held out", "train/loss", "val/loss", unit="loss"),
            lines("Ranking loss: trained on, held out", "train/ranking_loss", "val/ranking_loss", unit="loss"),
            lines("Penalty on documents, without its weight", "train/document_penalty", unit="penalty", log_y=True),
            lines("Weight of the penalty", "train/lambda_d", unit="lambda_d"),
            lines("Learning rates", *learning_rates, unit="learning rate", log_y=True),
        ],
        "Sparsity": [
            lines("Active dims of a document: mean, median, 95th percentile", *of_documents, unit="active dims"),
            all_tasks("Active dims of a document, each task", "corpus_active_dims", "active dims"),
            all_tasks("Expected FLOPS: dims that a query and a document share", "avg_flops", "dims"),
            lines("Active dims of documents over steps", "sparsity/document_histogram", unit="active dims"),
            lines("Active dims of queries over steps", "sparsity/query_histogram", unit="active dims"),
            lines("Active dims of a query", "sparsity/query_active_dims", unit="active dims"),
            lines("Share of dims that no document uses", "sparsity/dead_dims_ratio", unit="share of the vocabulary"),
            lines("Share of documents with the most frequent dim", "sparsity/top_dim_document_share", unit="share"),
        ],
        "Terms of example documents": [wr.WeavePanelSummaryTable(table_name=TABLE, layout=wr.Layout(w=24, h=14))],
        "Energy and emissions": [
            lines("Energy of the run", "carbon/energy_kwh_total", unit="kWh"),
            lines("Emissions of the run", "carbon/emissions_g_total", unit="g CO2eq"),
        ],
    }
    sections = {title: ws.Section(name=title, panels=shown, is_open=True) for title, shown in panels.items()}
    sections["Terms of example documents"].layout_settings = ws.SectionLayoutSettings(columns=1, rows=1)
    pinned = [f"summary:{one}.{value}" for one in (quality, active_dims) for value in (best_value(one), "last")]
    return ws.Workspace(
        entity=entity,
        project=project,
        name=name,
        sections=list(sections.values()),
        settings=ws.WorkspaceSettings(x_axis=STEP),
        runset_settings=ws.RunsetSettings(pinned_columns=[*pinned, "summary:carbon/emissions_g_total"]),
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the project's view, or print it."""
    parser = argparse.ArgumentParser(description="Make the dashboard of a W&B project.")
    parser.add_argument("--project", required=True, help="name of the project, as in the logger's settings")
    parser.add_argument("--entity", help="user or team; that of `wandb login` if not given")
    parser.add_argument("--name", default="splade_lit", help="title of the view")
    parser.add_argument("--metric", default=METRIC, help="retrieval metric by which runs are compared (%(default)s)")
    parser.add_argument("--print", action="store_true", dest="printed", help="print the view as JSON, save nothing")
    settings = parser.parse_args(arguments)
    if "_dot_" not in settings.metric:
        parser.error(f"--metric is {settings.metric}; give a retrieval metric, such as {METRIC}")
    if settings.printed:
        view = workspace(settings.entity or "", settings.project, settings.name, settings.metric)
        print(view._model.model_dump_json(by_alias=True, exclude_none=True, indent=2))
        return
    try:
        api = wandb.Api()
        entity = settings.entity or api.default_entity
        api.create_project(settings.project, entity)
        view = workspace(entity, settings.project, settings.name, settings.metric).save()
    except (wandb.Error, ValueError) as error:
        sys.exit(f"error: W&B does not take the view ({error}); try `wandb login` and the name of your --entity.")
    print(view.url)


if __name__ == "__main__":
    main()
