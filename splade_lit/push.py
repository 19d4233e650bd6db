"""`python -m splade_lit.push`: upload a saved model with its card to the Hugging Face Hub.

    python -m splade_lit.push runs/my_run/model me/my-model --dry-run
    python -m splade_lit.push runs/my_run/model me/my-model --private --message "lambda_d 1e-3"

All files of the folder go up in one commit, and nothing else in the repository changes; pickles are refused. A card
that nobody has edited gets the name of the repository in its examples first. Needs a token: `hf auth login`, or
HF_TOKEN.
"""

from collections.abc import Sequence
from pathlib import Path

from splade_lit.command_line.arguments import CommandParser
from splade_lit.command_line.exit_codes import run_command


def main(arguments: Sequence[str] | None = None) -> None:
    """Upload a model, or list what would be uploaded.

    Raises:
        UserError: the folder holds no saved model, a pickle or no card, or the Hub cannot be reached or refuses.
    """
    settings = _parser().parse_args(arguments)
    from splade_lit.card.upload import Upload

    upload = Upload(settings.folder, settings.repository)
    if settings.dry_run:
        print(upload.listing())
    else:
        print(upload.send(settings.private, settings.revision, settings.message))


def _parser() -> CommandParser:
    parser = CommandParser("push", "Upload a saved model with its card to the Hugging Face Hub.")
    parser.add_argument("folder", type=Path, metavar="MODEL_DIR", help="folder of a saved model")
    parser.add_argument("repository", metavar="REPO", help="owner/name on the Hub; made if it does not exist")
    parser.add_argument("--dry-run", action="store_true", help="list what would go up, with sizes; asks no network")
    parser.add_argument("--private", action="store_true", help="make a new repository private")
    parser.add_argument("--revision", help="branch to upload to, made if it does not exist (default: main)")
    parser.add_argument("--message", default="Upload model", help="message of the commit (%(default)s)")
    return parser


if __name__ == "__main__":
    run_command(main)
