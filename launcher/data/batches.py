"""Rows -> batches, prepared ahead of the loop.

Owns the loaders of training and evaluation: which rows (`order`), encoded and collated by the task, in a thread or in
worker processes so that preparing the next window overlaps the current step. Every batch is a pure function of its
position: the number of workers changes nothing but the speed, and a start in the middle needs no replay. The global
random generators are never touched: the loop's dropout draws from them at the same time. Called by `train`.
"""

from __future__ import annotations

import math
import os
import signal
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from queue import Queue
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from launcher.data.order import Indices, order, row_seeds, share, window
from launcher.data.packing import Batch
from launcher.data.rows import Rows
from launcher.plan import StagePlan
from launcher.plan.micro_size import num_micro_batches

T = TypeVar("T")
WINDOWS_AHEAD = 2
"""Windows (or evaluation batches) that wait ready for the loop."""


class Encoder(Protocol):
    """The part of a task that makes batches."""

    def encode_rows(
        self, rows: Sequence[dict[str, Any]], *, augment_seeds: Sequence[int] | None
    ) -> list[dict[str, Any]]: ...

    def collate(self, rows: list[dict[str, Any]], weights: list[float]) -> Batch: ...


@dataclass(frozen=True)
class Window:
    """One rank's part of one optimizer step."""

    step: int
    """Optimizer steps done in the stage before this one."""
    epoch: int
    """Whole passes over the training split before this one."""
    micro: list[Batch]
    """As many micro-batches as the plan accumulates; fewer in a short window. The same number on every rank."""


class TrainingBatches:
    """Iterates over the windows of a stage from ``start_step`` to the stage's last step."""

    def __init__(
        self,
        rows: Rows,
        task: Encoder,
        plan: StagePlan,
        rank: int,
        ranks: int,
        start_step: int = 0,
        device_pin: bool = False,
        *,
        num_workers: int = 0,
    ) -> None:
        assert ranks == plan.batch.ranks, f"planned for {plan.batch.ranks} ranks, running on {ranks}"
        self._micro_batches = _TrainingMicroBatches(rows, task, plan, rank)
        self._plan = plan
        self._start_step = start_step
        self._pin = device_pin
        self._num_workers = num_workers

    def __len__(self) -> int:
        return max(0, self._plan.steps - self._start_step)

    def __iter__(self) -> Generator[Window, None, None]:
        accumulation = self._plan.batch.accumulation
        sizes = [self._micro_batches.num_micro(step) for step in range(self._start_step, self._plan.steps)]
        numbers = [
            step * accumulation + micro
            for step, num_micro in enumerate(sizes, start=self._start_step)
            for micro in range(num_micro)
        ]
        batches = prepared(self._micro_batches, numbers, self._num_workers, self._pin, WINDOWS_AHEAD * accumulation)
        try:
            for step, num_micro in enumerate(sizes, start=self._start_step):
                micro = [next(batches) for _ in range(num_micro)]
                yield Window(step, step // self._micro_batches.steps_per_epoch, micro)
        finally:
            del batches  # ends the thread or the workers now, also when an error keeps this frame alive


def evaluation_batches(
    rows: Rows,
    task: Encoder,
    rank: int,
    ranks: int,
    micro_size: int,
    device_pin: bool = False,
    *,
    num_workers: int = 0,
) -> Iterator[Batch]:
    """One rank's batches of a whole split in the order of its rows.

    Each row counts exactly once over all ranks, and every rank gets the same number of batches (rows of weight 0 fill
    up): a forward pass under ZeRO-3 is a collective.
    """
    batches = _EvaluationBatches(rows, task, rank, ranks, micro_size)
    return prepared(batches, range(len(batches)), num_workers, device_pin, WINDOWS_AHEAD)


class _TrainingMicroBatches(Dataset[Batch]):
    """Micro-batch ``step * accumulation + m`` of one rank."""

    def __init__(self, rows: Rows, task: Encoder, plan: StagePlan, rank: int) -> None:
        self._rows, self._task, self._plan, self._rank = rows, task, plan, rank
        self.steps_per_epoch = math.ceil(len(rows) / plan.batch.global_size)
        self._epoch = -1
        self._order: Indices = np.empty(0, np.int64)

    def num_micro(self, step: int) -> int:
        """Micro-batches of one optimizer step."""
        batch = self._plan.batch
        first = step % self.steps_per_epoch * batch.global_size
        num_rows = min(batch.global_size, len(self._rows) - first)
        return num_micro_batches(num_rows, batch.ranks, batch.micro_size)

    def __getitem__(self, number: int) -> Batch:
        plan = self._plan
        step, micro = divmod(number, plan.batch.accumulation)
        epoch, step_in_epoch = divmod(step, self.steps_per_epoch)
        seed = plan.settings.seed
        if epoch != self._epoch:
            self._epoch, self._order = epoch, order(seed, plan.index, epoch, len(self._rows))
        indices = window(self._order, step_in_epoch, plan.batch.global_size)
        chosen = share(indices, self._rank, plan.batch.ranks, self.num_micro(step))[micro]
        seeds = row_seeds(seed, plan.index, epoch, [row for row, _ in chosen])
        return _batch(self._rows, self._task, chosen, seeds)


class _EvaluationBatches(Dataset[Batch]):
    """Batch ``number`` of one rank."""

    def __init__(self, rows: Rows, task: Encoder, rank: int, ranks: int, micro_size: int) -> None:
        self._rows, self._task, self._rank, self._ranks = rows, task, rank, ranks
        self._window_size = micro_size * ranks
        self._order = np.arange(len(rows), dtype=np.int64)

    def __len__(self) -> int:
        return math.ceil(len(self._rows) / self._window_size)

    def __getitem__(self, number: int) -> Batch:
        indices = window(self._order, number, self._window_size)
        return _batch(self._rows, self._task, share(indices, self._rank, self._ranks, 1)[0], None)


def _batch(rows: Rows, task: Encoder, chosen: list[tuple[int, float]], seeds: list[int] | None) -> Batch:
    encoded = task.encode_rows(rows.take([row for row, _ in chosen]), augment_seeds=seeds)
    return task.collate(encoded, [weight for _, weight in chosen])


def prepared(
    batches: Dataset[Batch], numbers: Sequence[int], num_workers: int, pin: bool, num_ahead: int
) -> Iterator[Batch]:
    """``batches[n] for n in numbers``, made ahead by a thread, or by ``num_workers`` processes."""
    if num_workers == 0:
        return ahead(lambda: (batches[number] for number in numbers), num_ahead, pin)
    # The workers are forked after this process has tokenised; without a word the tokenizers would warn in each of them.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    loader = DataLoader(
        batches,
        batch_size=None,
        sampler=numbers,
        collate_fn=_unchanged,
        num_workers=num_workers,
        pin_memory=pin,
        prefetch_factor=max(2, math.ceil(num_ahead / num_workers)),
        worker_init_fn=_own_signals,
        generator=torch.Generator(),  # its own, or the loader would draw from the global one
    )
    return iter(loader)


