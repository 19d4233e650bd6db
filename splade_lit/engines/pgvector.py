"""PostgreSQL with pgvector: documents in a table beside one's other data, each compared with each query.

The product is pgvector's `<#>` over `sparsevec`, whose dims count from 1 in text, and its sum is exact. There is no
index on vectors: HNSW takes 1,000 active dims at most and is approximate, and a scan is what the figures allow.

A server is given by address; without one PostgreSQL runs in the folder of the index, as long as this process does.
A password is not kept: libpq takes it from PGPASSWORD, for known servers alone (`known_hosts`), or ~/.pgpass.
"""

import json
import os
import re
import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import closing, contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np
import psutil
from scipy.sparse import csr_array

from splade_lit.core.errors import UserError, first_line
from splade_lit.core.progress import WorkProgress
from splade_lit.core.text import warn_once
from splade_lit.engines.folder_index import Build, FolderIndex
from splade_lit.engines.index import Hit, IndexStats, NameTakenError, Parts, Server
from splade_lit.engines.index_folder import check_folder
from splade_lit.engines.known_hosts import check_known
from splade_lit.engines.limits import EngineLimits, LimitGuard, check_queries
from splade_lit.engines.names import require
from splade_lit.engines.ties import dot, settled

_LOCAL_TABLE = "documents"
_SECONDS = 20
# Settings with which libpq looks a password up for one host, or in another file, and sends it to another host.
_ELSEWHERE = re.compile("hostaddr|service|passfile", re.IGNORECASE)


class PgvectorIndex(FolderIndex):
    """See `Index`; hits, their order and their scores are those of `ExactIndex`.

    Args:
        folder: of an index that `build` has made.

    Raises:
        UserError: there is no such index, or its server does not answer.
    """

    engine = "pgvector"
    limits = EngineLimits(engine, max_vocab_size=1_000_000_000, max_active_dims=16_000)

    def __init__(self, folder: str | Path) -> None:
        super().__init__(folder)
        self._table = _Table.of(self.folder / self._header.name, self._header.server, self.vocab_size)
        if not self._table.exists():
            raise UserError(f"{self._table.place} has no table {self._table.name}; build the index again.")

    @classmethod
    def _write(cls, place: Path, server: Server | None, build: Build) -> None:
        """On a server, documents become a table in one transaction."""
        with closing(_Table.of(place, server, build.guard.vocab_size)) as table:
            table.create(build.parts, build.guard)

    @classmethod
    def _check_free(cls, server: Server) -> None:
        with closing(_Table.of(Path(), server, 1)) as table:
            table.check_free()

    @classmethod
    def _drop(cls, server: Server) -> None:
        with closing(_Table.of(Path(), server, 1)) as table:
            table.drop()

    @classmethod
    def check(cls, folder: Path, server: Server | None) -> None:
        """See `Index.check`."""
        check_folder(folder, cls.engine, server)
        if server is None:
            _check_local()
        else:
            _Table.of(folder, server, 1).close()

    def add(self, ids: Sequence[str], vectors: csr_array, texts: Sequence[str] | None = None) -> None:
        """Add documents, float32 `[documents, vocab]`; those whose ids are there already take their places."""
        self._check_current()
        guard = LimitGuard(self.limits, self.vocab_size)
        self._table.replace(ids, guard.fit(ids, vectors), texts)
        guard.report()

    def delete(self, ids: Collection[str]) -> int:
        """Delete documents; how many were there."""
        self._check_current()
        return self._table.delete(list(ids))

    def search(self, queries: csr_array, k: int, only: Collection[str] | None = None) -> list[list[Hit]]:
        """The best k documents of each query, `[queries, vocab]`, best first, and of equal scores the lower id first.

        Documents that share no term with a query are no hits. With `only`, no others than these are found. A UserError
        says that queries have other dims than documents, or that the server does not answer.
        """
        check_queries(queries, self.vocab_size)
        queries = queries.sorted_indices()
        allowed = None if only is None else list(only)
        found = []
        for start, end in pairwise(queries.indptr.tolist()):
            dims, weights = queries.indices[start:end], queries.data[start:end].astype(np.float32)
            found.append(self._search(dims, weights, k, allowed) if len(dims) and allowed != [] else [])
        return found

    def _search(self, dims: np.ndarray, weights: np.ndarray, k: int, only: list[str] | None) -> list[Hit]:
        def scores(ids: Sequence[str]) -> dict[str, float]:
            return {id: dot(dims, weights, *vector) for id, vector in self._table.vectors(ids).items()}

        return settled(lambda limit: self._table.best(dims, weights, limit, only), scores, k)

    def text(self, id: str) -> str | None:
        """The text of a document, if it was kept."""
        return self._table.text(id)

    def weights(self, id: str, dims: Sequence[int]) -> list[float]:
        """The weights of some dims of a document; 0 where it has none."""
        there, values = self._table.vectors([id]).get(id, (np.zeros(0, np.int64), np.zeros(0, np.float32)))
        found = dict(zip(there.tolist(), values.tolist(), strict=True))
        return [found.get(int(dim), 0.0) for dim in dims]

    def stats(self) -> IndexStats:
        """What it holds; its bytes are those of the table."""
        return IndexStats(self.engine, *self._table.sizes())

    def close(self) -> None:
        """Let go of the connection, and of a server in the folder."""
        self._table.close()


