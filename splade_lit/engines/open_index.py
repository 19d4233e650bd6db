"""The engine behind an address."""

from pathlib import Path

from splade_lit.core.errors import UserError
from splade_lit.engines.index import Index, read_index_json
from splade_lit.engines.names import ENGINES, engine_class


def open_index(address: str | Path) -> Index:
    """The index in a folder, whose documents are there or on the server that it names.

    Raises:
        UserError: there is none, it is damaged, of an engine that is not known here or whose package is not installed,
            or its server does not answer.
    """
    engine = read_index_json(Path(address)).get("engine")
    if engine not in ENGINES:
        raise UserError(f"{address}: the index is of the engine {engine!r}, which is not known here.")
    return engine_class(engine)(Path(address))
