"""`python -m splade_lit.card`: write the model card of a saved model again.

    python -m splade_lit.card runs/my_run/model
    python -m splade_lit.card runs/my_run/model --model-id me/my-model --license mit --language en de

The card is made of `card.json`, which a run leaves beside its model; a folder without one gets a card of what the model
itself tells. Options are kept in `card.json`, so that they count the next time too. No network is needed.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from splade_lit.command_line.arguments import CommandParser
from splade_lit.command_line.exit_codes import run_command
from splade_lit.core.errors import UserError
from splade_lit.core.files import check_writable, replace_text

if TYPE_CHECKING:
    from splade_lit.card.record import Card


def main(arguments: Sequence[str] | None = None) -> None:
    """Write `README.md` and `card.json` to the folder of a model.

    Raises:
        UserError: the folder holds no saved model, or cannot be written.
    """
    settings = _parser().parse_args(arguments)
    folder: Path = settings.folder
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder; give that of a saved model, such as runs/NAME/model.")
    check_writable(folder=folder)
    from splade_lit.card.record import README, read_record, write_record
    from splade_lit.card.render import model_card

    card = read_record(folder) or _card_of_model(folder)
    changes = {name: getattr(settings, name) for name in ("name", "model_id", "license", "language")}
    card = replace(card, **{name: value for name, value in changes.items() if value is not None})
    write_record(card, folder)
    replace_text(folder / README, model_card(card))
    print(f"card: {folder / README}")


def _card_of_model(folder: Path) -> "Card":
    from splade_lit.card.facts import model_facts
    from splade_lit.card.record import README, Card
    from splade_lit.encoder.model import AsymmetricSparseEncoder

    if (folder / README).exists():
        raise UserError(f"{folder / README} was written by somebody else (there is no card.json); move it away first.")
    name, model = f"Inference-free SPLADE {folder.resolve().name}", model_facts(AsymmetricSparseEncoder.load(folder))
    # Nothing tells the license or the language of a model that comes alone.
    return Card(name, model, license=None, language=[])


def _parser() -> CommandParser:
    parser = CommandParser("card", "Write the model card of a saved model again.")
    parser.add_argument("folder", type=Path, metavar="MODEL_DIR", help="folder of a saved model")
    parser.add_argument("--name", help="title of the card")
    parser.add_argument("--model-id", help="id on the Hub that the card's examples load the model by")
    parser.add_argument("--license", help="license of the model by the Hub's short name, such as apache-2.0")
    parser.add_argument("--language", nargs="+", help="languages of the texts, by their codes of ISO 639-1")
    return parser


if __name__ == "__main__":
    run_command(main)
