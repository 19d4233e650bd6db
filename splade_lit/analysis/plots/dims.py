"""Charts of active dims: how many, which ones, what they buy."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from matplotlib.figure import Figure

from splade_lit.analysis.active_dims import OVERUSED_SHARE, CurvePoint, LengthBin, cheapest_point, overused
from splade_lit.analysis.encoded import MassSplit
from splade_lit.analysis.plots.style import BLACK, BLUE, GREEN, ORANGE, SKY, VERMILLION, label, mean, new_figure
from splade_lit.evaluation.sparsity import RetrievalSparsity, SparsityStatistics


def active_dims(documents: np.ndarray, queries: np.ndarray) -> Figure:
    """Distributions of the active dims of each document and of each query."""
    title = (
        f"Half of the documents have at most {np.median(documents):,.0f} active dims, "
        f"half of the queries at most {np.median(queries):,.0f}"
    )
    figure, panels = new_figure(title, 2)
    sides = (documents, "document", "documents", BLUE), (queries, "query", "queries", ORANGE)
    for axes, (sizes, one, many, colour) in zip(panels, sides, strict=True):
        bins = np.arange(-0.5, sizes.max() + 1.5, max(1, int(sizes.max()) // 40))
        axes.hist(sizes, bins=bins.tolist(), color=colour, label=f"{len(sizes):,} {many}")
        axes.axvline(np.median(sizes), color=BLACK, linestyle="--", label="median")
        axes.set(xlabel=f"active dims of a {one}", ylabel=many)
        axes.legend()
    return figure


def active_dims_by_length(bins: Sequence[LengthBin]) -> Figure:
    """Active dims against document length."""
    first, last = bins[0], bins[-1]
    title = (
        f"Documents of {_span(first)} tokens have {first.median:,.0f} active dims (median), "
        f"those of {_span(last)} tokens {last.median:,.0f}"
    )
    figure, (axes,) = new_figure(title)
    places = np.arange(len(bins))
    axes.fill_between(
        places, [b.p10 for b in bins], [b.p90 for b in bins], color=SKY, alpha=0.4, label="80% of documents"
    )
    axes.plot(places, [b.median for b in bins], color=BLUE, marker="o", label="median")
    axes.set_xticks(places, [f"{_span(b)}\n({b.num_documents:,})" for b in bins])
    axes.set(xlabel="tokens of a document as the model reads it (documents)", ylabel="active dims", ylim=(0, None))
    axes.legend()
    return figure


def posting_lengths(documents: SparsityStatistics) -> Figure:
    """Lengths of posting lists by rank, and how many dims have which document frequency."""
    frequencies, num_documents = documents.row_frequencies, documents.num_rows
    postings = np.sort(frequencies[frequencies > 0])[::-1]
    vocab_size, top = len(frequencies), min(100, len(postings))
    share = postings[:top].sum() / max(postings.sum(), 1)
    title = (
        f"The {top} longest posting lists hold {share:.0%} of all postings; {vocab_size - len(postings):,} of "
        f"{vocab_size:,} dims ({documents.dead_dims_ratio:.0%}) are dead: in no document"
    )
    figure, (ranks, spectrum) = new_figure(title, 2)
    limit, often = OVERUSED_SHARE * num_documents, f"{OVERUSED_SHARE:.0%}"
    ranks.loglog(np.arange(1, len(postings) + 1), postings, color=BLUE, label=f"{len(postings):,} live dims")
    above = f"{often} of {num_documents:,} documents: {overused(documents)} dims above"
    ranks.axhline(limit, color=VERMILLION, linestyle="--", label=above)
    ranks.set(xlabel="dims, by length of posting list (rank)", ylabel="posting list (documents)")
    edges = np.unique(np.geomspace(1, max(num_documents, 2), 25).round())
    spectrum.hist(postings, bins=[*edges[:-1], edges[-1] + 1], color=GREEN, label="live dims")
    spectrum.axvline(limit, color=VERMILLION, linestyle="--", label=f"{often} of the documents")
    spectrum.set(xscale="log", xlabel="document frequency (documents)", ylabel="dims")
    for axis in (ranks.xaxis, ranks.yaxis, spectrum.xaxis):
        axis.set_major_formatter("{x:,g}")
    for axes in (ranks, spectrum):
        axes.legend()
    return figure


def most_frequent_dims(sparsity: RetrievalSparsity, tokens: Sequence[str], n: int = 20) -> Figure:
    """The dims that are active in most documents, and how many queries ask for them."""
    frequent = [(dim, 100 * share) for dim, share in sparsity.corpus.most_frequent(n) if share]
    dims, documents = [dim for dim, _ in frequent], [share for _, share in frequent]
    queries = 100 * sparsity.queries.row_frequencies[dims] / max(sparsity.queries.num_rows, 1)
    count = overused(sparsity.corpus)
    head = f"“{label(tokens[dims[0]])}” is active in {documents[0]:.0f}% of the documents" if dims else "No live dim"
    title = f"{head}; {count} {'dim is' if count == 1 else 'dims are'} in more than {OVERUSED_SHARE:.0%}"
    figure, (axes,) = new_figure(title, height=1.5 + 0.25 * len(dims))
    places = np.arange(len(dims))
    axes.barh(places - 0.2, documents, height=0.4, color=BLUE, label="documents")
    axes.barh(places + 0.2, queries, height=0.4, color=ORANGE, label="queries")
    axes.axvline(100 * OVERUSED_SHARE, color=VERMILLION, linestyle="--", label=f"{OVERUSED_SHARE:.0%}")
    axes.set_yticks(places, [label(tokens[dim]) for dim in dims])
    axes.invert_yaxis()
    axes.set(xlabel="documents and queries in which the dim is active (%)", ylabel="dim")
    axes.legend()
    return figure


def lexical_mass(split: MassSplit) -> Figure:
    """How much of a document's vector is on terms of its text."""
    mass, dims = 100 * split.lexical_mass_share, 100 * split.lexical_dims_share
    title = (
        f"{mean(mass):.0f}% of a document's weight, and {mean(dims):.0f}% of its active dims, are on terms of its "
        f"text, the rest on expansions; {split.kept_share:.0%} of the terms of the texts are kept"
    )
    figure, (axes,) = new_figure(title)
    bins = np.linspace(0, 100, 41).tolist()
    axes.hist(dims, bins=bins, color=ORANGE, alpha=0.6, label="share of active dims")
    axes.hist(mass, bins=bins, color=BLUE, alpha=0.6, label="share of weight")
    axes.axvline(mean(dims), color=VERMILLION, linestyle="--", label="mean share of active dims")
    axes.axvline(mean(mass), color=BLACK, linestyle="--", label="mean share of weight")
    axes.set(xlabel="on terms of the document's text (%)", ylabel="documents", xlim=(0, 100))
    axes.legend()
    return figure


