"""Several processes that make shards, on this machine or, through Ray, on many; one that dies is replaced."""

import contextlib
import logging
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from functools import cached_property
from multiprocessing.connection import wait as wait_for
from multiprocessing.sharedctypes import Synchronized
from typing import TYPE_CHECKING, Any

from splade_lit.core.errors import UserError
from splade_lit.core.stores import Store, open_store
from splade_lit.engines.shards import Shard, shard_bytes

if TYPE_CHECKING:
    from splade_lit.encoder.model import AsymmetricSparseEncoder
    from splade_lit.encoder.pruning import Pruning

logger = logging.getLogger(__name__)

_TRIES = 3  # of workers in a row that end before one of them has finished a shard


@dataclass(frozen=True)
class Work:
    """What a worker has to know.

    Attributes:
        model: folder or Hub id of the model.
        revision: branch, tag or commit of it on the Hub.
        pruning: which weights are kept.
        device: where the model runs; `cuda` for each worker's own GPU, empty to take one where the cluster has some.
        values: type of the weights in the shards.
        output: address of the folder of the shards.
    """

    model: str
    revision: str | None
    pruning: "Pruning"
    device: str
    values: str
    output: str


class Worker:
    """Loads the model at its first shard, and makes and writes one after another.

    Args:
        work: what to do.
        number: of this worker, from 0: which of several GPUs it has.
        threads: how many threads it computes with; as many as there are cores if None.
    """

    def __init__(self, work: Work, number: int = 0, threads: int | None = None) -> None:
        self._work, self._number, self._threads = work, number, threads

    def ready(self) -> int:
        """0, once the worker has been started somewhere."""
        return 0

    def make(self, shard: Shard) -> int:
        """Write a shard; its number of documents. A UserError is that of loading the model."""
        self._store.write(shard.name, shard_bytes(self._encoder, shard, self._work.values))
        return len(shard.documents)

    @cached_property
    def _store(self) -> Store:
        return open_store(self._work.output)

    @cached_property
    def _encoder(self) -> "AsymmetricSparseEncoder":
        # Not when the worker is made: what goes wrong is then the error of a shard, and comes to whoever gave it out.
        import torch

        from splade_lit.encoder.model import AsymmetricSparseEncoder

        if self._threads is not None:
            torch.set_num_threads(self._threads)
        device = self._work.device
        if device == "cuda":
            device = f"cuda:{self._number % torch.cuda.device_count()}"
        encoder = AsymmetricSparseEncoder.load(self._work.model, revision=self._work.revision, device=device)
        encoder.pruning = self._work.pruning
        return encoder