def _own_signals(worker: int) -> None:
    """A worker process ends when told to, unlike the rank it was forked from, which saves first."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    for number in (signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)


def _unchanged(batch: Any) -> Any:
    return batch


@dataclass(frozen=True)
class _Failure:
    error: BaseException


class _End:
    pass


def ahead(items: Callable[[], Iterator[Batch]], num_ahead: int, pin: bool = False) -> Iterator[Batch]:
    """Yield from ``items()``, run by a thread that keeps up to ``num_ahead`` of them ready.

    An error of the thread surfaces here with its traceback. When the consumer stops early, the thread ends first.
    """
    ready: Queue[Batch | _Failure | _End] = Queue(maxsize=num_ahead)
    stop = threading.Event()
    device = torch.cuda.current_device() if pin else None

    def produce() -> None:
        try:
            if device is not None:
                torch.cuda.set_device(device)  # a thread starts on device 0, and pinning would open a context there
            for item in items():
                if stop.is_set():
                    return
                ready.put(item.pin_memory() if pin else item)
            last: _Failure | _End = _End()
        except BaseException as error:
            last = _Failure(error)
        if not stop.is_set():
            ready.put(last)

    thread = threading.Thread(target=produce, name="batches", daemon=True)
    thread.start()
    try:
        while not isinstance(item := ready.get(), _End):
            if isinstance(item, _Failure):
                raise item.error
            yield item
    finally:
        stop.set()
        # The thread may stand in one last put: room for it is all it needs.
        while not ready.empty():
            ready.get_nowait()
        thread.join()
