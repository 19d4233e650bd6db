"""Classes that published YAML files name and that have moved: such a file is read all the same."""

import logging
import re

logger = logging.getLogger(__name__)

# What stood in splade_lit.callbacks and stands in splade_lit.training.callbacks.
_CALLBACKS = (
    *("carbon.CarbonTracker", "csv_log.CsvLog", "last_checkpoint.LastCheckpoint", "retrieval.RetrievalEvaluation"),
    *("terms.TermTable", "wandb_log.WandbLog"),
)
_NEW = "splade_lit.training.callbacks"
RENAMED = {f"splade_lit.callbacks.{name}": f"{_NEW}.{name}" for name in _CALLBACKS} | {
    "splade_lit.callbacks.model_card.ModelCard": f"{_NEW}.save_model.SaveModel",
    "splade_lit.callbacks.progress.ProgressLines": f"{_NEW}.step_progress.ProgressLines",
    "splade_lit.callbacks.progress.StepProgressBar": f"{_NEW}.step_progress.StepProgressBar",
    "splade_lit.callbacks.sparsity.SparsityMonitor": f"{_NEW}.sparsity_monitor.SparsityMonitor",
    "splade_lit.callbacks.step_times.StepTimes": "splade_lit.own_data.timing.StepTimes",
    "splade_lit.module.SpladeModule": "splade_lit.training.module.SpladeModule",
}
"""Class path before to class path now."""


def current_names(text: str, place: str) -> str:
    """The text of a YAML file with the class paths of today; each one that has moved is logged for this `place`.

    >>> current_names("class_path: splade_lit.callbacks.terms.TermTable", "run.yaml")
    'class_path: splade_lit.training.callbacks.terms.TermTable'
    """
    found = {path for path in re.findall(r"\bsplade_lit(?:\.\w+)+", text) if path in RENAMED}
    for path in sorted(found):
        logger.info("%s: %s is now called %s", place, path, RENAMED[path])
        text = re.sub(rf"\b{re.escape(path)}\b", RENAMED[path], text)
    return text
