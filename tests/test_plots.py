"""Charts: the title tells the finding, axes have names, series a legend, colours the palette; nothing runs over."""

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from splade_lit.analysis import plots
from splade_lit.analysis.active_dims import CurvePoint, LengthBin
from splade_lit.analysis.encoded import MassSplit
from splade_lit.analysis.explain import CAUSES, EXPANSION, MISSING, NO_TERM, Outcome
from splade_lit.analysis.plots.style import BLACK, BLUE, GREEN, GREY, ORANGE, PURPLE, SKY, VERMILLION, YELLOW
from splade_lit.analysis.query_table import CorpusWeights, Move, TableChange
from splade_lit.analysis.snapshots import DocumentHistory, TermChanges
from splade_lit.encoder.explain import TermShare
from splade_lit.evaluation.sparsity import RetrievalSparsity, SparsityStatistics

PALETTE = {colour.lower() for colour in (BLACK, BLUE, GREEN, GREY, ORANGE, PURPLE, SKY, VERMILLION, YELLOW)}
TOKENS = [f"word{i}" for i in range(40)]
TOKENS[:3] = ["$", "中", "a$b$c"]


def ints(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int64)


def floats(*values: float) -> np.ndarray:
    return np.array(values, dtype=np.float32)


def outcome(gain: float, cause: str, term: str | None = "$") -> Outcome:
    return Outcome(
        "q", "what is a $ sign in a formula, " * 9, 0.5 + gain / 2, 0.5 - gain / 2, "a", "b" * 90, term, cause
    )


def counts(row_frequencies: np.ndarray, num_rows: int) -> SparsityStatistics:
    return SparsityStatistics(row_frequencies, np.bincount([3], minlength=41) * num_rows)


SPARSITY = RetrievalSparsity(counts(np.arange(40) % 3, 20), counts(np.arange(40), 100))
SPLIT = MassSplit(np.full(4, 3.0), np.full(4, 1.0), ints(2, 2, 2, 2), ints(8, 8, 8, 8), ints(4, 4, 4, 4))
CURVE = [CurvePoint(4, 3.5, 0.3, 0.1), CurvePoint(16, 14.0, 0.495, 0.3), CurvePoint(None, 80.0, 0.5, 0.9)]
CHANGE = TableChange(floats(1, 2, 3, 4), floats(1, 3, 2, 5), ints(0, 2, 3, 4), ints(9, 4, 2, 1), num_documents=12)
RISES, FALLS = [Move("$", 2.0, 3.0, 2, 4), Move("中", 4.0, 5.0, 4, 1)], [Move("a$b$c", 3.0, 2.0, 3, 2)]
TERMS = [TermShare(0, "$", 2.0, 1.5, True), TermShare(1, "中", 1.0, 0.5, False)]
RIVAL = [TermShare(1, "中", 1.0, 1.0, True), TermShare(0, "$", 2.0, 0.0, False)]
CHANGES = TermChanges("start", "step 3", ints(5, 7), ints(1, 2), ints(4, 4), ints(0, 2, 1), ints(1, 0, 0))
HISTORY = DocumentHistory(["start", "step 3"], TOKENS[:3], np.array([[1, 2], [0, 1], [1, 0]], np.float32), 3, 4)
MANY = [outcome(gain, cause) for gain, cause in zip(np.linspace(1, -1, len(CAUSES)), CAUSES, strict=True)]

