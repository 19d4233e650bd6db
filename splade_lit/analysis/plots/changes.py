"""Charts of snapshots: which terms documents gain and lose."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from splade_lit.analysis.plots.style import BLACK, GREEN, GREY, SKY, VERMILLION, label, mean, new_figure, plain, shorten
from splade_lit.analysis.snapshots import DocumentHistory, TermChanges


def terms_gained_and_lost(changes: Sequence[TermChanges]) -> Figure:
    """Terms that a document keeps, gains and loses from snapshot to snapshot, on average."""
    kept, gained, lost = (
        np.array([mean(getattr(one, name)) for one in changes]) for name in ("kept", "gained", "lost")
    )
    most = int(np.argmax(gained + lost))
    title = (
        f"From {changes[most].before} to {changes[most].after} a document keeps {kept[most]:.0f} terms, gains "
        f"{gained[most]:.0f} and loses {lost[most]:.0f}"
    )
    figure, (axes,) = new_figure(plain(title))
    places = np.arange(len(changes))
    axes.bar(places, kept, 0.6, color=SKY, label="kept")
    axes.bar(places, gained, 0.6, bottom=kept, color=GREEN, label="gained")
    axes.bar(places, -lost, 0.6, color=VERMILLION, label="lost (below 0)")
    axes.axhline(0, color=BLACK, linewidth=0.8)
    axes.set_xticks(places, [plain(f"{one.before}\nto {one.after}") for one in changes])
    axes.set_xlim(-1, len(changes))
    axes.set(xlabel="snapshots", ylabel="terms of a document (mean)")
    axes.legend()
    return figure


def most_changed_terms(change: TermChanges, tokens: Sequence[str], n: int = 12) -> Figure:
    """The terms that most documents gain or lose between two snapshots."""
    num_documents = max(len(change.kept), 1)
    dims = [*np.argsort(-change.gaining, kind="stable")[:n], *np.argsort(-change.losing, kind="stable")[:n][::-1]]
    dims = [dim for dim in dict.fromkeys(dims) if change.gaining[dim] or change.losing[dim]]
    heads = [
        f"{100 * counts.max() / num_documents:.0f}% of the documents {verb} “{label(tokens[int(counts.argmax())])}”"
        for counts, verb in ((change.gaining, "gain"), (change.losing, "lose"))
        if counts.any()
    ]
    title = f"{plain(f'From {change.before} to {change.after}')}: {', '.join(heads) or 'no term changes'}"
    figure, (axes,) = new_figure(title, height=1.5 + 0.25 * len(dims))
    places = np.arange(len(dims))
    axes.barh(places, 100 * change.gaining[dims] / num_documents, color=GREEN, label="gain the term")
    axes.barh(places, -100 * change.losing[dims] / num_documents, color=VERMILLION, label="lose the term")
    axes.axvline(0, color=BLACK, linewidth=0.8)
    axes.set_yticks(places, [label(tokens[dim]) for dim in dims])
    axes.invert_yaxis()
    axes.set(xlabel="documents (%; those that lose the term left of 0)", ylabel="term")
    axes.legend()
    return figure


def document_history(history: DocumentHistory, name: str) -> Figure:
    """The weights of a document's terms over the snapshots.

    Args:
        history: the terms that moved most.
        name: what to call the document.
    """
    title = (
        f"“{shorten(name)}” gains {history.gained} terms and loses {history.lost} "
        f"from {history.labels[0]} to {history.labels[-1]}"
    )
    figure, (axes,) = new_figure(plain(title), height=1.8 + 0.25 * len(history.terms))
    image = axes.imshow(np.ma.masked_equal(history.weights, 0), aspect="auto", cmap="viridis_r", vmin=0)
    axes.set_facecolor("white")
    for row, column in np.argwhere(history.weights == 0):
        axes.text(column, row, "not active", ha="center", va="center", fontsize=8, color=GREY)
    axes.set_xticks(range(len(history.labels)), [plain(one) for one in history.labels])
    axes.set_yticks(range(len(history.terms)), [label(term) for term in history.terms])
    axes.set(xlabel="snapshot", ylabel="terms that moved most")
    figure.colorbar(image, ax=axes, label="document weight")
    return figure
