"""The engine behind an address, and a search with texts."""

from collections.abc import Collection, Sequence
from pathlib import Path
from weakref import WeakKeyDictionary

from splade_lit.core.errors import UserError
from splade_lit.encoder.query_side import QuerySide, load_query_side
from splade_lit.engines.index import Hit, Index, read_index_json
from splade_lit.engines.names import ENGINES, engine_class

_query_sides: WeakKeyDictionary[Index, QuerySide] = WeakKeyDictionary()


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


def search_texts(
    index: Index, texts: str | Sequence[str], k: int, only: Collection[str] | None = None
) -> list[list[Hit]]:
    """The best k documents of each text, or of one, as `Index.search` gives them.

    The query side that the index holds looks them up; it is loaded at the first call.

    Raises:
        UserError: the index has no query side, or that is damaged, or the server of the index does not answer.
    """
    if index not in _query_sides:
        if index.query_folder is None:
            raise UserError("The index has no query side; build it with python -m splade_lit.index.")
        _query_sides[index] = load_query_side(index.query_folder)
    return index.search(_query_sides[index].encode(texts), k, only)
