"""Batches: the right rows in the right windows, made ahead without touching the loop's randomness or outliving it."""

from __future__ import annotations

import multiprocessing
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import closing
from typing import Any

import pyarrow as pa
import pytest
import torch

from launcher.data.batches import TrainingBatches, ahead, evaluation_batches
from launcher.data.packing import Batch, pad
from launcher.data.rows import Rows
from launcher.plan import BatchPlan, StagePlan
from launcher.plan.micro_size import smallest_micro_batch
from launcher.recipe import Stage

NUM_ROWS = 21
ROWS = Rows(pa.table({"value": list(range(NUM_ROWS)), "id": [str(n) for n in range(NUM_ROWS)]}))


class Identity:
    """A task whose model input is the row's value; ``fails_at`` is the row that cannot be encoded."""

    def __init__(self, fails_at: int | None = None) -> None:
        self.fails_at = fails_at

    def encode_rows(
        self, rows: Sequence[dict[str, Any]], *, augment_seeds: Sequence[int] | None
    ) -> list[dict[str, Any]]:
        if self.fails_at in [row["value"] for row in rows]:
            raise ValueError(f"row {self.fails_at} is broken")
        seeds = augment_seeds or [0] * len(rows)
        return [{**row, "seed": seed % 1000} for row, seed in zip(rows, seeds, strict=True)]

    def collate(self, rows: list[dict[str, Any]], weights: list[float]) -> Batch:
        inputs = {"x": torch.tensor([[row["value"], row["seed"]] for row in rows])}
        labels = torch.tensor([row["value"] for row in rows])
        return Batch(inputs, labels, torch.tensor(weights), [row["id"] for row in rows], sum(weights), 0)


def plan(ranks: int = 1, accumulation: int = 2, steps: int = 12, global_size: int = 8) -> StagePlan:
    micro_size = global_size // ranks // accumulation
    batch = BatchPlan(global_size=global_size, micro_size=micro_size, accumulation=accumulation, ranks=ranks)
    return StagePlan(
        index=0, name="all", settings=Stage(name="all", train=["all"], epochs=4), groups=[], trainable=0, frozen=0,
        batch=batch, steps=steps, steps_per_epoch=3, evaluate_every_steps=None, evaluate_at_end=False,
        checkpoint_every_steps=3,
    )  # fmt: skip


def contents(batches: TrainingBatches) -> list[Any]:
    return [
        (
            window.step,
            window.epoch,
            [(batch.model_inputs["x"].tolist(), batch.weights.tolist()) for batch in window.micro],
        )
        for window in batches
    ]


def rows_of(batches: list[Batch]) -> list[int]:
    return [int(row) for batch in batches for row, weight in zip(batch.ids, batch.weights, strict=True) if weight]


def batch_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "batches"]


