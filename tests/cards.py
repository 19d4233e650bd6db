"""What tests of model cards share: a run that has everything to tell, and ways to read a card."""

import re
from pathlib import Path
from typing import Any

from command_runs import RETRIEVAL, SPARSITY, World, call

from splade_lit import fit

CARBON = "splade_lit.training.callbacks.carbon.CarbonTracker"
CALLBACKS = [{"class_path": SPARSITY, "init_args": {"every_n_steps": 2, "num_documents": 16}}, {"class_path": CARBON}]
MAIN = "NanoBEIR_mean_dot_ndcg@10"
# The sections of the reference run's published card, and those that a card of its kind ends with.
REFERENCE_SECTIONS = [
    "## Model Details",
    "### Model Description",
    "### Model Sources",
    "### Full Model Architecture",
    "## Usage",
    "### Direct Usage (Sentence Transformers)",
    "## Evaluation",
    "### Metrics",
    "#### Sparse Information Retrieval",
    "#### Sparse Nano BEIR",
    "## Training Details",
    "### Training Dataset",
    "#### pairs.jsonl",
    "### Evaluation Dataset",
    "#### pairs.jsonl",
    "### Training Hyperparameters",
    "#### Non-Default Hyperparameters",
    "#### All Hyperparameters",
    "### Training Logs",
    "### Environmental Impact",
    "### Training Hardware",
    "### Training Time",
    "### Framework Versions",
    "## Citation",
    "### BibTeX",
]
OWN_SECTIONS = [
    "### Direct Usage (splade_lit)",
    "#### dot_ndcg@10 in Comparison",
    "### Sparsity",
    "#### SPLADE",
    "#### Inference-free Retrieval",
    "#### Ranking Loss",
    "#### FLOPS Penalty",
    "#### Sentence Transformers",
]


def card_run(world: World, name: str, *callbacks_more: dict[str, Any]) -> Path:
    """Make a whole run with everything that a card tells; its folder."""
    folder = world.folder / "runs" / name
    retrieval = {"tasks": [str(world.tasks)], "bm25": True, "every_n_steps": 2}
    callbacks = [{"class_path": RETRIEVAL, "init_args": retrieval}, *CALLBACKS, *callbacks_more]
    outcome = call(fit.main, "--config", world.config(folder, {"trainer.callbacks": callbacks}))
    assert outcome.code == 0, outcome.err
    return folder


def sections(text: str) -> list[str]:
    without_code = re.sub(r"^```.*?^```", "", text.partition("\n---\n")[2], flags=re.DOTALL | re.MULTILINE)
    return re.findall(r"^#{2,4} .+$", without_code, re.MULTILINE)


def section(text: str, title: str) -> str:
    """What stands below a heading, up to the next one of its level or above."""
    level = title.index(" ")
    return re.split(rf"^#{{2,{level}}} ", text.split(f"\n{title}\n", 1)[1], maxsplit=1, flags=re.MULTILINE)[0]


def table(text: str) -> list[dict[str, str]]:
    """The first table of a text: its rows by the header's names, bold or not."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    end = next((i for i in range(2, len(lines)) if lines[i].startswith("| :---")), len(lines) + 1)
    cells = [[cell.strip().strip("*") for cell in line.strip("|").split("|")] for line in lines[: end - 1]]
    return [dict(zip(cells[0], row, strict=True)) for row in cells[2:]]


def code_blocks(text: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
