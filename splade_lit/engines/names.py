"""The engines that an index can have, by name; their modules are imported when they are asked for."""

from importlib import import_module
from typing import TYPE_CHECKING, Any, cast

from splade_lit.core.errors import UserError

if TYPE_CHECKING:
    from splade_lit.engines.index import Index

ENGINES = {
    "exact": "exact.ExactIndex",
    "seismic": "seismic.SeismicIndex",
    "qdrant": "qdrant.QdrantIndex",
    "pgvector": "pgvector.PgvectorIndex",
    "opensearch": "opensearch.OpenSearchIndex",
    "opensearch-seismic": "opensearch.OpenSearchSeismicIndex",
    "elasticsearch": "elasticsearch.ElasticsearchIndex",
    "elasticsearch-rank-features": "elasticsearch.ElasticsearchFeaturesIndex",
}
"""Name to module and class, as index.json names them."""

SERVERS = (
    "qdrant",
    "pgvector",
    "opensearch",
    "opensearch-seismic",
    "elasticsearch",
    "elasticsearch-rank-features",
)
"""Those that can keep documents on a server."""


def engine_class(name: object) -> "type[Index]":
    """The class of an engine.

    Raises:
        UserError: there is no engine of this name, or its package is not installed.
    """
    if not isinstance(name, str) or name not in ENGINES:
        raise UserError(f"the engine {name!r} is not known here; known are {', '.join(ENGINES)}.")
    module, _, class_name = ENGINES[name].partition(".")
    return cast("type[Index]", getattr(import_module(f"splade_lit.engines.{module}"), class_name))


def require(name: str, extra: str) -> Any:
    """The module of an engine's package.

    Raises:
        UserError: it is not installed.
    """
    try:
        return import_module(name)
    except ImportError as error:
        hint = f"pip install -c constraints.txt -e '.[{extra}]'"
        raise UserError(f"The engine needs {name}, which is not installed; run `{hint}`.") from error
