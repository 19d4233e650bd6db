"""A retrieval task beside the page: what its queries are worth with every cap, measured while the page is in use."""

import logging
import threading
from collections.abc import Mapping, Sequence

from splade_lit.core.errors import UserError
from splade_lit.data.tasks import RetrievalTask
from splade_lit.engines.index import Hit
from splade_lit.evaluation.metrics import rank_metrics
from splade_lit.web.systems import System

_DEPTH = 10

logger = logging.getLogger(__name__)


class JudgedQueries:
    """nDCG@10 of systems on a task, by cap. Only documents that share a term with a query are found.

    Args:
        task: with judgements of documents that the systems have.
        systems: what is measured.

    Raises:
        UserError: no judgement names a document of one of them.
    """

    def __init__(self, task: RetrievalTask, systems: Sequence[System]) -> None:
        self.task, self._systems = task, tuple(systems)
        self._ids = {text.strip(): id for id, text in reversed(task.queries.items())}
        self._left_out = task.left_out
        self._figures: dict[tuple[int, int | None], float] = {}  # written by one thread, read by all
        self._is_complete = [False] * len(systems)
        relevant = [id for query in task.queries for id, grade in task.qrels.get(query, {}).items() if grade > 0]
        for system in systems:
            if not any(system.has(id) for id in relevant[:1000]):
                raise UserError(
                    f"{task.name}: no judgement names a document of {system.name}; give the task of its corpus."
                )

    @property
    def queries(self) -> list[str]:
        """The texts of the queries."""
        return list(self._ids)

    def grades(self, query: str) -> dict[str, int]:
        """The grades of documents for a query of the task, by its text; none for any other."""
        id = self._ids.get(query.strip())
        return {} if id is None else self.task.qrels.get(id, {})

    def leaves_out(self, query: str) -> bool:
        """Whether the query's own document is among those that are searched, and does not count."""
        return self._ids.get(query.strip()) in self._left_out

    def ndcg_of(self, query: str, hits: Sequence[Hit]) -> float | None:
        """nDCG@10 of the hits of one query; None if it is not of the task."""
        id = self._ids.get(query.strip())
        return None if id is None else self._ndcg({id: hits})

    def ndcg(self, system: int, cap: int | None) -> float | None:
        """nDCG@10 of a system with a cap, once it has been measured."""
        return self._figures.get((system, cap))

    def is_complete(self, system: int) -> bool:
        """Whether all caps have been measured."""
        return self._is_complete[system]

    def start(self) -> None:
        """Measure all caps of all systems, in a thread that ends with the process."""
        threading.Thread(target=self._measure, daemon=True).start()

    def _measure(self) -> None:
        try:
            for cap_first in (True, False):  # first what all have: no cap
                for number, system in enumerate(self._systems):
                    vectors = {id: system.encode(text) for id, text in self.task.queries.items()}
                    for cap in [None] if cap_first else reversed(system.caps()):
                        hits = {id: system.search(vector, _DEPTH + 1, cap) for id, vector in vectors.items()}
                        self._figures[number, cap] = self._ndcg(hits)
                    self._is_complete[number] = not cap_first
        except Exception:
            logger.exception("nDCG@10 could not be measured")
            self._is_complete = [True] * len(self._systems)  # nobody need wait for it

    def _ndcg(self, found: Mapping[str, Sequence[Hit]]) -> float:
        run = {
            query: {id: score for id, score in hits if not (query in self._left_out and id == query)}
            for query, hits in found.items()
        }
        return float(rank_metrics(run, self.task.qrels, self.task.graded).means["ndcg@10"])
