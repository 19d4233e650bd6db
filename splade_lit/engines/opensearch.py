"""OpenSearch as an engine: exact on `rank_features`, or SEISMIC on its `sparse_vector`.

Who asks is read from the environment: OPENSEARCH_USER and OPENSEARCH_PASSWORD, and OPENSEARCH_CA_CERTS, a file of
certificates, for a server whose own one is not known otherwise. They go to known servers alone (`known_hosts`).
"""

import os
from typing import Any

from splade_lit.engines.cluster import MANTISSA_BITS, ClusterIndex, SeismicSearch
from splade_lit.engines.cluster_bodies import MAX_SEISMIC_VOCAB_SIZE
from splade_lit.engines.connection import Connection
from splade_lit.engines.index import Server
from splade_lit.engines.known_hosts import check_known
from splade_lit.engines.limits import EngineLimits
from splade_lit.engines.names import require

_SECONDS = 60


def connect(server: Server) -> Connection:
    """A connection by opensearch-py.

    Raises:
        UserError: opensearch-py is not installed, or the server does not answer.
    """
    opensearch = require("opensearchpy", "opensearch")
    if user := os.environ.get("OPENSEARCH_USER"):
        check_known(server.url, "OPENSEARCH_URL", "OPENSEARCH_PASSWORD")

    def make_client() -> Any:
        return opensearch.OpenSearch(
            hosts=[server.url],
            http_auth=(user, os.environ.get("OPENSEARCH_PASSWORD", "")) if user else None,
            ca_certs=os.environ.get("OPENSEARCH_CA_CERTS"),
            timeout=_SECONDS,
            max_retries=0,
            http_compress=True,
        )

    errors = (opensearch.exceptions.OpenSearchException, opensearch.exceptions.ImproperlyConfigured)
    return Connection(make_client, server, errors)


class OpenSearchIndex(ClusterIndex):
    """See `ClusterIndex`: `rank_features`, and a query that no plugin is needed for and no setting prunes."""

    engine, product, field = "opensearch", "opensearch", "rank_features"
    limits = EngineLimits(engine, mantissa_bits=MANTISSA_BITS)

    @classmethod
    def connect(cls, server: Server) -> Connection:
        """See `connect`."""
        return connect(server)


class OpenSearchSeismicIndex(SeismicSearch):
    """See `SeismicSearch`; features are dims, which OpenSearch tells apart up to 65,536."""

    engine, product, field = "opensearch-seismic", "opensearch", "sparse_vector"
    limits = EngineLimits(engine, max_vocab_size=MAX_SEISMIC_VOCAB_SIZE, mantissa_bits=MANTISSA_BITS)
    least_version = (3, 3)

    @classmethod
    def connect(cls, server: Server) -> Connection:
        """See `connect`."""
        return connect(server)
