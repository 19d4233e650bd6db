"""Settings out of range: every number that a class takes, and those of the command line, end in one sentence."""

from inspect import signature
from typing import Any

import pytest
from command_runs import RETRIEVAL, SPARSITY, call

from splade_lit.core.errors import UserError
from splade_lit.core.ranges import LARGEST_SEED, check_range
from splade_lit.data.datamodule import PairsDataModule
from splade_lit.fit import main
from splade_lit.training.callbacks.carbon import CarbonTracker
from splade_lit.training.callbacks.retrieval import RetrievalEvaluation
from splade_lit.training.callbacks.save_model import SaveModel
from splade_lit.training.callbacks.sparsity_monitor import SparsityMonitor
from splade_lit.training.callbacks.step_progress import ProgressLines
from splade_lit.training.callbacks.terms import TermTable

SEEDS = (-1, LARGEST_SEED + 1)
OUT_OF_RANGE: dict[type, dict[str, tuple[float, ...]]] = {
    RetrievalEvaluation: {"every_n_steps": (0, -5), "max_corpus_documents": (0,)},
    SparsityMonitor: {"every_n_steps": (0,), "num_documents": (0, -1), "num_frequent": (-1,), "bins": (0, 513)},
    TermTable: {"every_n_steps": (0,), "num_documents": (0,), "num_terms": (0,), "seed": SEEDS},
    CarbonTracker: {"measure_power_secs": (0, -1, float("nan"))},
    SaveModel: {"seed": SEEDS},
    ProgressLines: {"seconds": (-1,)},
    PairsDataModule: {
        "max_pairs": (0,),
        "num_eval_pairs": (-1,),
        "split_seed": SEEDS,
        "batch_size": (0,),
        "eval_batch_size": (0,),
        "max_query_tokens": (0,),
        "max_document_tokens": (0,),
        "seed": SEEDS,
        "block_rows": (0,),
        "min_grade": (0,),
        "teacher_max_tokens": (0,),
    },
}
CASES = [
    (cls, name, value) for cls, names in OUT_OF_RANGE.items() for name, values in names.items() for value in values
]


@pytest.mark.parametrize(("cls", "name", "value"), CASES)
def test_each_number_has_a_range(cls: type, name: str, value: float):
    needed = {"tokenizer": "any"} if cls is PairsDataModule else {}
    with pytest.raises(UserError, match=rf"^\w+\.{name} is {value}; it must be (at least|from) [\d.]+( to \d+)?\.$"):
        cls(**needed, **{name: value})


@pytest.mark.parametrize("cls", OUT_OF_RANGE)
def test_no_number_is_forgotten(cls: type):
    numbers = {
        name
        for name, parameter in signature(cls).parameters.items()
        if parameter.annotation in (int, float, int | None, float | None)
    }
    assert numbers == OUT_OF_RANGE[cls].keys()


def test_what_is_not_given_or_at_an_end_is_in_range():
    check_range("data", 1, 3, one=1, three=3, none=None)
    with pytest.raises(UserError, match=r"^data\.four is 4; it must be from 1 to 3\.$"):
        check_range("data", 1, 3, four=4)


def callback(path: str, **settings: Any) -> dict[str, Any]:
    return {"trainer.callbacks": [{"class_path": path, "init_args": settings}]}


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (callback(RETRIEVAL, every_n_steps=0), "RetrievalEvaluation.every_n_steps is 0; it must be at least 1."),
        (callback(RETRIEVAL, tasks=[]), "RetrievalEvaluation.tasks is empty; name a task"),
        (callback(SPARSITY, bins=1000), "SparsityMonitor.bins is 1000; it must be from 1 to 512."),
        ({"seed_everything": -1}, "seed_everything is -1; it must be from 0 to 4294967295."),
        ({"data.eval_batch_size": 0}, "data.eval_batch_size is 0; it must be at least 1."),
        ({"trainer.accumulate_grad_batches": 0}, "trainer.accumulate_grad_batches is 0; it must be at least 1."),
        ({"trainer.check_val_every_n_epoch": 0}, "trainer.check_val_every_n_epoch is 0; it must be at least 1."),
        ({"trainer.log_every_n_steps": -1}, "trainer.log_every_n_steps is -1; it must be at least 0."),
        ({"trainer.gradient_clip_val": -1}, "trainer.gradient_clip_val is -1.0; it must be at least 0."),
        ({"trainer.val_check_interval": 0}, "trainer.val_check_interval is 0; give a number of batches"),
        ({"trainer.barebones": True}, "trainer.barebones leaves out logs, checkpoints and model"),
    ],
)
def test_a_run_is_refused_before_anything_is_written(world, tmp_path, changes, sentence):
    run = tmp_path / "run"
    outcome = call(main, "--config", world.config(run, changes))
    assert (outcome.code, len(outcome.errors)) == (2, 1), outcome.err
    assert sentence in outcome.errors[0]
    assert not run.exists()