class _Table:
    """A table of documents behind a connection: `place` says where in messages."""

    def __init__(self, place: str, url: str, name: str, vocab_size: int, stop: Callable[[], None]) -> None:
        psycopg = require("psycopg", "pgvector")
        self.place, self.name, self._vocab_size, self._stop = place, name, vocab_size, stop
        self._vector_class = require("pgvector", "pgvector").SparseVector
        self._sql, self._named = psycopg.sql.SQL, psycopg.sql.Identifier(name)
        register = require("pgvector.psycopg", "pgvector").register_vector
        with self._plain_errors():
            self._connection = psycopg.connect(url, autocommit=True, connect_timeout=_SECONDS)
            try:
                self._connection.execute("SET client_min_messages TO warning")
                self._connection.execute("CREATE EXTENSION IF NOT EXISTS vector")
                register(self._connection)
            except psycopg.Error as error:
                self._connection.close()
                raise UserError(f"{place} has no pgvector ({first_line(error)}); install it there.") from error

    @classmethod
    def of(cls, folder: Path, server: Server | None, vocab_size: int) -> "_Table":
        """The table on a server, or on that of a folder, which is started."""
        if server is None:
            url, stop = _local_server(folder / "postgres")
            return cls(str(folder), url, _LOCAL_TABLE, vocab_size, stop)
        if not server.url.startswith(("postgresql://", "postgres://")):
            raise UserError(f"{server.url} is no address of PostgreSQL; give one such as postgresql://host/database.")
        if "PGPASSWORD" in os.environ:
            check_known(server.url, "PGVECTOR_URL", "PGPASSWORD")
        elif _ELSEWHERE.search(unquote(urlsplit(server.url).query)):
            check_known(server.url, "PGVECTOR_URL", "a password of ~/.pgpass for another host")
        return cls(server.url, server.url, server.name, vocab_size, lambda: None)

    def exists(self) -> bool:
        return self._rows("SELECT to_regclass(%s) IS NOT NULL", (f'"{self.name}"',))[0][0]

    def check_free(self) -> None:
        if self.exists():
            raise NameTakenError(self.place, "a table", self.name)

    def create(self, parts: Parts, guard: LimitGuard) -> None:
        """Make the table and fill it, all or nothing."""
        self.check_free()
        columns = f"""CREATE TABLE {{}} (id text COLLATE "C" PRIMARY KEY, vector sparsevec({self._vocab_size}) NOT NULL,
            active_dims integer NOT NULL, text text)"""
        errors = require("psycopg", "pgvector").errors
        with self._plain_errors(), self._connection.transaction():
            try:
                self._connection.execute(self._sql(columns).format(self._named))
            except (errors.DuplicateTable, errors.UniqueViolation) as error:  # somebody has made it meanwhile
                raise NameTakenError(self.place, "a table", self.name) from error
            with WorkProgress("indexing", "documents", None) as progress:
                for ids, vectors, texts in parts():
                    self._copy(ids, guard.fit(ids, vectors), texts)
                    progress.advance(len(ids))
        with self._plain_errors():
            self._connection.execute(self._sql("ANALYZE {}").format(self._named))

    def replace(self, ids: Sequence[str], vectors: csr_array, texts: Sequence[str] | None) -> None:
        with self._plain_errors(), self._connection.transaction():
            self._connection.execute(self._sql("DELETE FROM {} WHERE id = ANY(%s)").format(self._named), (list(ids),))
            self._copy(ids, vectors, texts)

    def delete(self, ids: list[str]) -> int:
        statement = self._sql("DELETE FROM {} WHERE id = ANY(%s)").format(self._named)
        with self._plain_errors():
            return int(self._connection.execute(statement, (ids,)).rowcount)

    def best(self, dims: np.ndarray, weights: np.ndarray, limit: int, only: list[str] | None) -> list[Hit]:
        # The inner query is a fence (OFFSET 0): else the product would be computed for each place that names it.
        allowed = "" if only is None else "WHERE id = ANY(%(only)s) "
        scored = f"SELECT id, -(vector <#> %(query)s) AS score FROM {{}} {allowed}OFFSET 0"
        statement = f"SELECT id, score FROM ({scored}) s WHERE score > 0 ORDER BY score DESC, id LIMIT %(limit)s"
        values = {"query": self._vector(dims, weights), "limit": limit, "only": only}
        return [Hit(id, float(np.float32(score))) for id, score in self._rows(statement, values)]

    def vectors(self, ids: Sequence[str]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        rows = self._rows("SELECT id, vector FROM {} WHERE id = ANY(%s)", (list(ids),))
        return {
            id: (np.array(vector.indices(), np.int64), np.array(vector.values(), np.float32)) for id, vector in rows
        }

    def text(self, id: str) -> str | None:
        rows = self._rows("SELECT text FROM {} WHERE id = %s", (id,))
        return rows[0][0] if rows else None

    def sizes(self) -> tuple[int, int, int]:
        """Documents, weights and bytes."""
        statement = "SELECT count(*), coalesce(sum(active_dims), 0), pg_total_relation_size(%s::regclass) FROM {}"
        documents, postings, size = self._rows(statement, (f'"{self.name}"',))[0]
        return int(documents), int(postings), int(size)

    def drop(self) -> None:
        with self._plain_errors():
            self._connection.execute(self._sql("DROP TABLE IF EXISTS {}").format(self._named))

    def close(self) -> None:
        self._connection.close()
        self._stop()

    def _rows(self, statement: str, values: Any) -> list[tuple[Any, ...]]:
        with self._plain_errors():
            query = self._sql(statement).format(self._named) if "{}" in statement else statement
            return self._connection.execute(query, values, binary=True).fetchall()

    def _copy(self, ids: Sequence[str], vectors: csr_array, texts: Sequence[str] | None) -> None:
        vectors = vectors.sorted_indices()
        kept: Sequence[str | None] = texts or [None] * len(ids)
        rows = zip(ids, pairwise(vectors.indptr.tolist()), kept, strict=True)
        statement = self._sql("COPY {} (id, vector, active_dims, text) FROM STDIN (FORMAT BINARY)").format(self._named)
        with self._connection.cursor() as cursor, cursor.copy(statement) as copy:
            copy.set_types(["text", "sparsevec", "int4", "text"])
            for id, (start, end), text in rows:
                if text is not None and "\0" in text:
                    warn_once("pgvector: texts with the character U+0000, which PostgreSQL has none of, lose it.")
                    text = text.replace("\0", "")
                vector = self._vector(vectors.indices[start:end], vectors.data[start:end])
                copy.write_row((id, vector, end - start, text))

    def _vector(self, dims: np.ndarray, weights: np.ndarray) -> Any:
        return self._vector_class(dict(zip(dims.tolist(), weights.tolist(), strict=True)), self._vocab_size)

    @contextmanager
    def _plain_errors(self) -> Iterator[None]:
        """What PostgreSQL and its client say, as a sentence."""
        psycopg = require("psycopg", "pgvector")
        try:
            yield
        except psycopg.errors.UniqueViolation as error:
            raise UserError(f"Two documents have one id ({error.diag.message_detail}); make ids unique.") from error
        except psycopg.OperationalError as error:
            raise UserError(
                f"{self.place}: PostgreSQL does not answer ({first_line(error)}); check the address."
            ) from error
        except (psycopg.Error, ValueError) as error:
            raise UserError(f"{self.place}: PostgreSQL refuses that ({first_line(error)}).") from error


def _local_server(folder: Path) -> tuple[str, Callable[[], None]]:
    """The address of a server over the files in a folder, which is started, and what stops it; UserErrors as below."""
    pgserver = _check_local()
    try:
        folder.mkdir(exist_ok=True)
        _forget_ended(folder / ".handle_pids.json")
        server = pgserver.get_server(folder)
    except Exception as error:
        raise UserError(f"{folder}: PostgreSQL does not start ({first_line(error)}).") from error
    return str(server.get_uri()), server.cleanup


def _check_local() -> Any:
    """What starts PostgreSQL; a UserError if it is not installed, or this is the superuser, as whom it does not run."""
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        raise UserError(
            "PostgreSQL does not run as the superuser; work as another user, or give a server's --url postgresql://..."
        )
    with warnings.catch_warnings():  # of where it keeps its lock
        warnings.simplefilter("ignore")
        return require("pgserver", "pgvector")


def _forget_ended(path: Path) -> None:
    """Take processes that are no more off pgserver's list of those that use a server: it stops with the last one."""
    if path.is_file():
        path.write_text(json.dumps([one for one in json.loads(path.read_text()) if psutil.pid_exists(one)]))
