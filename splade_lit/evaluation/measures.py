"""Measures by the names of the library ir_measures, which computes them: `nDCG@10`, `RR@10`, `R@1000`, `AP(rel=2)@100`.

MacAvaney, Macdonald and Ounis (2022), "Streamlining evaluation with ir-measures". Most are trec_eval's, whose
definitions and ties they follow: documents of equal score are ranked by id, the last one first, where `rank_metrics`
puts the first one first; `RR` with a cut-off is that of MS MARCO's script, which puts the first one first.
"""

from collections.abc import Iterable, Mapping, Sequence

import ir_measures
import numpy as np
from ir_measures import MeanAgg, Measure
from jaxtyping import Float64

from splade_lit.core.errors import UserError
from splade_lit.data.tasks import RetrievalTask

FULL_DEPTH = 1000
"""Documents a query of a ranking without a cut-off, as in TREC's runs."""

_EXAMPLES = "such as nDCG@10, RR@10, R@1000, P@5, AP or 'AP(rel=2)@100'"


def measure_names(names: Iterable[str]) -> tuple[str, ...]:
    """The measures as the library writes them, each once; they are tried on a small ranking.

    Raises:
        UserError: the library does not know one, cannot compute it here, or needs more than grades of documents for it.

    >>> measure_names(["nDCG@10", "MRR@10", "R@1000", "NDCG@10"])
    ('nDCG@10', 'RR@10', 'R@1000')
    """
    return tuple(dict.fromkeys(str(_parsed(name)) for name in names))


def _parsed(name: str) -> Measure:
    try:
        measure = ir_measures.parse_measure(name)
        measure.validate_params()
    except (ValueError, NameError, AssertionError, TypeError) as error:
        raise UserError(f"{name!r} is no measure of ir_measures; give names {_EXAMPLES}.") from error
    if measure.params.get("cutoff", 1) < 1:
        raise UserError(f"{name!r}: a ranking is cut at rank 1 or later; give names {_EXAMPLES}.")
    if not isinstance(measure.aggregator(), MeanAgg):
        raise UserError(f"{name!r} is a sum, not a mean over queries; give names {_EXAMPLES}.")
    try:
        if more := set(ir_measures.qrel_inputs([measure])) - {"query_id", "doc_id", "relevance"}:
            raise ValueError(f"judgements with {', '.join(sorted(more))}")
        ir_measures.calc_aggregate([measure], {"q": {"a": 1, "b": 0}}, {"q": {"a": 2.0, "b": 1.0}})
    except Exception as error:  # whatever the programs behind the library raise where they are not there
        ways = "it needs a package or judgements that are not here"
        raise UserError(f"{name!r} cannot be computed: {ways}; give names {_EXAMPLES}.") from error
    return measure


def check_judged(tasks: Iterable[RetrievalTask]) -> None:
    """Check that the judgements of tasks have the grades that their measures count.

    Raises:
        UserError: one counts grades from a number on that no document has.
    """
    for task in tasks:
        highest = max((grade for grades in task.qrels.values() for grade in grades.values()), default=0)
        for name in task.measures:
            least = ir_measures.parse_measure(name).params.get("rel", 1)
            if least > highest:
                raise UserError(
                    f"{name} counts grades of {least} and more as relevant, but the highest grade of {task.name} is "
                    f"{highest}; give a lower rel, or leave the measure out."
                )


def search_depth(measures: Iterable[str], least: int) -> int:
    """The rank that the deepest measure looks at, `FULL_DEPTH` for one without a cut-off, and `least` or more.

    >>> search_depth(["nDCG@10"], 100), search_depth(["R@500", "P@5"], 100), search_depth(["AP"], 100)
    (100, 500, 1000)
    """
    return max([least, *(_depth(ir_measures.parse_measure(name)) for name in measures)])


def _depth(measure: Measure) -> int:
    # With judged documents alone, those within the cut-off may lie anywhere below it.
    cutoff: int = measure.params.get("cutoff", FULL_DEPTH)
    return max(cutoff, FULL_DEPTH) if measure.params.get("judged_only") else cutoff


def measure_values(
    run: Mapping[str, Mapping[str, float]],
    qrels: Mapping[str, Mapping[str, int]],
    measures: Sequence[str],
    query_ids: Sequence[str],
) -> dict[str, Float64[np.ndarray, " queries"]]:
    """Measure to its value at each of the queries, as the library gives it.

    >>> run, qrels = {"q": {"a": 3.0, "b": 2.0}}, {"q": {"b": 1, "c": 2}}
    >>> {name: values.tolist() for name, values in measure_values(run, qrels, ["RR@10", "R@5"], ["q"]).items()}
    {'RR@10': [0.5], 'R@5': [0.5]}
    """
    if not measures:
        return {}
    parsed = {ir_measures.parse_measure(name): name for name in measures}
    values = {name: dict.fromkeys(query_ids, np.nan) for name in measures}
    # trec_eval takes no query without a document; the library has a value for those that it is not given.
    found = {query_id: dict(run[query_id]) for query_id in query_ids if run[query_id]}
    judged = {query_id: dict(qrels[query_id]) for query_id in query_ids}
    for metric in ir_measures.iter_calc(list(parsed), judged, found):
        values[parsed[metric.measure]][metric.query_id] = metric.value
    return {name: np.array([by_query[one] for one in query_ids], np.float64) for name, by_query in values.items()}
