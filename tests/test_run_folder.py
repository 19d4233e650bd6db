"""The folder of a run where something went wrong: checkpoints that are no good, and disks that get full."""

import os
import resource
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from command_runs import FailsAfter, call, steps

from splade_lit.core.errors import UserError
from splade_lit.fit import main
from splade_lit.runs.folder import check_checkpoint, last_checkpoint
from splade_lit.training.checkpoint_io import WholeCheckpoints


def test_checkpoints_that_no_run_goes_on_from_are_passed_over(tmp_path, caplog):
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    last, best, cut, flipped = (folder / f"{name}.ckpt" for name in ("last", "best", "cut", "flipped"))
    weights = torch.arange(100)
    torch.save({"state_dict": {"weights": weights}, "optimizer_states": []}, last)
    torch.save({"state_dict": {}}, best)
    whole = last.read_bytes()
    cut.write_bytes(whole[:200])
    place = whole.index(weights.numpy().tobytes()) + 300
    flipped.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
    passed = (cut, best, flipped)
    for age, path in enumerate((*passed, last)):
        os.utime(path, (2e9 - age, 2e9 - age))
    assert last_checkpoint(str(tmp_path)) == last
    assert caplog.messages == [f"{path} has weights only or is damaged; going on from {last}." for path in passed]
    with pytest.raises(UserError, match=f"{flipped} is damaged .*/data/0"):
        check_checkpoint(flipped)
    last.unlink()
    with pytest.raises(UserError, match=f"{cut} is not a checkpoint of a run"):
        last_checkpoint(str(tmp_path))


@pytest.mark.parametrize("missing", [1, 60, 600, 300_000])
def test_a_checkpoint_that_cannot_be_written_leaves_the_one_before(tmp_path, missing):
    """Wherever in the file the space ends, which torch tells in three ways."""
    path, io = tmp_path / "last.ckpt", WholeCheckpoints()
    checkpoint = {"weights": torch.zeros(100_000)}
    io.save_checkpoint(checkpoint, path)
    size = path.stat().st_size
    io.save_checkpoint({"weights": torch.zeros(8)}, path)
    before = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size - missing, limits[1]))  # as a disk that gets full
    try:
        with pytest.raises(UserError, match=f"{path} cannot be written .*; free space and go on from the checkpoint"):
            io.save_checkpoint(checkpoint, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(UserError, match="cannot be written"):
        io.save_checkpoint({}, path / "below a file.ckpt")


class FillsTheLogsDisk(FailsAfter):
    """The disk of the log has no space after so many steps."""

    def _fail(self, trainer: L.Trainer, *args: Any) -> None:
        if trainer.global_step == self.steps:
            log = Path(trainer.default_root_dir) / "metrics.csv"
            log.unlink()
            log.symlink_to("/dev/full")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no /dev/full")
def test_a_log_that_cannot_be_written_is_told_and_the_run_goes_on_later(world, tmp_path):
    run = tmp_path / "run"
    fills = {"class_path": f"{__name__}.FillsTheLogsDisk", "init_args": {"steps": 4}}
    outcome = call(main, "--config", world.config(run, {"trainer.callbacks": [fills]}))
    reason = "No space left on device"
    ways = "free space and go on with --ckpt_path last"
    assert outcome.errors == [f"error: {run / 'metrics.csv'} cannot be written ({reason}); {ways}."]
    assert (outcome.code, "Traceback" in outcome.err) == (2, False)
    (run / "metrics.csv").unlink()
    again = call(main, "--config", world.config(run, {"trainer.callbacks": None}), "--ckpt_path", "last")
    assert again.code == 0, again.err
    assert steps(run)[-1] == 5
