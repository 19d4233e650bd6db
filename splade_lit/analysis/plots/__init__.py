"""Charts of the notebooks: the title says what was found, axes have units, colours tell apart for everyone.

Every function takes records of `splade_lit.analysis` and gives a new figure of matplotlib.
"""

from splade_lit.analysis.plots.changes import document_history, most_changed_terms, terms_gained_and_lost
from splade_lit.analysis.plots.dims import (
    active_dims,
    active_dims_by_length,
    lexical_mass,
    most_frequent_dims,
    posting_lengths,
    pruning_curve,
)
from splade_lit.analysis.plots.query_weights import biggest_moves, table_change, weights_against_frequencies
from splade_lit.analysis.plots.scores import causes, term_shares, wins_and_losses
