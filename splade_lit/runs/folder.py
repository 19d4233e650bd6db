"""The folder of a run: what shows that it holds one, what may be overwritten, and which checkpoints fit."""

import logging
import shutil
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import torch

from splade_lit.core.distributed import rank
from splade_lit.core.errors import UserError, first_line
from splade_lit.core.files import check_free, check_writable
from splade_lit.evaluation.per_query import PER_QUERY
from splade_lit.runs.config import CONFIG
from splade_lit.runs.emissions import EMISSIONS
from splade_lit.runs.log import LOG
from splade_lit.runs.stages import METRICS_JSON

logger = logging.getLogger(__name__)

CHECKPOINTS = "checkpoints"
MODEL = "model"
# What shows that a folder holds a run, and what a new run in it replaces.
RUN_OUTPUTS = (METRICS_JSON, LOG, PER_QUERY, "sparsity.jsonl", "terms.jsonl", EMISSIONS, CHECKPOINTS, MODEL)


LAST = "last"
"""In place of a checkpoint: the last one of the run's own folder, or a new run where there is none."""


def last_checkpoint(folder: str | None) -> Path | None:
    """The checkpoint that a run in this folder goes on from: the one written last; None if it has not come to one.

    Newer ones that it cannot go on from are passed over with a warning; a UserError says that there are no others.
    """
    if folder is None:
        return None
    found = sorted((Path(folder) / CHECKPOINTS).glob("*.ckpt"), key=lambda path: path.stat().st_mtime, reverse=True)
    refusals: list[UserError] = []
    for path in found:
        try:
            check_checkpoint(path)
        except UserError as error:
            refusals.append(error)
            continue
        for passed in found[: len(refusals)]:
            logger.warning("%s has weights only or is damaged; going on from %s.", passed, path)
        return path
    if refusals:
        raise refusals[0]
    return None


def has_no_result(folder: str | None) -> bool:
    """Whether what is in a folder, if anything, is a run that ended before its first checkpoint."""
    return last_checkpoint(folder) is None and not Path(folder or ".", MODEL).exists()


def check_run_folder(folder: str | None, checkpoint: str | None, overwrite: bool) -> None:
    """Raise a UserError if a run, resumed from a checkpoint if there is one, may not write to its folder.

    `overwrite` lets what an earlier run left go.
    """
    if folder is None:
        raise UserError("The run has no folder; set trainer.default_root_dir, such as runs/my_run.")
    path = Path(folder)
    check_writable(folder=path)
    if rank() == 0:
        check_free(path)
    if checkpoint is not None and path.resolve() in Path(checkpoint).resolve().parents:
        if overwrite:
            raise UserError(f"--overwrite would remove {checkpoint}, which --ckpt_path asks for; give one of them.")
        return
    check_may_replace(path, overwrite)


def check_may_replace(path: Path, overwrite: bool) -> None:
    """Raise a UserError if a new run may not take the place of what a folder holds."""
    left = [name for name in RUN_OUTPUTS if (path / name).exists()]
    if left and not overwrite:
        ways = f"resume it with --ckpt_path {path / CHECKPOINTS}/last.ckpt, or replace it with --overwrite true"
        raise UserError(f"{path} holds a run already; set another --trainer.default_root_dir, {ways}.")
    if left and not (path / CONFIG).exists():
        why = f"holds {', '.join(left)} but no {CONFIG}, so it may be no run and nothing in it is overwritten"
        raise UserError(f"{path} {why}; set another --trainer.default_root_dir.")


def read_checkpoint(path: Path, device: str = "meta", resumable: bool = True) -> dict[str, Any]:
    """A checkpoint; its tensors have no values unless `device` is `cpu`, where they are read as they are used.

    A UserError says that there is none, or that it has weights only, from which a run is not `resumable`.
    """
    if not path.is_file():
        raise UserError(f"{path} is not a file; give a checkpoint such as runs/NAME/checkpoints/last.ckpt.")
    try:
        checkpoint = torch.load(path, map_location=device, weights_only=True, mmap=True)
        whole = ({"state_dict", "optimizer_states"} if resumable else {"state_dict"}) <= set(checkpoint)
    except Exception:  # whatever torch's readers make of other files
        whole = False
    if not whole:
        raise UserError(f"{path} is not a checkpoint of a run; give one such as runs/NAME/checkpoints/last.ckpt.")
    return checkpoint


def check_checkpoint(path: Path) -> None:
    """Raise a UserError if a run cannot go on from a checkpoint; all of it is read, about 1 GB a second."""
    read_checkpoint(path)
    try:
        with ZipFile(path) as archive:  # of which torch looks at no checksum
            damaged = archive.testzip()
    except Exception as error:  # as above; zipfile's readers have their own
        damaged = first_line(error)
    if damaged is not None:
        raise UserError(
            f"{path} is damaged ({damaged}); give another checkpoint, or --ckpt_path last for one beside it."
        )


def encoder_state(checkpoint: dict[str, Any]) -> dict[str, torch.Tensor]:
    """The encoder's tensors by their names in it, without the state of what else was trained."""
    parts = {name.partition("."): tensor for name, tensor in checkpoint["state_dict"].items()}
    return {name: tensor for (part, _, name), tensor in parts.items() if part == "encoder"}


def check_same_model(path: Path, model: torch.nn.Module) -> None:
    """Raise a UserError if a checkpoint is not one of this model."""
    states = (encoder_state(one) for one in (read_checkpoint(path), {"state_dict": model.state_dict()}))
    there, here = ({name: tensor.shape for name, tensor in state.items()} for state in states)
    if there != here:
        raise UserError(f"{path} is a checkpoint of another model; resume with the {CONFIG} of its run.")


def remove_run(folder: Path) -> None:
    """Remove what an earlier run left, and nothing else."""
    for path in (folder / name for name in RUN_OUTPUTS):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
