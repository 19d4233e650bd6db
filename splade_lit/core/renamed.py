"""Classes that published YAML files name and that have moved: such a file is read all the same."""

import logging
import re

logger = logging.getLogger(__name__)

_CALLBACKS = "splade_lit.training.callbacks"
RENAMED = {
    "splade_lit.callbacks.carbon.CarbonTracker": f"{_CALLBACKS}.carbon.CarbonTracker",
    "splade_lit.callbacks.csv_log.CsvLog": f"{_CALLBACKS}.csv_log.CsvLog",
    "splade_lit.callbacks.last_checkpoint.LastCheckpoint": f"{_CALLBACKS}.last_checkpoint.LastCheckpoint",
    "splade_lit.callbacks.model_card.ModelCard": f"{_CALLBACKS}.save_model.SaveModel",
    "splade_lit.callbacks.progress.ProgressLines": f"{_CALLBACKS}.step_progress.ProgressLines",
    "splade_lit.callbacks.progress.StepProgressBar": f"{_CALLBACKS}.step_progress.StepProgressBar",
    "splade_lit.callbacks.retrieval.RetrievalEvaluation": f"{_CALLBACKS}.retrieval.RetrievalEvaluation",
    "splade_lit.callbacks.sparsity.SparsityMonitor": f"{_CALLBACKS}.sparsity_monitor.SparsityMonitor",
    "splade_lit.callbacks.step_times.StepTimes": "splade_lit.own_data.timing.StepTimes",
    "splade_lit.callbacks.terms.TermTable": f"{_CALLBACKS}.terms.TermTable",
    "splade_lit.callbacks.wandb_log.WandbLog": f"{_CALLBACKS}.wandb_log.WandbLog",
    "splade_lit.module.SpladeModule": "splade_lit.training.module.SpladeModule",
}
"""Class path before to class path now."""


def current_names(text: str, place: str) -> str:
    """The text of a YAML file with the class paths of today; each one that has moved is logged.

    Args:
        text: of the file.
        place: the file, for the log.

    >>> current_names("class_path: splade_lit.callbacks.terms.TermTable", "run.yaml")
    'class_path: splade_lit.training.callbacks.terms.TermTable'
    """
    found = {path for path in re.findall(r"\bsplade_lit(?:\.\w+)+", text) if path in RENAMED}
    for path in sorted(found):
        logger.info("%s: %s is now called %s", place, path, RENAMED[path])
        text = re.sub(rf"\b{re.escape(path)}\b", RENAMED[path], text)
    return text
