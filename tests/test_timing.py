"""The timing of `init`: stops by the clock, and says when threads compete."""

import itertools
from dataclasses import replace

import pytest
from command_runs import World, make_world

from splade_lit.data.pairs import load_pairs
from splade_lit.own_data.timing import MeasuredTimes, measure_times

TRAINER = {"accelerator": "cpu", "devices": 1, "precision": "32-true", "gradient_clip_val": 1.0}


@pytest.fixture(scope="module")
def world(tmp_path_factory, tiny_tokenizer) -> World:
    return make_world(tmp_path_factory.mktemp("world"), tiny_tokenizer)


def measured(world: World, tmp_path, clock, seconds: float) -> MeasuredTimes:
    limits = {"max_query_tokens": 16, "max_document_tokens": 32}
    documents = [row["document"] for row in load_pairs(str(world.pairs)).dataset][:64]
    return measure_times(
        {"base_model": str(world.base), "idf": "corpus", **limits},
        {"source": str(world.pairs), "num_eval_pairs": 0, "batch_size": 8, "cache_dir": str(tmp_path), **limits},
        documents,
        TRAINER,
        seconds,
        clock,
    )


def test_all_steps_and_documents_where_there_is_time(world, tmp_path):
    """Each look at the clock takes a second: there are two a step and one a chunk of eight documents."""
    clock = itertools.count().__next__
    times = measured(world, tmp_path, clock, seconds=1_000)
    assert times.steps == (1.0,) * 5
    looks = clock()
    assert looks == 1 + 2 * 6 + 1 + 1 + 8
    assert times.document == pytest.approx(8 / 64)


def test_the_clock_ends_steps_and_documents(world, tmp_path):
    """A step of 10 s in a minute of which 42 s are for steps: the fourth would end too late."""
    clock = itertools.count(0, 10).__next__
    times = measured(world, tmp_path, clock, seconds=60)
    assert times.steps == (10.0,)
    assert clock() <= 60 + 50


def test_a_machine_that_is_too_slow_gives_what_it_can(world, tmp_path):
    times = measured(world, tmp_path, itertools.count(0, 300).__next__, seconds=60)
    assert times.steps == (300.0,)  # the first step, which does not count elsewhere
    assert times.document > 0


def test_competing_threads_are_seen_by_load_or_by_steps():
    alone = MeasuredTimes(start=1.0, steps=(2.0, 2.2, 1.9), document=0.1, load=0.4)
    assert not alone.threads_compete
    assert replace(alone, load=1.1).threads_compete
    assert replace(alone, steps=(2.0, 4.5, 2.1)).threads_compete
    assert replace(alone, steps=(2.0,)).step == 2.0
    assert alone.run_seconds(10, 100) == pytest.approx(1 + 20 + 10)
