"""`python -m splade_lit.compare`: runs and other systems side by side, as a table and as a page.

    python -m splade_lit.compare runs/quickstart
    python -m splade_lit.compare runs/a runs/b --results peer=peer_metrics.json --output report.html
    python -m splade_lit.compare evaluated/a evaluated/b --metric R@1000

A run is the folder that `fit` leaves, whole or not, or one with the metrics.json and per_query.jsonl that `evaluate`
writes. `--results` takes what other systems leave: figures as JSON or CSV, as sentence-transformers' evaluators write
them, or rankings as TREC runs, named after their tasks. BM25 is there where a run has evaluated it.

Search is measured on the spot for each run that has its model, on a sample of the corpus that it was evaluated on. The
page is one file without a script; it opens without a network.
"""

from collections.abc import Sequence
from pathlib import Path

from splade_lit.command_line.arguments import CommandParser, at_least
from splade_lit.command_line.exit_codes import run_command
from splade_lit.core.errors import UserError
from splade_lit.core.files import check_writable
from splade_lit.evaluation.metric_names import METRICS


def main(arguments: Sequence[str] | None = None) -> None:
    """Read, measure, print the tables and write the page.

    Raises:
        UserError: a folder or file is none of what is compared, or the page cannot be written.
    """
    settings = _parser().parse_args(arguments)
    if not settings.runs and not settings.results:
        raise UserError("Nothing to compare: give folders of runs, such as runs/quickstart, or --results.")
    check_writable(settings.output)
    from splade_lit.report.write import write_report

    write_report(settings)


def _parser() -> CommandParser:
    parser = CommandParser(
        "compare", "Runs and other systems side by side: quality, sparsity, cost, and which differences are chance."
    )
    parser.add_argument("runs", nargs="*", type=Path, metavar="RUN", help="folder of a run, whole or not")
    parser.add_argument(
        "--results",
        nargs="+",
        default=[],
        metavar="[NAME=]PATH",
        help="other systems: figures as .json or .csv, of queries as .jsonl, rankings as .trec or a folder of them",
    )
    parser.add_argument("--output", type=Path, default=Path("compare.html"), help="the page (%(default)s)")
    parser.add_argument(
        "--metric",
        default="ndcg@10",
        help=f"the figure that counts: {', '.join(METRICS)}, or a measure that was computed, as R@1000 (%(default)s)",
    )
    parser.add_argument(
        "--measures",
        nargs="+",
        default=[],
        metavar="NAME",
        help="measures by the names of ir_measures to judge rankings by (figures and runs show those that they have)",
    )
    parser.add_argument("--set", help="set or group that counts, such as NanoNQ (default: that of most systems)")
    parser.add_argument("--tasks", nargs="+", help="tasks to search and to judge rankings by (default: the runs' own)")
    parser.add_shared("--nanobeir-source", "--nanobeir-revision")
    parser.add_argument(
        "--search-documents",
        type=at_least(0),
        default=2000,
        help="documents to measure search on, which are encoded first, and all judged ones; 0: none (%(default)s)",
    )
    parser.add_shared("--device")
    return parser


if __name__ == "__main__":
    run_command(main)