def pruning_curve(points: Sequence[CurvePoint], bm25: float | None = None) -> Figure:
    """Quality against active dims: the points of `active_dims.pruning_curve`, and nDCG@10 of BM25 on the same task."""
    best, full = cheapest_point(points), points[-1]
    share = f"{best.ndcg / full.ndcg:.1%}" if full.ndcg else "all"
    title = f"Documents cut to {best.active_dims:,.0f} of {full.active_dims:,.0f} active dims keep {share} of nDCG@10"
    if best is full:
        title = f"No cut keeps 99% of nDCG@10: all {full.active_dims:,.0f} active dims count"
    figure, (axes,) = new_figure(title)
    x, y = [point.active_dims for point in points], [point.ndcg for point in points]
    axes.plot(x, y, color=BLUE, marker="o", label="documents cut to their largest weights")
    axes.plot([best.active_dims], [best.ndcg], color=VERMILLION, marker="D", linestyle="", label="cheapest within 1%")
    named = [point for point, after in pairwise(points) if after.active_dims > 1.3 * point.active_dims] + [full]
    for point in named:
        text = "all" if point.max_active_dims is None else f"k={point.max_active_dims}"
        axes.annotate(text, (point.active_dims, point.ndcg), (0, -14), textcoords="offset points", ha="center")
    if bm25 is not None:
        axes.axhline(bm25, color=ORANGE, linestyle="--", label="BM25")
    axes.margins(y=0.15)
    axes.set_xscale("log")
    axes.set_xticks([point.active_dims for point in named], [f"{point.active_dims:,.0f}" for point in named])
    axes.set_xticks([], minor=True)
    axes.set(xlabel="mean active dims of a document (log scale)", ylabel="nDCG@10 (0 to 1)")
    axes.legend()
    return figure


def _span(one: LengthBin) -> str:
    return f"{one.shortest}" if one.shortest == one.longest else f"{one.shortest}-{one.longest}"
