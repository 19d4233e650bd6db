"""An index of a cluster behind opensearch-py or elasticsearch, which take the same calls."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from splade_lit.core.errors import UserError, first_line
from splade_lit.engines.index import Hit, NameTakenError, Server

_TRIES = 6  # of documents that a busy cluster puts off
_EXAMPLE = "http://localhost:9200"
_TAKEN = "resource_already_exists"


class Connection:
    """An index of a cluster behind the client of its maker; UserErrors say what the cluster does not do.

    Args:
        make_client: makes a client of opensearch-py or elasticsearch.
        server: where, and the name of the index.
        errors: the exceptions of the client.

    Raises:
        UserError: this is no address of such a cluster, or it does not answer.
    """

    def __init__(self, make_client: Callable[[], Any], server: Server, errors: tuple[type[Exception], ...]) -> None:
        self.name, self.url, self._errors = server.name, server.url, errors
        try:
            with self.plain_errors():
                self.client = make_client()
                number = self.client.info()["version"]["number"]
            self.version = tuple(int(part) for part in number.split("-")[0].split(".")[:2])
        except (ValueError, TypeError, KeyError, AttributeError, OSError) as error:
            raise UserError(
                f"{self.url} is no address of a cluster ({first_line(error)}); give one such as {_EXAMPLE}."
            ) from error

    @contextmanager
    def plain_errors(self) -> Iterator[None]:
        """Turn what the client raises into UserErrors."""
        try:
            yield
        except self._errors as error:
            raise UserError(f"{self.url} does not do what is asked: {first_line(error)}.") from error

    def exists(self) -> bool:
        """Whether the index is there."""
        with self.plain_errors():
            return bool(self.client.indices.exists(index=self.name))

    def check_free(self) -> None:
        """Raise a NameTakenError if there is an index of this name."""
        if self.exists():
            raise NameTakenError(self.url, "an index", self.name)

    def create(self, body: dict[str, Any]) -> None:
        """Make the index; a NameTakenError if there is one of this name."""
        self.check_free()
        with self.plain_errors():
            try:
                self.client.indices.create(index=self.name, body=body)
            except self._errors as error:
                if _TAKEN in str(error):  # somebody has made it meanwhile
                    raise NameTakenError(self.url, "an index", self.name) from error
                raise

    def drop(self) -> None:
        """Remove the index, if it is there."""
        if self.exists():
            with self.plain_errors():
                self.client.indices.delete(index=self.name)

    def refresh(self) -> None:
        """Have all documents found from now on."""
        with self.plain_errors():
            self.client.indices.refresh(index=self.name)

    def send(self, actions: Sequence[dict[str, Any]], sources: Sequence[dict[str, Any] | None]) -> list[dict[str, Any]]:
        """Do actions on documents; what has become of each. Those that a busy cluster puts off are sent again."""
        done: list[dict[str, Any]] = [{} for _ in actions]
        waiting = list(range(len(actions)))
        for attempt in range(_TRIES):
            lines = [line for row in waiting for line in (actions[row], sources[row]) if line is not None]
            with self.plain_errors():
                answer = self.client.bulk(index=self.name, body=lines)
            for row, item in zip(waiting, answer["items"], strict=True):
                ((_, done[row]),) = item.items()
            waiting = [row for row in waiting if done[row]["status"] == 429]
            if not waiting:
                return done
            time.sleep(0.1 * 2**attempt)
        raise UserError(f"{self.url} is too busy to take documents; try again later.")

    def search(self, body: dict[str, Any], **parameters: Any) -> list[Hit]:
        """The hits of a query."""
        with self.plain_errors():
            answer = self.client.search(index=self.name, body=body, **parameters)
        if answer["timed_out"] or answer["_shards"]["failed"]:
            raise UserError(f"{self.url} has answered for a part of the index only; try again.")
        return [Hit(hit["_id"], hit["_score"]) for hit in answer["hits"]["hits"]]

    def sources(self, ids: Sequence[str], field: str) -> dict[str, Any]:
        """A field of documents by id, as far as they are there and have it."""
        if not ids:
            return {}
        asked = [{"_id": id, "_source": [field]} for id in ids]
        with self.plain_errors():
            answer = self.client.mget(index=self.name, body={"docs": asked})
        found = ((item["_id"], item["_source"]) for item in answer["docs"] if item.get("found"))
        return {id: source[field] for id, source in found if field in source}

    def count(self) -> int:
        """How many documents there are."""
        with self.plain_errors():
            return int(self.client.count(index=self.name)["count"])

    def num_bytes(self) -> int:
        """What the index takes, without copies."""
        with self.plain_errors():
            stats = self.client.indices.stats(index=self.name, metric="store")
        return int(stats["_all"]["primaries"]["store"]["size_in_bytes"])

    def close(self) -> None:
        """Let go of connections."""
        self.client.close()
