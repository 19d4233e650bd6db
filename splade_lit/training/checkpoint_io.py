"""How checkpoints are written: whole or not at all, and with a sentence where they cannot be."""

from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO

from splade_lit.core.errors import UserError
from splade_lit.core.files import whole_file

_OF_THE_WRITER = ("PytorchStreamWriter", "inline_container", "iostream")  # in what torch says of a full disk


class WholeCheckpoints(TorchCheckpointIO):
    """Writes a checkpoint beside its place and moves it there, so that a good one gives way to a good one only.

    Lightning's own way goes through the folder of temporary files, from which a file is copied where it is on another
    disk, and holds all of it in memory. Addresses such as `s3://` are left to it.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Write a checkpoint; a UserError says that it cannot be, and leaves what was there before."""
        if "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        try:
            with whole_file(Path(path)) as temporary:
                torch.save(checkpoint, temporary)
        except OSError as error:
            raise _unwritable(path, error.strerror or str(error)) from error
        except RuntimeError as error:
            if not any(place in str(error) for place in _OF_THE_WRITER):
                raise
            raise _unwritable(path, "no space, or a limit of the file system") from error


def _unwritable(path: Any, reason: str) -> UserError:
    return UserError(f"{path} cannot be written ({reason}); free space and go on from the checkpoint before it.")
