"""The folder of what is worth computing once."""

import os
from pathlib import Path

CACHE_VARIABLE = "SPLADE_LIT_CACHE"


def cache_folder(folder: str | Path | None = None) -> Path:
    """`folder`, else the environment variable SPLADE_LIT_CACHE, else `~/.cache/splade_lit`; not created here."""
    chosen = folder or os.environ.get(CACHE_VARIABLE) or "~/.cache/splade_lit"
    return Path(chosen).expanduser()
