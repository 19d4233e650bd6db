"""The parts of a comparison that are pure functions: fronts, tests, axes, charts."""

import itertools
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from splade_lit.evaluation.metric_names import METRICS
from splade_lit.evaluation.paired_tests import Difference, differences, holm, paired_tests
from splade_lit.evaluation.per_query import QueryFigures
from splade_lit.report.captioned_charts import trade_offs
from splade_lit.report.charts import Line, Point, Series, curves, intervals, scatter, sorted_bars
from splade_lit.report.comparison import QUANTITIES, Comparison, compare, pareto_front, with_one_bm25
from splade_lit.report.page import finding
from splade_lit.report.scales import log_ticks, make_scale, ticks
from splade_lit.report.system import Kind, System

EVIL = "<script>&\"'"
FIGURES = st.one_of(st.none(), st.integers(0, 6).map(float))


@given(st.lists(st.tuples(FIGURES, FIGURES), max_size=12))
def test_the_front_has_the_best_at_its_cost_and_the_cheapest_of_its_quality(points):
    front = pareto_front(*([point[i] for point in points] for i in (0, 1)))
    known = [(cost, quality) for cost, quality in points if cost is not None and quality is not None]
    for (cost, quality), on_front in zip(points, front, strict=True):
        if cost is None or quality is None:
            assert not on_front
        else:
            best = max(q for c, q in known if c <= cost)
            cheapest = min(c for c, q in known if q >= quality)
            assert on_front == ((cost, quality) == (cheapest, best))
    assert any(front) == bool(known)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=6))
def test_holm_is_closed_testing_with_bonferroni(p_values):
    numbers = range(len(p_values))
    families = [f for size in range(1, len(p_values) + 1) for f in itertools.combinations(numbers, size)]
    expected = [
        max(min(1.0, len(f) * min(p_values[i] for i in f)) for f in families if number in f) for number in numbers
    ]
    assert holm(p_values) == pytest.approx(expected)


@pytest.mark.parametrize("seed", range(5))
def test_tests_of_a_few_queries_are_exact(seed):
    rng = np.random.default_rng(seed)
    ours, theirs = rng.random(9), rng.random(9) - 0.1 * seed
    p_t, p_random = paired_tests(ours - theirs)
    assert p_t == pytest.approx(stats.ttest_rel(ours, theirs).pvalue)
    signs = np.array(list(itertools.product((-1, 1), repeat=9)))
    means = np.abs(signs @ (ours - theirs))
    assert p_random == pytest.approx(np.mean(means >= abs((ours - theirs).sum()) - 1e-12))


def test_the_randomisation_test_agrees_with_the_t_test_on_many_queries():
    values = np.random.default_rng(1).normal(0.0, 1.0, 1000)
    values += 2 * stats.sem(values) - values.mean()
    p_t, p_random = paired_tests(values)
    assert p_t == pytest.approx(2 * stats.t.sf(2, 999))
    assert p_random == pytest.approx(p_t, abs=0.01)
    assert paired_tests(values) == (p_t, p_random)


def test_tests_of_what_never_varies():
    assert paired_tests(np.zeros(50)) == (1.0, 1.0)
    assert paired_tests(np.ones(1)) == (1.0, 1.0)
    p_t, p_random = paired_tests(np.ones(50))
    assert p_t == 0.0
    assert p_random <= 0.001


def figures(task: str, values: dict[str, float]) -> QueryFigures:
    metrics = {name: list(values.values()) for name in METRICS}
    return QueryFigures(task, list(values), [f"text of {id}" for id in values], metrics)


def test_only_queries_of_both_count():
    ours = [figures("t", {"a": 0.1, "b": 0.5, "c": 0.5}), figures("u", {"a": 1.0})]
    theirs = [figures("t", {"c": 0.9, "b": 0.6, "d": 0.0}), figures("u", {"a": 0.0})]
    (pair,) = differences({"ours": ours, "theirs": theirs}, frozenset({"t"}), "ndcg@10")
    assert (pair.first, pair.second) == ("theirs", "ours")
    assert dict(zip(pair.keys, pair.values, strict=True)) == pytest.approx({("t", "b"): 0.1, ("t", "c"): 0.4})
    assert pair.queries == ["text of b", "text of c"]
    assert (pair.wins, pair.ties, pair.losses) == (2, 0, 0)
    assert pair.extremes(1) == ([1], [])
    assert differences({"ours": ours, "nobody": [figures("t", {"z": 1.0})]}, frozenset({"t"}), "ndcg@10") == []


def test_all_pairs_are_corrected_together():
    rng = np.random.default_rng(1)
    systems = {
        name: [figures("t", {str(n): float(v) for n, v in enumerate(rng.normal(shift, 0.4, 40))})]
        for name, shift in (("a", 0.0), ("b", 0.2), ("c", 0.4))
    }
    pairs = differences(systems, frozenset({"t"}), "ndcg@10")
    assert len(pairs) == 3
    alone = [paired_tests(pair.values) for pair in pairs]
    assert [pair.p_t for pair in pairs] == pytest.approx(holm([p_t for p_t, _ in alone]))
    assert [pair.p_random for pair in pairs] == pytest.approx(holm([p_random for _, p_random in alone]))
    assert any(pair.significant for pair in pairs)


def test_bm25_of_several_runs_is_one_system_where_it_agrees():
    def group(name: str, **sets: float) -> list[System]:
        known = {one: {"ndcg@10": value} for one, value in sets.items()}
        return [System(name, "run"), System("BM25", "bm25", "words", known)]

    one = with_one_bm25([group("a", x=0.1), group("b", x=0.1, y=0.2), [System("c", "other")]])
    assert [system.name for system in one] == ["a", "b", "c", "BM25"]
    assert one[-1].figures == {"x": {"ndcg@10": 0.1}, "y": {"ndcg@10": 0.2}}
    two = with_one_bm25([group("a", x=0.1), group("b", x=0.3), group("d", x=0.3)])
    assert [system.name for system in two] == ["a", "b", "d", "BM25 (of a)", "BM25 (of b)"]


