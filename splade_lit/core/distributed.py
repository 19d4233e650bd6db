"""The one place where the processes of a run talk to each other; it also says which of them this is.

What only asks for a rank may take Lightning's, which is the same.

Without a process group there is one process, of rank 0, and nothing here waits.
"""

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

T = TypeVar("T")
_alone = False


def world_size() -> int:
    """How many processes there are."""
    group = None if _alone else _group()
    return group.get_world_size() if group else 1


def rank() -> int:
    """The number of this process, from 0; rank 0 is the one that writes files and logs."""
    group = _group()
    if group:
        return int(group.get_rank())
    names = ("RANK", "LOCAL_RANK", "SLURM_PROCID")  # of torchrun, of Lightning's own processes, of srun
    return next((int(os.environ[name]) for name in names if name in os.environ), 0)


def _group() -> Any:
    """torch.distributed where processes have joined; it need not be imported to know that they have not."""
    group = sys.modules.get("torch.distributed")
    return group if group is not None and group.is_available() and group.is_initialized() else None


def share() -> slice:
    """The share of this process of a sequence: every element belongs to one process.

    >>> list("abc")[share()]
    ['a', 'b', 'c']
    """
    return slice(None) if world_size() == 1 else slice(rank(), None, world_size())


def gather(value: T) -> list[T]:
    """The values of all processes in the order of their ranks, pickled; each process must call it.

    >>> gather("of the only process")
    ['of the only process']
    """
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    _group().all_gather_object(values, value)
    return values


def gather_rows(rows: Any, counts: Sequence[int]) -> Any:
    """The rows of all processes in the order of their ranks, with the gradient of one's own; each process must call it.

    For a loss that every process computes of all rows, and gradients of weights that are averaged over processes, as
    data-parallel training does: they are then those of one process that makes all rows and computes the loss once.
    Nothing is sent in the backward pass.

    Args:
        rows: tensor of which the first `counts[rank()]` rows are gathered.
        counts: rows of each process.
    """
    if world_size() == 1:
        return rows
    import torch

    own = rows[: counts[rank()]]
    gathered = own.new_empty(sum(counts), *rows.shape[1:])
    parts = gathered.split(list(counts))
    parts[rank()].copy_(own.detach())
    # Not all_gather, for which all would have to have as many rows.
    sent = [_group().broadcast(part, source, async_op=True) for source, part in enumerate(parts) if len(part)]
    for one in sent:
        one.wait()
    if not own.requires_grad:
        return gathered
    own.register_hook(lambda gradient: gradient * world_size())
    return torch.cat([*parts[: rank()], own, *parts[rank() + 1 :]])


def merge(metric: Any) -> None:
    """Give a torchmetrics metric the states of all processes, reduced as it declares; each process must call it."""
    metric.sync(dist_sync_fn=lambda state, group: gather(state), distributed_available=lambda: world_size() > 1)


def from_first(work: Callable[[], T]) -> T:
    """Run `work` on rank 0 alone (see `alone`) and return its value on all ranks; each process must call this.

    Raises:
        Exception: what `work` raises on rank 0, on all ranks, so that none waits for it in vain.
    """
    if world_size() == 1:
        return work()
    outcome: list[Any] = [None, None]
    if rank() == 0:
        try:
            with alone():
                outcome[0] = work()
        except Exception as error:
            outcome[1] = error
    _group().broadcast_object_list(outcome)
    if outcome[1] is not None:
        raise outcome[1]
    return outcome[0]


def lost_process(error: BaseException) -> bool:
    """Whether an error is that another process, with which this one speaks, has ended or does not answer."""
    if world_size() == 1 or not isinstance(error, RuntimeError):
        return False
    ended = ("closed by peer", "reset by peer", "Broken pipe", "remote process exited", "no longer reachable")
    return any(word in str(error) for word in (*ended, "Timed out waiting", "Watchdog caught collective"))


@contextmanager
def alone() -> Iterator[None]:
    """Inside, this process waits for no other: `world_size` is 1, `gather` gives its own value.

    For work of one rank, and for the end of a run that failed, where the others may never come.
    """
    global _alone
    before, _alone = _alone, True
    try:
        yield
    finally:
        _alone = before
