"""Charts of the query table: before and after learning, against the frequencies of a corpus."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from splade_lit.analysis.plots.style import BLACK, BLUE, VERMILLION, label, new_figure, percent
from splade_lit.analysis.query_table import CorpusWeights, Move, TableChange


def table_change(change: TableChange, moves: Sequence[Move]) -> Figure:
    """Query weights at the end of learning against those at the start; the moves are named."""
    learned = change.learned
    before, after = change.before[learned], change.after[learned]
    rising, falling = int((after > before).sum()), int((after < before).sum())
    title = (
        f"Learning has raised {percent(rising, len(after))} of the query weights that training queries hold and "
        f"lowered {percent(falling, len(after))}; the mean move is {np.abs(after - before).mean():.2g}"
    )
    figure, (axes,) = new_figure(title, height=5.5)
    axes.scatter(
        before, after, s=6, color=BLUE, alpha=0.4, linewidths=0, label=f"{len(after):,} tokens of training queries"
    )
    ends = [min(before.min(), after.min()), max(before.max(), after.max())]
    axes.plot(ends, ends, color=BLACK, linewidth=1, linestyle="--", label="no change")
    axes.scatter(
        [move.before for move in moves], [move.after for move in moves], s=18, color=VERMILLION, label="biggest moves"
    )
    for move in moves:
        axes.annotate(label(move.token), (move.before, move.after), (4, 2), textcoords="offset points", fontsize=8)
    axes.set(xlabel="weight at the start", ylabel="weight after learning")
    axes.legend()
    return figure


def biggest_moves(rises: Sequence[Move], falls: Sequence[Move]) -> Figure:
    """The query weights that have moved most, from start to end."""
    moves = [*rises, *reversed(falls)]
    heads = [
        f"“{label(move[0].token)}” has {verb} most" for move, verb in ((rises, "risen"), (falls, "fallen")) if move
    ]
    title = ", ".join(heads)
    figure, (axes,) = new_figure(title or "No query weight has moved", height=1.5 + 0.25 * len(moves))
    for place, move in enumerate(moves):
        colour = BLUE if move.after > move.before else VERMILLION
        axes.plot([move.before, move.after], [place, place], color=colour, linewidth=2)
        axes.plot([move.after], [place], color=colour, marker="o")
        axes.plot([move.before], [place], color="white", markeredgecolor=colour, marker="o")
    axes.set_yticks(range(len(moves)), [f"{label(move.token)} ({move.queries:,})" for move in moves])
    axes.invert_yaxis()
    axes.set(xlabel="query weight, from the start (hollow) to the end (filled)", ylabel="token (training queries)")
    axes.legend(handles=[Patch(color=BLUE, label="risen"), Patch(color=VERMILLION, label="fallen")])
    return figure


def weights_against_frequencies(corpus: CorpusWeights) -> Figure:
    """Query weights against the share of documents that hold the token."""
    seen = corpus.seen
    share = 100 * corpus.document_frequencies[seen] / corpus.num_documents
    weights = corpus.weights[seen]
    correlation = corpus.rank_correlation
    if np.isnan(correlation):
        finding = "All query weights are equal, whatever the token's frequency"
    elif abs(correlation) < 0.1:
        finding = "Query weights do not follow document frequency"
    else:
        finding = f"{'Rarer' if correlation < 0 else 'More frequent'} tokens weigh more"
    title = f"{finding} (rank correlation {correlation:.2f})" if not np.isnan(correlation) else finding
    figure, (axes,) = new_figure(title)
    axes.scatter(
        share, weights, s=6, color=BLUE, alpha=0.3, linewidths=0, label=f"{len(weights):,} tokens of the corpus"
    )
    edges = np.geomspace(share.min(), share.max() * 1.001, 13)
    bins = [(share >= low) & (share < high) for low, high in pairwise(edges)]
    middles = [(np.exp(np.log(share[rows]).mean()), np.median(weights[rows])) for rows in bins if rows.any()]
    axes.plot(*zip(*middles, strict=True), color=VERMILLION, marker="o", label="median at like frequency")
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set(xlabel=f"{corpus.corpus} that hold the token (%, log scale)", ylabel="query weight")
    axes.legend()
    return figure
