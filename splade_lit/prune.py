"""`python -m splade_lit.prune`: how many weights of a document a model needs for search, and keeping no more.

    python -m splade_lit.prune runs/my_run/model --tasks docstrings
    python -m splade_lit.prune runs/my_run/model --tasks docstrings nfcorpus --within 0.005 --write
    python -m splade_lit.prune runs/my_run/model --max-document-active-dims 96 --write

Encodes each corpus once and measures it at many limits: the largest weights of a document, weights from a size on,
weights from a share of its largest one on. Prints a table and draws it (`pruning.html`). `--write` keeps the chosen
limit in the model, whose documents are pruned from then on wherever they are encoded; `docs/sparsity.md` tells more.
"""

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from splade_lit.command_line.arguments import LIMITS, CommandParser, number_from, positive_int
from splade_lit.command_line.exit_codes import run_command
from splade_lit.core.errors import UserError
from splade_lit.core.files import check_writable

if TYPE_CHECKING:
    from splade_lit.encoder.pruning import Pruning
    from splade_lit.evaluation.trade_off import Limit

CHANCE = "chance"
_CAPS = [16, 32, 64, 96, 128, 192, 256]
_WEIGHTS = [0.1, 0.2, 0.3, 0.5, 0.75]
_SHARES = [0.05, 0.1, 0.2, 0.3, 0.5]

