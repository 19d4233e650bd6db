"""A saved model and its card on the Hugging Face Hub: what goes up, what must not, and what the Hub can answer."""

import zipfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi, ModelCard, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, HTTPError
from huggingface_hub.utils import validate_repo_id
from rich.filesize import decimal

from splade_lit.card.record import README, Card, read_record, write_record
from splade_lit.card.render import model_card
from splade_lit.core.errors import UserError, first_line
from splade_lit.core.files import replace_text
from splade_lit.encoder.model import AsymmetricSparseEncoder

_PICKLE_SUFFIXES = (".pkl", ".pickle", ".pt", ".pth", ".ckpt", ".joblib")


class Upload:
    """A saved model that may go up; asks no network until it is sent.

    Args:
        folder: of the model.
        repository: owner/name on the Hub.

    Raises:
        UserError: the folder holds no saved model, a pickle or no card, or the name is not that of a repository.
    """

    def __init__(self, folder: Path, repository: str) -> None:
        _check_repository(repository)
        self.repository, self.folder, self.files = repository, folder, model_files(folder)
        _check_model(folder, self.files)
        self._card = _renamed_card(folder, repository)

    def listing(self) -> str:
        """A line for each file with its size, and one for all."""
        sizes = {name: path.stat().st_size for name, path in self.files.items()}
        sizes[f"{len(sizes)} files would go to {self.repository}"] = sum(sizes.values())
        return "\n".join(f"{decimal(size):>10}  {name}" for name, size in sizes.items())

    def send(self, private: bool, revision: str | None, message: str) -> str:
        """Upload all files in one commit, whose address is returned.

        Repository (private, if asked for) and branch are made if they do not exist; without `revision` it is main.

        Raises:
            UserError: there is no token, or the Hub cannot be reached or refuses.
        """
        if get_token() is None:
            raise UserError("There is no token for the Hub; run `hf auth login`, or set HF_TOKEN.")
        if self._card is not None:
            write_record(self._card, self.folder)
            replace_text(self.folder / README, model_card(self._card))
        try:
            operations = [CommitOperationAdd(name, path) for name, path in self.files.items()]
            api = HfApi()
            api.create_repo(self.repository, private=private or None, exist_ok=True)
            if revision is not None:
                api.create_branch(self.repository, branch=revision, exist_ok=True)
            commit = api.create_commit(self.repository, operations, commit_message=message, revision=revision)
        except (HTTPError, OSError, ValueError, RuntimeError) as error:  # HfHubHTTPError is an HTTPError
            raise UserError(_sentence(error, self.repository)) from error
        return commit.commit_url


def model_files(folder: Path) -> dict[str, Path]:
    """All files of a folder but hidden ones, sorted, by their names in the repository.

    Raises:
        UserError: it is no folder.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder; give that of a saved model, such as runs/NAME/model.")
    paths = {path.relative_to(folder): path for path in folder.rglob("*") if path.is_file()}
    return {
        name.as_posix(): path
        for name, path in sorted(paths.items())
        if not any(part.startswith((".", "__pycache__")) for part in name.parts)
    }


def is_pickle(path: Path) -> bool:
    """Whether a file is a pickle, by its name or by its first bytes: torch's files are zips of one."""
    if path.suffix.lower() in _PICKLE_SUFFIXES:
        return True
    if path.suffix == ".safetensors":  # begins with its length, which may look like a pickle's first two bytes
        return False
    with path.open("rb") as file:
        start = file.read(2)
    if len(start) == 2 and start[0] == 0x80 and 2 <= start[1] <= 5:
        return True
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("data.pkl") for name in archive.namelist())


def _check_model(folder: Path, files: Mapping[str, Path]) -> None:
    if pickles := [name for name, path in files.items() if is_pickle(path)]:
        raise UserError(
            f"{folder} holds pickles ({', '.join(pickles)}), which can run code where they are loaded; move them away."
        )
    if "modules.json" not in files:
        raise UserError(f"{folder} is not the folder of a saved model: it has no modules.json.")
    AsymmetricSparseEncoder.load(folder)  # what does not load here would load nowhere
    if README not in files:
        raise UserError(f"{folder} has no card; write one with `python -m splade_lit.card {folder}`.")
    try:
        ModelCard.load(files[README])
    except Exception as error:  # YAML that is broken raises errors of many classes
        raise UserError(
            f"{files[README]}: the YAML at its head cannot be read; correct it, or write another card."
        ) from error


def _check_repository(repository: str) -> None:
    try:
        validate_repo_id(repository)
    except HFValidationError as error:
        raise UserError(f"{repository!r} is not the name of a repository; give one such as owner/name.") from error
    if "/" not in repository:
        raise UserError(f"{repository!r} lacks its owner; give a name such as owner/{repository}.")


def _renamed_card(folder: Path, repository: str) -> Card | None:
    """The record of the card with this repository in its examples; None if the card stays as it is."""
    card = read_record(folder)
    if card is None or card.model_id == repository or (folder / README).read_text("utf-8") != model_card(card):
        return None
    return replace(card, model_id=repository)


def _sentence(error: Exception, repository: str) -> str:
    """What the Hub's client says, in one sentence."""
    if isinstance(error, HfHubHTTPError):
        code = error.response.status_code
        if code == 401:
            return "The Hub does not accept the token; run `hf auth login` again, or set HF_TOKEN."
        if code == 403:
            return f"The token may not write to {repository}; use one with write access to it."
        reason = error.server_message or first_line(error)
        return f"The Hub refuses the upload to {repository} ({code}): {reason.rstrip('.')}."
    if isinstance(error, HTTPError | OSError):
        return f"The Hub cannot be reached ({first_line(error)}); check the network and HF_HUB_OFFLINE."
    return f"The upload to {repository} failed: {first_line(error)}."
