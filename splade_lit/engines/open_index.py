"""The engine behind an address."""

from pathlib import Path

from splade_lit.core.errors import UserError
from splade_lit.engines.exact import ENGINE, ExactIndex
from splade_lit.engines.index import read_index_json


def open_index(address: str | Path) -> ExactIndex:
    """The index in a folder; a UserError if there is none, it is damaged, or of an engine that is not known here."""
    if (engine := read_index_json(Path(address)).get("engine")) != ENGINE:
        raise UserError(f"{address}: the index is of the engine {engine!r}, which is not known here.")
    return ExactIndex(address)
