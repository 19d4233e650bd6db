"""A card of a model whose limits on documents were chosen after training."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from splade_lit.card.facts import pruned_facts
from splade_lit.card.record import README, PrunedTask, read_record, write_record
from splade_lit.card.render import model_card
from splade_lit.core.files import replace_text
from splade_lit.encoder.pruning import Pruning


def tell_pruning(folder: Path, pruning: Pruning, tasks: Sequence[PrunedTask]) -> bool:
    """Write the card in a model's folder again with the limits that the model has now; False if there is none.

    Raises:
        UserError: the card's record is damaged, or the folder cannot be written.
    """
    card = read_record(folder)
    if card is None:
        return False
    card = replace(card, model=pruned_facts(card.model, pruning), pruned=list(tasks))
    write_record(card, folder)
    replace_text(folder / README, model_card(card))
    return True