FIGURES = [
    (
        lambda: plots.active_dims(ints(10, 20, 400), ints(3, 4, 5)),
        "Half of the documents have at most 20 active dims, half of the queries at most 4",
    ),
    (
        lambda: plots.active_dims_by_length(
            [LengthBin(3, 9, 5, 10.0, 20.0, 30.0), LengthBin(10, 10, 5, 20.0, 35.0, 60.0)]
        ),
        "Documents of 3-9 tokens have 20 active dims (median), those of 10 tokens 35",
    ),
    (
        lambda: plots.posting_lengths(SPARSITY.corpus),
        "longest posting lists hold 100% of all postings; 1 of 40 dims (2%) are dead",
    ),
    (
        lambda: plots.most_frequent_dims(SPARSITY, TOKENS),
        "is active in 39% of the documents; 19 dims are in more than 20%",
    ),
    (
        lambda: plots.lexical_mass(SPLIT),
        "75% of a document's weight, and 20% of its active dims, are on terms of its text",
    ),
    (lambda: plots.pruning_curve(CURVE, 0.4), "Documents cut to 14 of 80 active dims keep 99.0% of nDCG@10"),
    (lambda: plots.pruning_curve(CURVE[-1:]), "No cut keeps 99% of nDCG@10: all 80 active dims count"),
    (
        lambda: plots.table_change(CHANGE, [*RISES, *FALLS]),
        "raised 67% of the query weights that training queries hold and lowered 33%",
    ),
    (lambda: plots.biggest_moves(RISES, FALLS), r"“\$” has risen most, “a\$b\$c” has fallen most"),
    (lambda: plots.biggest_moves([], []), "No query weight has moved"),
    (
        lambda: plots.weights_against_frequencies(CHANGE.corpus_weights),
        "Rarer tokens weigh more (rank correlation -0.80)",
    ),
    (
        lambda: plots.weights_against_frequencies(CorpusWeights(np.ones(4, np.float32), ints(1, 2, 3, 4), 9, "texts")),
        "All query weights are equal",
    ),
    (lambda: plots.wins_and_losses(MANY, 100), "We rank 4 of 100 queries better than BM25, BM25 4, and 92 are equal"),
    (lambda: plots.wins_and_losses([], 9), "We rank 0 of 9 queries better than BM25, BM25 0, and 9 are equal"),
    (
        lambda: plots.causes([outcome(1, EXPANSION), outcome(0.5, NO_TERM), outcome(-1, MISSING)]),
        "Expansion decides 50% of our wins, better weights 0%; 100% of BM25's wins: missing vocabulary",
    ),
    (lambda: plots.causes([]), "No query is ranked differently well"),
    (lambda: plots.term_shares(MANY[0], TERMS, RIVAL), r"scores 3.50, above its rival's 1.00; “\$” decides"),
    (
        lambda: plots.term_shares(outcome(1, NO_TERM, None), [], []),
        "scores 0.00, equal to its rival's 0.00; no term decides",
    ),
    (
        lambda: plots.terms_gained_and_lost([CHANGES]),
        "From start to step 3 a document keeps 6 terms, gains 2 and loses 4",
    ),
    (
        lambda: plots.most_changed_terms(CHANGES, TOKENS),
        r"100% of the documents gain “U+4E2D”, 50% of the documents lose “\$”",
    ),
    (lambda: plots.document_history(HISTORY, "doc"), "“doc” gains 3 terms and loses 4 from start to step 3"),
]


@pytest.fixture(params=FIGURES, ids=lambda figure: figure[1][:40])
def drawn(request, recwarn) -> Figure:
    figure = request.param[0]()
    FigureCanvasAgg(figure).draw()
    assert [str(warning.message) for warning in recwarn] == []
    return figure


@pytest.mark.parametrize(("figure", "finding"), FIGURES, ids=[finding[:40] for _, finding in FIGURES])
def test_titles_tell_what_was_found(figure, finding):
    assert finding in figure().get_suptitle().replace("\n", " ")


def test_everything_is_named(drawn):
    for axes in drawn.axes:
        if axes.get_label() == "<colorbar>":
            assert axes.get_ylabel()
            continue
        assert axes.get_xlabel()
        assert axes.get_ylabel()
        has_colorbar = any(other.get_label() == "<colorbar>" for other in drawn.axes)
        empty = not (axes.lines or axes.patches or axes.collections or axes.images)
        assert axes.get_legend() or has_colorbar or empty


def test_colours_are_those_of_the_palette(drawn):
    for axes in drawn.axes:
        if axes.get_label() == "<colorbar>":
            continue
        colours = {to_hex(line.get_color()) for line in axes.lines}
        colours |= {to_hex(patch.get_facecolor()) for patch in axes.patches}
        assert colours <= PALETTE | {"#ffffff"}


def test_texts_stay_inside(drawn):
    size = drawn.bbox
    for text in (drawn._suptitle, *(text for axes in drawn.axes for text in (axes.xaxis.label, axes.yaxis.label))):
        box = text.get_window_extent()
        assert box.width == 0 or (size.x0 <= box.x0 and box.x1 <= size.x1 and size.y0 <= box.y0 and box.y1 <= size.y1)
