"""A saved model and its card on the Hugging Face Hub: what goes up, what must not, and what the Hub can answer."""

import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi, ModelCard, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, HTTPError
from huggingface_hub.utils import validate_repo_id

from splade_lit.card.record import README, Card, read_record, write_record
from splade_lit.card.render import model_card
from splade_lit.core.errors import UserError, first_line
from splade_lit.core.files import replace_text
from splade_lit.encoder.model import AsymmetricSparseEncoder

_PICKLE_SUFFIXES = (".pkl", ".pickle", ".pt", ".pth", ".ckpt", ".joblib")


@dataclass(frozen=True)
class Upload:
    """A saved model that may go up.

    Attributes:
        repository: owner/name on the Hub.
        folder: of the model.
        files: name in the repository to file.
        card: the record of the card with this repository in its examples; None if the card stays as it is.
    """

    repository: str
    folder: Path
    files: Mapping[str, Path]
    card: Card | None

    @classmethod
    def of(cls, folder: Path, repository: str) -> "Upload":
        """Check a folder and the name of a repository; asks no network.

        Raises:
            UserError: the folder holds no saved model, a pickle or no card, or the name is not that of a repository.
        """
        _check_repository(repository)
        files = model_files(folder)
        _check_model(folder, files)
        return cls(repository, folder, files, _renamed_card(folder, repository))

    def listing(self) -> str:
        """A line for each file with its size, and one for all."""
        sizes = {name: path.stat().st_size for name, path in self.files.items()}
        lines = [f"{_size(size):>10}  {name}" for name, size in sizes.items()]
        total = f"{_size(sum(sizes.values())):>10}  {len(sizes)} files would go to {self.repository}"
        return "\n".join([*lines, total])

    def send(self, private: bool, revision: str | None, message: str) -> str:
        """Upload all files in one commit; repository and branch are made if they do not exist.

        Args:
            private: make a new repository private.
            revision: branch; main if not given.
            message: of the commit.

        Returns:
            Address of the commit.

        Raises:
            UserError: there is no token, or the Hub cannot be reached or refuses.
        """
        if get_token() is None:
            raise UserError("There is no token for the Hub; run `hf auth login`, or set HF_TOKEN.")
        if self.card is not None:
            write_record(self.card, self.folder)
            replace_text(self.folder / README, model_card(self.card))
        with _plain_errors(self.repository):
            operations = [CommitOperationAdd(name, path) for name, path in self.files.items()]
            api = HfApi()
            api.create_repo(self.repository, private=private or None, exist_ok=True)
            if revision is not None:
                api.create_branch(self.repository, branch=revision, exist_ok=True)
            commit = api.create_commit(self.repository, operations, commit_message=message, revision=revision)
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
    except Exception as error:  # whatever the YAML at its head brings about
        raise UserError(
            f"{files[README]}: the YAML at its head cannot be read; mend it, or write another card."
        ) from error


def _check_repository(repository: str) -> None:
    try:
        validate_repo_id(repository)
    except HFValidationError as error:
        raise UserError(f"{repository!r} is not the name of a repository; give one such as owner/name.") from error
    if "/" not in repository:
        raise UserError(f"{repository!r} lacks its owner; give a name such as owner/{repository}.")


def _renamed_card(folder: Path, repository: str) -> Card | None:
    """The record of the card with this repository in its examples; None if they stay as they are."""
    card = read_record(folder)
    if card is None or card.model_id == repository or (folder / README).read_text("utf-8") != model_card(card):
        return None
    return replace(card, model_id=repository)


@contextmanager
def _plain_errors(repository: str) -> Iterator[None]:
    """Turns whatever the Hub's client raises into one sentence.

    Raises:
        UserError: in place of it.
    """
    try:
        yield
    except HfHubHTTPError as error:
        code = error.response.status_code
        if code == 401:
            raise UserError("The Hub does not accept the token; run `hf auth login` again, or set HF_TOKEN.") from error
        if code == 403:
            raise UserError(f"The token may not write to {repository}; use one with write access to it.") from error
        reason = error.server_message or first_line(error)
        raise UserError(f"The Hub refuses the upload to {repository} ({code}): {reason.rstrip('.')}.") from error
    except (HTTPError, OSError) as error:
        raise UserError(
            f"The Hub cannot be reached ({first_line(error)}); check the network and HF_HUB_OFFLINE."
        ) from error
    except (ValueError, RuntimeError) as error:
        raise UserError(f"The upload to {repository} failed: {first_line(error)}.") from error


def _size(size: int) -> str:
    """Bytes for a person.

    >>> _size(512), _size(90_000_000)
    ('512 B', '90.0 MB')
    """
    if size < 1000:
        return f"{size} B"
    return f"{size / 1000:.1f} kB" if size < 1_000_000 else f"{size / 1_000_000:.1f} MB"
