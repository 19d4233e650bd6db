"""`python -m splade_lit.query_table`: fit the query weights of a model to a corpus of your own, documents untouched.

    python -m splade_lit.query_table runs/my_run/model --corpus docs.jsonl                       (only looks)
    python -m splade_lit.query_table runs/my_run/model --corpus docs.jsonl --tasks my_task --mix 0.25 0.5 1
    python -m splade_lit.query_table runs/my_run/model --corpus docs.jsonl --output models/fitted

What is rare in the documents that a model was trained on may be common in yours. The weight of each token is moved
towards the inverse document frequency that it has in the corpus, and a report tells what moved. Vectors of documents
stay valid: only the table of the queries changes, and only with `--output` or `--write`.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from splade_lit.command_line.arguments import CommandParser, positive_int
from splade_lit.command_line.devices import pick_device
from splade_lit.command_line.exit_codes import run_command
from splade_lit.core.errors import UserError
from splade_lit.core.files import check_writable
from splade_lit.core.ranges import check_range

if TYPE_CHECKING:
    from rich.table import Table

    from splade_lit.analysis.reestimate import MovedTable, TaskEffect
    from splade_lit.encoder.query_side import QuerySide


def main(arguments: Sequence[str] | None = None) -> None:
    """Count the tokens of a corpus, move the query weights, print what moved, and write a model if asked to.

    Raises:
        UserError: there is no such model, corpus or task, or the model cannot be written.
    """
    settings = _parser().parse_args(arguments)
    for mix in settings.mix:
        check_range("", 0, 1, mix=mix)
    if len(settings.mix) > 1 and (settings.output or settings.write):
        raise UserError("--output and --write need one value of --mix, not several; choose one first.")
    check_writable(folder=settings.output)
    from rich.console import Console

    from splade_lit.analysis.reestimate import (
        check_free,
        check_replaceable,
        copy_with_table,
        corpus_frequencies,
        effects,
        move_table,
        replace_table,
    )
    from splade_lit.data.corpus import open_corpus
    from splade_lit.encoder.layout import warn_of_export
    from splade_lit.encoder.query_side import load_query_side

    if settings.output:
        check_free(settings.output, settings.model)
    if settings.write:
        check_replaceable(settings.model)
    tasks = []
    if settings.tasks:
        from splade_lit.data.tasks import load_tasks

        tasks = load_tasks(settings.tasks, settings.nanobeir_source, settings.nanobeir_revision)
    side = load_query_side(settings.model, revision=settings.revision)
    counted = corpus_frequencies(side, open_corpus(settings.corpus, settings.text_column))
    trained_on = None
    if settings.training_corpus:
        trained_on = corpus_frequencies(side, open_corpus(settings.training_corpus, settings.training_text_column))
    tables = [move_table(side, counted, mix, trained_on) for mix in settings.mix]
    console = Console(highlight=False, markup=False, emoji=False)
    num_kept = int((~tables[0].movable).sum())
    console.print(
        f"corpus     {settings.corpus}: {counted.num_documents:,} documents with {tables[0].num_seen:,} of "
        f"{len(side.weights):,} tokens\n"
        f"kept       {num_kept:,} weights of tokens that the corpus has not, or that the model leaves out of queries",
        soft_wrap=True,
    )
    for table in tables:
        console.print(f"moved      {_factors(table)}", soft_wrap=True)
    console.print(_moves(tables[-1], side, settings.top))
    if tasks:
        from splade_lit.encoder.model import AsymmetricSparseEncoder

        device = pick_device(settings.device)
        encoder = AsymmetricSparseEncoder.load(settings.model, revision=settings.revision, device=device)
        moved = {f"mix {table.mix:g}": table.after for table in tables}
        console.print(_effects(effects(encoder, tasks, moved)))
    if settings.output:
        copy_with_table(settings.model, settings.output, tables[0].after, side, settings.revision)
        warn_of_export(settings.output, "query weights")
        console.print(f"written    {settings.output}", soft_wrap=True)
    elif settings.write:
        written = replace_table(settings.model, tables[0].after, side)
        warn_of_export(Path(settings.model), "query weights")
        console.print(f"written    {written}", soft_wrap=True)


def _factors(table: "MovedTable") -> str:
    from splade_lit.analysis.reestimate import FACTORS

    low, *between, high = table.factor_counts
    ends = zip(FACTORS, FACTORS[1:], between, strict=False)
    ranges = [f"{count:,} by {first:g} to {second:g}" for first, second, count in ends]
    parts = [f"{low:,} weights by a factor below {FACTORS[0]:g}", *ranges, f"{high:,} by more than {FACTORS[-1]:g}"]
    return f"mix {table.mix:g}: {', '.join(parts)}"


def _moves(table: "MovedTable", side: "QuerySide", number: int) -> "Table":
    from rich.table import Table

    shown = Table(box=None, pad_edge=False, title=f"largest moves at mix {table.mix:g}", title_justify="left")
    for name in ("token", "before", "after", "documents"):
        shown.add_column(name, justify="left" if name == "token" else "right")
    rises, falls = table.largest(side, number)
    for moves in (rises, falls):
        for one in moves:
            shown.add_row(one.token, f"{one.before:.3f}", f"{one.after:.3f}", f"{one.documents:,}")
        shown.add_section()
    return shown


def _effects(found: "Iterable[TaskEffect]") -> "Table":
    from rich.table import Table

    from splade_lit.evaluation.paired_tests import p_value

    shown = Table(box=None, pad_edge=False)
    for name in ("task", "table", "nDCG@10", "difference", "won/equal/lost", "p"):
        shown.add_column(name, justify="left" if name in ("task", "table") else "right")
    for effect in found:
        for name, ndcg in effect.ndcg.items():
            cells = []
            if (one := effect.differences.get(name)) is not None:
                won, lost = (one.wins, one.losses) if one.first == name else (one.losses, one.wins)
                counts = f"{won}/{one.ties}/{lost}"
                cells = [f"{one.mean if one.first == name else -one.mean:+.4f}", counts, p_value(one.p_random)]
            shown.add_row(effect.task, name, f"{ndcg:.4f}", *cells)
    return shown


def _parser() -> CommandParser:
    parser = CommandParser("query_table", "Fit the query weights of a model to a corpus; documents are not touched.")
    parser.add_argument("model", help="folder of a saved model, or its Hub id")
    parser.add_shared("--revision")
    parser.add_shared("--corpus", required=True)
    parser.add_shared("--text-column")
    parser.add_argument(
        "--mix",
        type=float,
        nargs="+",
        default=[0.5],
        help="how far weights move, from 0 (not at all) to 1; several values are compared (default: 0.5)",
    )
    parser.add_argument(
        "--training-corpus",
        help="documents that the model was trained on: what it learned beyond their IDF stays (default: not known)",
    )
    parser.add_argument("--training-text-column", default="text", help="their column of texts (%(default)s)")
    parser.add_argument("--tasks", nargs="+", help="tasks, as of evaluate, whose nDCG@10 is measured before and after")
    parser.add_shared("--nanobeir-source", "--nanobeir-revision", "--device")
    parser.add_argument("--top", type=positive_int, default=10, help="moves shown in each direction (%(default)s)")
    places = parser.add_mutually_exclusive_group()
    places.add_argument("--output", type=Path, help="new folder for a copy of the model with the new table")
    places.add_argument("--write", action="store_true", help="change the table of the model in its folder")
    return parser


if __name__ == "__main__":
    run_command(main)