class LocalWorkers:
    """Processes of this machine, which share its cores, or its GPUs.

    Args:
        work: what to do.
        workers: how many processes.
    """

    def __init__(self, work: Work, workers: int) -> None:
        self._work, self._workers = work, workers
        self._threads = max(1, (os.cpu_count() or 1) // workers)

    def __call__(self, shards: Iterator[Shard], done: Callable[[int], None]) -> None:
        """Make all shards, in any order; `done` is told how many documents each has.

        A UserError says that workers end again and again, or passes on that of a worker.
        """
        lost: list[Shard] = []
        tries = 0
        while True:
            finished = self._run(lost, shards, done)
            if not lost:
                return
            tries = 1 if finished else tries + 1
            if tries >= _TRIES:
                raise _workers_end()
            logger.warning("A worker has ended; %d shards that were begun are made again.", len(lost))

    def _run(self, lost: list[Shard], shards: Iterator[Shard], done: Callable[[int], None]) -> bool:
        """Make shards until there are none, or a worker ends; then `lost` has what was begun. Whether one was made."""
        context = multiprocessing.get_context("spawn")
        arguments = (self._work, context.Value("i", 0), self._threads)
        begun, running, finished = [*lost], dict[Future[int], Shard](), False
        lost.clear()
        others = set(multiprocessing.active_children())
        pool = ProcessPoolExecutor(self._workers, context, _open_worker, arguments)
        try:
            while True:
                while len(running) <= self._workers and (shard := begun.pop() if begun else next(shards, None)):
                    try:
                        running[pool.submit(_make, shard)] = shard
                    except BrokenProcessPool:
                        lost += [shard, *begun, *running.values()]
                        return finished
                if not running:
                    return finished
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    try:
                        done(future.result())
                    except BrokenProcessPool:
                        lost += [*begun, *running.values()]
                        return finished
                    finished = True
                    del running[future]
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
            if running:
                for process in set(multiprocessing.active_children()) - others:
                    process.terminate()


_worker: Worker


def _open_worker(work: Work, next_number: "Synchronized[int]", threads: int) -> None:
    global _worker
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the process that gives out the work answers it
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with next_number.get_lock():
        number = next_number.value
        next_number.value += 1
    _worker = Worker(work, number, threads)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait_for([parent.sentinel])
    os._exit(1)


def _make(shard: Shard) -> int:
    return _worker.make(shard)


class RayWorkers:
    """Actors of a Ray cluster, each with a GPU if there are any, else with a core.

    Args:
        work: what to do; model and output must be in reach of all machines.
        workers: how many; one for each GPU or, without one, each core of the cluster if None.
        address: of the cluster; a new one on this machine if None.

    Raises:
        UserError: Ray is not installed, or there is no such cluster.
    """

    def __init__(self, work: Work, workers: int | None, address: str | None) -> None:
        try:
            import ray
        except ImportError as error:
            hint = "pip install -c constraints.txt -e '.[ray]'"
            raise UserError(f"--engine ray needs Ray, which is not installed; run `{hint}`.") from error
        self._ray, self._own = ray, not ray.is_initialized()
        if self._own:
            # Workers of a cluster that is started here would come after everything else that the machine does.
            os.environ.setdefault("RAY_worker_niceness", "0")
            try:
                ray.init(address, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
            except (ConnectionError, ValueError, RuntimeError) as error:
                raise UserError(f"{address}: there is no Ray cluster ({str(error).splitlines()[0]}).") from error
        there = ray.cluster_resources()
        gpus = int(there.get("GPU", 0)) if work.device in ("", "cuda") else 0
        most = gpus or int(there.get("CPU", 1))
        if workers is not None and workers > most:
            each = "GPU" if gpus else "core"
            raise UserError(f"The Ray cluster has room for {most} workers, one a {each}; give fewer --workers.")
        work = replace(work, device="cuda" if gpus else work.device or "cpu")
        actor: Any = ray.remote(num_cpus=1, num_gpus=1 if gpus else 0, max_restarts=-1, max_task_retries=_TRIES)(Worker)
        self._actors = [actor.remote(work, 0, 1) for _ in range(workers or most)]

    def __call__(self, shards: Iterator[Shard], done: Callable[[int], None]) -> None:
        """Make all shards, in any order; `done` is told how many documents each has. UserErrors as `LocalWorkers`."""
        # A worker gets a shard once it is there: something else may have its place for a while.
        running = {actor.ready.remote(): actor for actor in self._actors}
        making, shard = 0, next(shards, None)
        try:
            while shard is not None or making:
                for ended in self._ray.wait([*running])[0]:
                    actor, count = running.pop(ended), self._result(ended)
                    if count:
                        making -= 1
                        done(count)
                    if shard is not None:
                        running[actor.make.remote(shard)] = actor
                        making, shard = making + 1, next(shards, None)
        finally:
            for actor in self._actors:
                with contextlib.suppress(Exception):
                    self._ray.kill(actor)
            if self._own:
                self._ray.shutdown()

    def _result(self, ended: Any) -> int:
        try:
            return int(self._ray.get(ended))
        except self._ray.exceptions.RayTaskError as error:
            raise error.cause from error
        except self._ray.exceptions.RayError as error:  # an actor, its node, or its memory
            raise _workers_end() from error


def _workers_end() -> UserError:
    return UserError(
        "Workers end before they have finished a shard, as where memory runs out; give fewer --workers or smaller "
        "--shard-documents. What is written stays."
    )