@pytest.mark.parametrize(("ranks", "accumulation"), [(1, 1), (1, 8), (8, 1), (2, 4), (2, 2), (4, 1)])
def test_every_row_once_an_epoch_and_the_same_windows_on_any_ranks(ranks: int, accumulation: int) -> None:
    alone = [set(rows_of(window.micro)) for window in TrainingBatches(ROWS, Identity(), plan(1, 1), 0, 1)]
    runs = [list(TrainingBatches(ROWS, Identity(), plan(ranks, accumulation), rank, ranks)) for rank in range(ranks)]
    for step, windows in enumerate(zip(*runs, strict=True)):
        rows = [row for window in windows for row in rows_of(window.micro)]
        assert set(rows) == alone[step]
        assert len(rows) == (8 if step % 3 < 2 else 5)
        assert sum(batch.size for window in windows for batch in window.micro) == len(rows)
        num_micro = accumulation if len(rows) == 8 else -(-5 // (8 // accumulation))
        assert all(len(window.micro) == num_micro for window in windows), "a short window has fewer micro-batches"
        assert {(window.step, window.epoch) for window in windows} == {(step, step // 3)}
    for epoch in range(4):
        assert sorted(row for step in range(3 * epoch, 3 * epoch + 3) for row in alone[step]) == list(range(NUM_ROWS))
    assert len({frozenset(alone[step]) for step in range(0, 12, 3)}) == 4, "each epoch has an order of its own"


def test_a_start_in_the_middle_continues_the_same_sequence() -> None:
    whole = contents(TrainingBatches(ROWS, Identity(), plan(), 0, 1))
    for start in (1, 3, 7, 12):
        resumed = TrainingBatches(ROWS, Identity(), plan(), 0, 1, start)
        assert contents(resumed) == whole[start:]
        assert len(resumed) == 12 - start


@pytest.mark.parametrize("num_workers", [1, 2])
def test_workers_change_nothing(num_workers: int) -> None:
    alone = contents(TrainingBatches(ROWS, Identity(), plan(), 0, 1))
    assert contents(TrainingBatches(ROWS, Identity(), plan(), 0, 1, num_workers=num_workers)) == alone


@pytest.mark.parametrize("num_workers", [0, 2])
def test_the_loops_random_numbers_are_left_alone(num_workers: int) -> None:
    torch.manual_seed(5)
    expected = torch.rand(4)
    torch.manual_seed(5)
    for _ in TrainingBatches(ROWS, Identity(), plan(), 0, 1, num_workers=num_workers):
        pass
    assert torch.equal(torch.rand(4), expected)


def test_augmentation_differs_between_epochs_not_between_ranks() -> None:
    def seeds(ranks: int) -> dict[tuple[int, int], int]:
        found = {}
        for rank in range(ranks):
            for window in TrainingBatches(ROWS, Identity(), plan(ranks, 2), rank, ranks):
                for batch in window.micro:
                    for (row, seed), weight in zip(batch.model_inputs["x"].tolist(), batch.weights, strict=True):
                        if weight:
                            found[window.epoch, row] = seed
        return found

    assert seeds(1) == seeds(2)
    assert len({seeds(1)[epoch, 0] for epoch in range(4)}) == 4


@pytest.mark.parametrize("ranks", [1, 2, 3, 5])
@pytest.mark.parametrize("micro_size", [1, 4, 30])
def test_evaluation_counts_each_row_once_in_step(ranks: int, micro_size: int) -> None:
    runs = [list(evaluation_batches(ROWS, Identity(), rank, ranks, micro_size)) for rank in range(ranks)]
    assert len({len(batches) for batches in runs}) == 1, "the forward pass of ZeRO-3 is a collective"
    assert sorted(row for batches in runs for row in rows_of(batches)) == list(range(NUM_ROWS))
    assert all(len(batch.ids) <= micro_size for batches in runs for batch in batches)
    assert all(batch.model_inputs["x"][:, 1].eq(0).all() for batches in runs for batch in batches), "no augmentation"


@pytest.mark.parametrize("num_workers", [0, 2])
def test_an_error_in_preparing_surfaces_with_its_traceback(num_workers: int) -> None:
    batches = iter(TrainingBatches(ROWS, Identity(fails_at=9), plan(), 0, 1, num_workers=num_workers))
    with pytest.raises(ValueError, match="row 9 is broken") as caught:
        list(batches)
    assert "encode_rows" in "".join(traceback.format_exception(caught.value))
    assert not batch_threads()


@pytest.mark.parametrize("num_workers", [0, 2])
def test_nothing_outlives_a_consumer_that_stops(num_workers: int) -> None:
    before = set(multiprocessing.active_children())
    with closing(iter(TrainingBatches(ROWS, Identity(), plan(), 0, 1, num_workers=num_workers))) as batches:
        next(batches)
        if num_workers == 0:
            assert len(batch_threads()) == 1
        else:
            assert len(set(multiprocessing.active_children()) - before) == num_workers
    assert not batch_threads()
    del batches
    assert set(multiprocessing.active_children()) <= before


def test_nothing_outlives_a_consumer_that_raises() -> None:
    def consume() -> None:
        with closing(iter(TrainingBatches(ROWS, Identity(), plan(), 0, 1))) as batches:
            for _ in batches:
                raise RuntimeError("diverged")

    with pytest.raises(RuntimeError, match="diverged") as caught:
        consume()
    assert not batch_threads(), "although the traceback keeps the frames alive"
    del caught


def test_the_next_batches_are_made_while_the_loop_works() -> None:
    made = threading.Semaphore(0)
    some = Identity().collate([{"value": 0, "seed": 0, "id": "0"}], [1.0])

    def items() -> Iterator[Batch]:
        for _ in range(4):
            made.release()
            yield some

    batches = ahead(items, num_ahead=2)
    next(batches)
    for _ in range(4):  # the one in the loop, the two that wait, the one at the door
        assert made.acquire(timeout=30)
    assert len(list(batches)) == 3


def test_a_thread_that_is_slow_is_waited_for() -> None:
    def items() -> Iterator[Batch]:
        yield Identity().collate([{"value": 0, "seed": 0, "id": "0"}], [1.0])
        time.sleep(0.1)
        raise KeyError("late")

    batches = ahead(items, num_ahead=2)
    next(batches)
    with pytest.raises(KeyError, match="late"):
        next(batches)


def test_a_batch_moves_whole() -> None:
    [batch] = evaluation_batches(ROWS, Identity(), 0, 1, NUM_ROWS)
    moved = batch.to(torch.device("meta"))
    assert {moved.labels.device.type, moved.weights.device.type, moved.model_inputs["x"].device.type} == {"meta"}
    assert (moved.ids, moved.size, moved.tokens) == (batch.ids, batch.size, batch.tokens)


def test_padding() -> None:
    assert pad([[1], [2, 3, 4], []], 9).tolist() == [[1, 9, 9], [2, 3, 4], [9, 9, 9]]
    assert pad([[1], [2, 3]], 9, "left").tolist() == [[9, 1], [2, 3]]
    assert pad([[1]], 0).dtype == torch.int64


@pytest.mark.gpu
def test_pinned_batches_on_a_gpu() -> None:
    for num_workers in (0, 2):
        for window in TrainingBatches(ROWS, Identity(), plan(), 0, 1, device_pin=True, num_workers=num_workers):
            assert all(batch.labels.is_pinned() for batch in window.micro)
            assert window.micro[0].to(torch.device("cuda")).labels.is_cuda


@pytest.mark.parametrize(
    ("rows", "ranks", "accumulation", "steps", "smallest"),
    [(21, 1, 2, 12, 2), (17, 1, 2, 12, 1), (17, 1, 2, 2, 4), (24, 1, 2, 12, 4), (21, 4, 1, 12, 1), (9, 8, 1, 12, 0)],
)
def test_the_smallest_micro_batch_of_a_stage(
    rows: int, ranks: int, accumulation: int, steps: int, smallest: int
) -> None:
    stage = plan(ranks, accumulation, steps)
    assert smallest_micro_batch(stage, rows) == smallest
