"""Writing files so that a reader never sees half of one."""

import os
import tempfile
from pathlib import Path

from splade_lit.errors import UserError


def replace_text(path: Path, text: str) -> None:
    """Write a text file under a temporary name and move it into place; its folder is made.

    Raises:
        UserError: the file cannot be written; what was there before is untouched.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, scratch = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(text)
            os.chmod(scratch, 0o644)
            os.replace(scratch, path)
        except BaseException:
            os.unlink(scratch)
            raise
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror}); free space or choose another folder.") from error
