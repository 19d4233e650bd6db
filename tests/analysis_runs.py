"""What tests of the analysis share: a run of ours with checkpoints, a model put together by sentence-transformers."""

from pathlib import Path
from typing import Any

from command_runs import CHECKPOINT, World, call
from release_side import put_together

from splade_lit.fit import main

KEEP_ALL = {
    "class_path": CHECKPOINT,
    "init_args": {"every_n_train_steps": 3, "save_top_k": -1, "save_weights_only": True},
}


def train(world: World, name: str, changes: dict[str, Any] | None = None) -> Path:
    """Train 6 steps from the IDF of the training documents, a checkpoint every 3; gives the folder of the run."""
    run = world.folder / "runs" / name
    settings = {"model.idf": "corpus", "model.idf_learning_rate": 0.1, "trainer.callbacks": [KEEP_ALL]}
    outcome = call(main, "--config", world.config(run, settings | (changes or {})))
    assert outcome.code == 0, outcome.err
    return run


def save_with_peer(world: World) -> Path:
    """A model of sentence-transformers' own modules, with all settings that it has, in a folder without a run."""
    folder = world.folder / "peer"
    put_together(str(world.base)).save_pretrained(str(folder))
    return folder
