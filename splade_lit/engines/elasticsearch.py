"""Elasticsearch as an engine: its `sparse_vector`, or `rank_features` for versions before 8.15.

Who asks is read from the environment: ELASTICSEARCH_API_KEY, or ELASTICSEARCH_USER and ELASTICSEARCH_PASSWORD, and
ELASTICSEARCH_CA_CERTS, a file of certificates, for a server whose own one is not known otherwise. They go to known
servers alone (`known_hosts`).
"""

import os
from typing import Any, ClassVar

from splade_lit.engines.cluster import MANTISSA_BITS, ClusterIndex
from splade_lit.engines.cluster_bodies import Ceilings, Field, index_body
from splade_lit.engines.connection import Connection
from splade_lit.engines.index import Server
from splade_lit.engines.known_hosts import check_known
from splade_lit.engines.limits import EngineLimits
from splade_lit.engines.names import require

_SECONDS = 60
_HIDES_VECTORS = (9, 2)  # from here on, vectors are left out of what an index gives back


def connect(server: Server) -> Connection:
    """A connection by the package elasticsearch, whose major version must be that of the cluster, or one before it.

    Raises:
        UserError: it is not installed, or the server does not answer.
    """
    elasticsearch = require("elasticsearch", "elasticsearch")
    user = os.environ.get("ELASTICSEARCH_USER")
    settings: dict[str, Any] = {"ca_certs": os.environ.get("ELASTICSEARCH_CA_CERTS")}
    if key := os.environ.get("ELASTICSEARCH_API_KEY"):
        settings["api_key"] = key
    elif user:
        settings["basic_auth"] = (user, os.environ.get("ELASTICSEARCH_PASSWORD", ""))
    if key or user:
        secret = "ELASTICSEARCH_API_KEY" if key else "ELASTICSEARCH_PASSWORD"
        check_known(server.url, "ELASTICSEARCH_URL", secret)
    given = {name: value for name, value in settings.items() if value is not None}

    def make_client() -> Any:
        return elasticsearch.Elasticsearch(
            server.url, request_timeout=_SECONDS, max_retries=0, http_compress=True, **given
        )

    errors = (elasticsearch.ApiError, elasticsearch.TransportError)
    return Connection(make_client, server, errors)


class ElasticsearchIndex(ClusterIndex):
    """See `ClusterIndex`: `sparse_vector`, with the pruning of tokens switched off in each query."""

    engine, product = "elasticsearch", "elasticsearch"
    limits = EngineLimits(engine, mantissa_bits=MANTISSA_BITS)
    field: ClassVar[Field] = "sparse_vector"
    least_version = (8, 15)

    @classmethod
    def connect(cls, server: Server) -> Connection:
        """See `connect`."""
        return connect(server)

    @classmethod
    def _body(cls, connection: Connection, ceilings: Ceilings | None) -> dict[str, Any]:
        body = index_body(cls.product, cls.field, ceilings)
        if connection.version >= _HIDES_VECTORS:
            body["settings"] = {"index.mapping.exclude_source_vectors": False}
        return body


class ElasticsearchFeaturesIndex(ElasticsearchIndex):
    """See `ClusterIndex`: `rank_features`, which older versions have, too."""

    engine, field = "elasticsearch-rank-features", "rank_features"
    limits = EngineLimits(engine, mantissa_bits=MANTISSA_BITS)
    least_version = (7, 0)