def compared(**values: list[float]) -> Comparison:
    """A comparison of systems by what each has at each query; BM25 if it is called so."""
    systems = [
        System(
            name,
            "bm25" if name == "BM25" else "run",
            "after",
            {"t": {"ndcg@10": float(np.mean(each))}},
            [figures("t", {str(number): value for number, value in enumerate(each)})],
        )
        for name, each in values.items()
    ]
    return compare(systems, "t")


def test_a_system_ranks_best_where_that_is_more_than_chance():
    good, equal, low = [0.9, 0.8] * 20, [0.8, 0.9] * 20, [0.2, 0.3] * 20
    assert finding(compared(a=good, BM25=low)).startswith(
        "a ranks best on t: nDCG@10 0.8500, 0.6000 above BM25, more than chance (p 0.0"
    )
    assert finding(compared(a=good, b=equal, BM25=low)) == (
        "a shares the highest figure on t: nDCG@10 0.8500, level with b, not more than chance (p 1.0000), "
        "0.6000 above BM25, more than chance (p 0.0006)"
    )
    assert finding(compared(BM25=good, a=low)).startswith("BM25 ranks best on t: nDCG@10 0.8500, 0.6000 above a, more")
    assert finding(compared(a=good)) == "a on t: nDCG@10 0.8500"
    untested = [System(name, "other", figures={"t": {"ndcg@10": value}}) for name, value in (("a", 0.5), ("b", 0.4))]
    assert (
        finding(compare(untested, "t")) == "a has the highest figure on t: nDCG@10 0.5000, 0.1000 above b, not tested"
    )
    assert finding(compare(untested, "")) == "No system has retrieval figures yet"


def test_what_ranks_below_bm25_is_on_no_front_where_its_cost_is_not_known():
    def system(name: str, kind: Kind, quality: float, dims: float | None) -> System:
        known = {} if dims is None else {"corpus_active_dims": dims}
        return System(name, kind, "after", {"t": {"ndcg@10": quality} | known})

    dims = QUANTITIES[0]
    below, above = system("below", "run", 0.3, 50.0), system("above", "run", 0.5, 90.0)
    unknown, known = system("BM25", "bm25", 0.4, None), system("BM25", "bm25", 0.4, 70.0)
    assert compare([below, above, unknown], "t").front(dims) == [False, True, False]
    assert compare([below, above, known], "t").front(dims) == [True, True, True]
    assert compare([system("dearer", "run", 0.3, 80.0), known], "t").front(dims) == [False, True]
    (chart,) = [one for one in trade_offs(compare([below, unknown], "t")) if "dims" in one.title]
    assert chart.title == "Active dims: none on the front, all rank below BM25"
    assert "ring" not in chart.svg


RANGES = st.tuples(st.floats(-1e6, 1e6), st.floats(1e-3, 1e6)).map(lambda pair: (pair[0], pair[0] + pair[1]))


@given(RANGES)
def test_ticks_are_even_and_within(ends):
    low, high = ends
    found = ticks(low, high)
    assert 2 <= len(found) <= 7
    slack = 1e-6 * max(abs(low), abs(high), high - low)
    assert all(low - slack <= tick <= high + slack for tick in found)
    assert np.diff(found) == pytest.approx(np.diff(found)[0], rel=1e-3)


@given(st.lists(st.floats(1e-3, 1e6), min_size=1, max_size=5))
def test_scales_keep_all_values_inside(values):
    for is_cost in (False, True):
        scale = make_scale(values, 50, 350, is_cost)
        assert not is_cost or scale.log or scale.low == 0
        assert all(50 <= scale(value) <= 350 for value in values)
        assert scale.low >= 0
        assert [scale(value) for value in sorted(values)] == sorted(map(scale, values))
        assert scale.ticks
    assert all(1e-2 <= tick <= 1e4 for tick in log_ticks(1e-2, 1e4))


def texts_of(chart: str) -> list[str]:
    return ["".join(title.itertext()) for title in ET.fromstring(chart).iter("title")]


def test_charts_are_well_formed_whatever_the_names_are():
    points = [Point(Series(n), EVIL, 10.0**n, 0.5, f"{EVIL} {n}", n < 2) for n in range(4)]
    chart = scatter(points, EVIL, EVIL, [(Series(9, reference=True), 0.4, EVIL)])
    assert texts_of(chart) == [EVIL, *(f"{EVIL} {n}" for n in range(4))]
    assert ", logarithmic" in chart
    line = Line(Series(0), EVIL, [(n, n * 0.5) for n in range(1000)])
    assert len(texts_of(curves([line], EVIL, EVIL))) == 300
    assert f"{EVIL}, step 999: 499.5" in texts_of(curves([line], EVIL, EVIL))
    pair = Difference(EVIL, "b", [("t", "1"), ("t", "2")], ["", ""], np.array([0.2, 0.2]), 1.0, 1.0)
    assert texts_of(intervals([(Series(0), pair)], EVIL)) == [
        f"{EVIL} minus b: +0.2000, 95 % interval +0.2000 to +0.2000"
    ]
    assert texts_of(sorted_bars([0.2, 0.0, -0.3], ["a", "b", EVIL], EVIL)) == ["a", EVIL]
    ET.fromstring(sorted_bars([0.1] * 300 + [0.0] * 300 + [-0.2], [EVIL] * 601, EVIL))


def test_thirty_systems_are_drawn_differently():
    assert len({(Series(n).css, Series(n).shape) for n in range(30)}) == 30