logger = logging.getLogger(__name__)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure limits of documents, print and draw them, and write the chosen one into the model if asked to.

    Raises:
        UserError: there is no such model or task, nothing is asked for, or a file cannot be written.
    """
    settings = _parser().parse_args(arguments)
    _check(settings)
    from splade_lit.encoder.layout import find_saved
    from splade_lit.encoder.saved_writer import check_takes_pruning

    layout = find_saved(settings.model, settings.revision)
    if settings.write:
        check_takes_pruning(layout, settings.model)
    saved = layout.pruning
    limits: list[Limit] = []
    given = _is_given(settings)
    pruning = saved.of_documents.changed(vars(settings)) if given else saved
    if settings.tasks:
        limits, chosen = _measured(settings, saved, pruning if given else None)
        pruning = chosen.pruning if chosen else saved
    if settings.write:
        _write(Path(settings.model), saved.of_queries, pruning, limits)


def _is_given(settings: argparse.Namespace) -> bool:
    """Whether the command line has limits."""
    names = (option[2:].replace("-", "_") for option in LIMITS[1:])
    return any(getattr(settings, name) is not None for name in names)


def _check(settings: argparse.Namespace) -> None:
    if _is_given(settings) and settings.within is not None:
        raise UserError("A limit and --within are two ways to choose; give one of them.")
    if settings.write and not _is_given(settings) and settings.within is None:
        raise UserError("--write needs a choice: --within 0.005, or a limit such as --max-document-active-dims 96.")
    if not settings.tasks and settings.within is not None:
        raise UserError("--within chooses by what is measured; name tasks with --tasks.")
    if not settings.tasks and not settings.write:
        raise UserError("Nothing to do: name tasks to measure with --tasks, or give a limit and --write.")
    if settings.write and not Path(settings.model).is_dir():
        raise UserError(f"{settings.model} is not a folder to write into; save the model to one first.")
    check_writable(settings.output if settings.tasks else None, Path(settings.model) if settings.write else None)


def _measured(
    settings: argparse.Namespace, saved: "Pruning", given: "Pruning | None"
) -> tuple[list["Limit"], "Limit | None"]:
    """All limits with their figures, printed and drawn, and the chosen one."""
    from rich.text import Text

    from splade_lit.command_line.devices import pick_device
    from splade_lit.core.files import replace_text
    from splade_lit.data.tasks import load_tasks
    from splade_lit.encoder.model import AsymmetricSparseEncoder
    from splade_lit.encoder.pruning import Pruning
    from splade_lit.evaluation.task_evaluation import without_own_documents
    from splade_lit.evaluation.trade_off import choose, trade_off
    from splade_lit.report.pruning import finding, html, task_rows
    from splade_lit.report.rows import terminal_table, wide_console

    device = pick_device(settings.device)
    tasks = load_tasks(settings.tasks, settings.nanobeir_source, settings.nanobeir_revision)
    tasks = without_own_documents(tasks, None)
    encoder = AsymmetricSparseEncoder.load(settings.model, revision=settings.revision, device=device)
    encoder.pruning = saved.of_queries
    grid = [Pruning(max_document_active_dims=cap) for cap in sorted(settings.caps)]
    grid += [Pruning(min_document_weight=weight) for weight in sorted(settings.weights)]
    grid += [Pruning(min_document_weight_share=share) for share in sorted(settings.shares)]
    grid += [saved.of_documents, given or Pruning()]  # whole vectors are always there
    limits = trade_off(encoder, tasks, grid, settings.max_corpus_documents, show_progress_bar=True)
    chosen = None
    if given is not None:
        chosen = next(limit for limit in limits if limit.pruning == given)
    elif settings.within is not None:
        chosen = choose(limits, None if settings.within == CHANCE else settings.within)
    name = str(settings.model)
    replace_text(settings.output, html(limits, chosen, saved.of_documents, name))
    console = wide_console()
    for task in tasks:
        console.print(terminal_table(task_rows(limits, task.name, chosen, saved.of_documents)))
    console.print(Text(f"{finding(limits, chosen)}."))
    print(f"page: {settings.output}")
    return limits, chosen


def _write(folder: Path, of_queries: "Pruning", pruning: "Pruning", limits: Sequence["Limit"]) -> None:
    """Write the limits into the model and its card, and say what does not know of them."""
    from dataclasses import replace

    from splade_lit.card.pruned import tell_pruning
    from splade_lit.card.record import PrunedTask
    from splade_lit.encoder.layout import warn_of_export
    from splade_lit.encoder.saved_writer import write_pruning

    whole = limits[0].figures if limits else {}
    kept = next((limit.figures for limit in limits if limit.pruning == pruning), {})
    pruned = [
        PrunedTask(task, whole[task].ndcg, kept[task].ndcg, whole[task].active_dims, kept[task].active_dims)
        for task in whole
    ]
    new = replace(pruning, max_query_active_dims=of_queries.max_query_active_dims)
    write_pruning(new, folder)
    has_card = tell_pruning(folder, new, pruned)
    if pruning.min_document_weight or pruning.min_document_weight_share:
        logger.warning("sentence-transformers knows a number of dims alone, and gives the other weights too.")
    elif pruning.max_document_active_dims and not new.max_active_dims:
        logger.warning("sentence-transformers has one number of dims for both sides, and cuts queries to it too.")
    warn_of_export(folder, "limits")
    print(f"written: {folder} keeps of a document: {pruning.documents_keep}{'; its card says so' if has_card else ''}")


def _within(text: str) -> float | str:
    if text == CHANCE:
        return text
    try:
        return number_from(0, 1)(text)
    except argparse.ArgumentTypeError as error:
        raise argparse.ArgumentTypeError(f"{error}, or the word {CHANCE}") from None


def _parser() -> CommandParser:
    parser = CommandParser("prune", "How many weights of a document a model needs for search, and keeping no more.")
    parser.add_argument("model", metavar="MODEL_DIR", help="folder of a saved model, or its Hub id")
    parser.add_shared("--revision")
    parser.add_argument("--tasks", nargs="+", default=[], help="tasks to measure on, named as in evaluate")
    parser.add_shared("--nanobeir-source", "--nanobeir-revision", "--max-corpus-documents")
    parser.add_argument(
        "--caps", nargs="*", type=positive_int, default=_CAPS, help=f"numbers of weights to try ({_listed(_CAPS)})"
    )
    parser.add_argument(
        "--weights",
        nargs="*",
        type=number_from(0),
        default=_WEIGHTS,
        help=f"least weights to try ({_listed(_WEIGHTS)})",
    )
    parser.add_argument(
        "--shares",
        nargs="*",
        type=number_from(0, 1),
        default=_SHARES,
        help=f"shares of a document's largest weight to try ({_listed(_SHARES)})",
    )
    parser.add_argument(
        "--within",
        type=_within,
        metavar="LOSS",
        help="choose the smallest index that loses no more than LOSS of nDCG@10 on any task; `chance`: no more than "
        "may be chance (p of at least 0.05)",
    )
    parser.add_shared(
        "--max-document-active-dims",
        help="choose this: the N largest weights of a document; 0: all; limits that are not named stay",
    )
    parser.add_shared("--min-document-weight", help="choose this, alone or with the other two: weights from W on")
    parser.add_shared("--min-document-weight-share", help="choose this, likewise: weights from S times the largest on")
    parser.add_argument("--write", action="store_true", help="keep the chosen limit in the model, in place of its own")
    parser.add_argument("--output", type=Path, default=Path("pruning.html"), help="the page (%(default)s)")
    parser.add_shared("--device")
    return parser


def _listed(values: Sequence[float]) -> str:
    return " ".join(f"{value:g}" for value in values)


if __name__ == "__main__":
    run_command(main)
