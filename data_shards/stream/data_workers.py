"""Processes that read shards and fill rows for a rank, so that its own does not have to.

A worker makes the rows of its share of the rank's lanes for every step; put one after the other, the workers'
parts are the batch that the rank would have made by itself.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import os
import signal
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from multiprocessing.context import SpawnContext
from typing import Any

import numpy as np
from torch._C import _remove_worker_pids
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from longplay.data_shards.errors import DataError
from longplay.data_shards.stream.rows import Batch, RowBuilder

_SIGNALS = ("SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2")
"""What a launcher sends to a whole job; the training process answers them, saves, and ends its workers."""


@dataclass(frozen=True)
class _Part:
    """What a worker sends: its rows of one step, item ids as int32; the shards it has newly skipped; or the
    error that ended it.
    """

    batch: Batch | None
    skipped: dict[int, str]
    error: str | None = None


class _Flag:
    """An event of one process; another has a copy that is never set."""

    def __init__(self) -> None:
        self._set = False

    def set(self) -> None:
        self._set = True

    def is_set(self) -> bool:
        return self._set


class _Context(SpawnContext):
    """How workers are started: spawned, as a fork would inherit locks of the threads of gloo and PyTorch.

    A DataLoader tells its workers to end by an event whose lock it and they take all the time, and for which
    it waits for ever once a worker was killed with it. They are killed here, and need no such event.
    """

    def Event(self) -> Any:
        return _Flag()


class WorkerBatches:
    """The batches of a builder from a step on, made by `config.workers` processes; iterate it once.

    The processes end with the iterator, at the end of this process, and when it is killed.
    """

    def __init__(self, builder: RowBuilder, epoch: int, step: int) -> None:
        self._builder = builder
        self.num_workers = min(builder.config.workers, len(builder.lanes))
        self._parts = _Parts(builder, epoch, step, self.num_workers)

    def __iter__(self) -> Iterator[Batch]:
        """Batches without end.

        Raises:
            DataError: a missing or damaged shard, by name; a worker that was killed.
        """
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="This DataLoader will create")  # few cores are no fault
            loader = DataLoader(
                self._parts,
                batch_size=None,
                num_workers=self.num_workers,
                prefetch_factor=max(1, self._builder.config.prefetch_steps),
                multiprocessing_context=_Context(),
                worker_init_fn=_settle,
            )
            incoming: Any = iter(loader)
        kill = functools.partial(_kill, incoming._workers)
        atexit.register(kill)  # as they ignore the signal by which Python would end them
        try:
            while True:
                yield Batch.joined([self._receive(incoming) for _ in range(self.num_workers)])
        finally:
            if incoming._worker_pids_set:  # or their end would be taken for a failure
                _remove_worker_pids(id(incoming))
                incoming._worker_pids_set = False
            kill()
            incoming._shutdown_workers()
            atexit.unregister(kill)

    def _receive(self, incoming: Iterator[_Part]) -> Batch:
        try:
            part = next(incoming)
        except (RuntimeError, OSError, EOFError) as error:
            if isinstance(error, RuntimeError) and not str(error).startswith("DataLoader worker"):
                raise
            cause = " ".join(str(error).split()) or type(error).__name__
            raise DataError(
                f"a data worker ended unexpectedly ({cause}); it may have been killed "
                "for want of memory: lower data.workers or data.prefetch_steps"
            ) from error
        for index, reason in part.skipped.items():
            self._builder.store.skip(index, reason)
        if part.error is not None:
            raise DataError(part.error)
        assert part.batch is not None
        return part.batch


class _Parts(IterableDataset):
    """Runs in each worker: its part of every step, from a step on, without end."""

    def __init__(self, builder: RowBuilder, epoch: int, step: int, num_workers: int) -> None:
        self._builder, self._start, self._num_workers = builder, (epoch, step), num_workers

    def __iter__(self) -> Iterator[_Part]:
        info = get_worker_info()
        assert info is not None
        lanes = np.array_split(self._builder.lanes, self._num_workers)[info.id].tolist()
        store = self._builder.store
        store.keep_at_most(store.cache_bytes // self._num_workers)
        builder = self._builder.part(lanes)
        known: set[int] = set(store.skipped)
        # What is skipped is said once, by the process that shows it.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                for epoch, step in builder.positions(*self._start):
                    batch = builder.batch(epoch, step)
                    new = {index: why for index, why in store.skipped.items() if index not in known}
                    known |= set(new)
                    yield _Part(_narrowed(batch), new)
            except DataError as error:
                yield _Part(None, store.skipped, str(error))


def _narrowed(batch: Batch) -> Batch:
    return replace(batch, item_ids=batch.item_ids.int(), targets=batch.targets.int())


def _settle(worker: int) -> None:
    """Runs first in a worker: ignores signals, and leaves at once in the end, past the destructors of
    libraries whose threads still run.
    """
    for name in _SIGNALS:
        with contextlib.suppress(AttributeError):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    atexit.register(os._exit, 0)


def _kill(workers: list[Any]) -> None:
    for worker in workers:
        if worker.is_alive():
            worker.kill()
        worker.join()
