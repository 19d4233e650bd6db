"""Charts of scores: where we win, where BM25 wins, and which terms decide."""

import textwrap
from collections import Counter
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from splade_lit.analysis.explain import CAUSES, EXPANSION, WEIGHTS, Outcome
from splade_lit.analysis.plots.style import (
    BLACK,
    BLUE,
    COLOURS,
    GREY,
    ORANGE,
    label,
    new_figure,
    percent,
    plain,
    shorten,
)
from splade_lit.encoder.explain import TermShare

_CAUSE_COLOURS = dict(zip(CAUSES, COLOURS, strict=True))


def wins_and_losses(outcomes: Sequence[Outcome], num_queries: int) -> Figure:
    """Each query of so many that one side ranks better than the other (`explain.outcomes`), coloured by its cause."""
    wins = sum(outcome.gain > 0 for outcome in outcomes)
    title = (
        f"We rank {wins} of {num_queries:,} queries better than BM25, BM25 {len(outcomes) - wins}, "
        f"and {num_queries - len(outcomes):,} are equal"
    )
    figure, (axes,) = new_figure(title)
    places = np.arange(len(outcomes))
    axes.bar(places, [one.gain for one in outcomes], width=1.0, color=[_CAUSE_COLOURS[one.cause] for one in outcomes])
    axes.axhline(0, color=BLACK, linewidth=0.8)
    axes.set(xlabel="queries, our largest win first (rank)", ylabel="our nDCG@10 less BM25's", ylim=(-1.05, 1.05))
    found = {one.cause for one in outcomes}
    # Below: bars may be anywhere in the axes.
    axes.legend(
        handles=[Patch(color=_CAUSE_COLOURS[cause], label=cause) for cause in CAUSES if cause in found],
        loc="upper center",
        bbox_to_anchor=(0.5, -0.18),
        ncols=2,
    )
    return figure


def causes(outcomes: Sequence[Outcome]) -> Figure:
    """How many wins and losses each cause decides."""
    wins = Counter(one.cause for one in outcomes if one.gain > 0)
    losses = Counter(one.cause for one in outcomes if one.gain < 0)
    parts = []
    if wins:
        parts.append(
            f"expansion decides {percent(wins[EXPANSION], wins.total())} of our wins, "
            f"better weights {percent(wins[WEIGHTS], wins.total())}"
        )
    if losses:
        cause, count = losses.most_common(1)[0]
        parts.append(f"{percent(count, losses.total())} of BM25's wins: {cause.partition(':')[0]}")
    title = "; ".join(parts) or "No query is ranked differently well"
    shown = [cause for cause in CAUSES if wins[cause] or losses[cause]]
    figure, (axes,) = new_figure(title[0].upper() + title[1:], height=1.8 + 0.45 * len(shown))
    for number, (counts, name, colour) in enumerate(((wins, "we win", BLUE), (losses, "BM25 wins", ORANGE))):
        bars = axes.barh(
            np.arange(len(shown)) + 0.4 * number - 0.2, [counts[c] for c in shown], 0.4, color=colour, label=name
        )
        axes.bar_label(bars, [str(counts[c] or "") for c in shown], padding=2)
    axes.set_yticks(range(len(shown)), [textwrap.fill(cause, 36) for cause in shown])
    axes.invert_yaxis()
    axes.set(xlabel="queries", ylabel="what the deciding term is")
    axes.legend()
    return figure


def term_shares(outcome: Outcome, relevant: Sequence[TermShare], rival: Sequence[TermShare]) -> Figure:
    """What each term of a query adds to the score of the relevant document and of its rival (`EncodedTask.explain`)."""
    below = {term.dim: term for term in rival}
    shown = [term for term in relevant if term.share or below[term.dim].share]
    scores = [sum(term.share for term in terms) for terms in (relevant, rival)]
    decides = f"“{outcome.term}” decides" if outcome.term else outcome.cause
    side = "above" if scores[0] > scores[1] else "below" if scores[0] < scores[1] else "equal to"
    title = (
        f"“{shorten(outcome.text)}”: the relevant document scores {scores[0]:.2f}, "
        f"{side} its rival's {scores[1]:.2f}; {decides}"
    )
    figure, (axes,) = new_figure(plain(title), height=2 + 0.4 * len(shown))
    for number, (terms, colour) in enumerate(((shown, BLUE), ([below[term.dim] for term in shown], ORANGE))):
        axes.barh(
            np.arange(len(terms)) + 0.4 * number - 0.2,
            [term.share for term in terms],
            0.4,
            color=colour,
            edgecolor="white",
            hatch=["" if term.in_text else "///" for term in terms],
        )
    axes.set_yticks(range(len(shown)), [label(term.token) for term in shown])
    axes.invert_yaxis()
    axes.set(xlabel="share of the score (query weight x document weight)", ylabel="terms of the query that count")
    names = [plain(shorten(str(name))) for name in (outcome.relevant, outcome.rival)]
    axes.legend(
        handles=[
            Patch(color=BLUE, label=f"relevant: {names[0]}"),
            Patch(color=ORANGE, label=f"rival: {names[1]}"),
            Patch(facecolor=GREY, edgecolor="white", hatch="///", label="expansion: not in the text"),
        ]
    )
    return figure
