"""Which rows each rank takes at each optimizer step.

Owns three pure functions; all of a run's data order follows from them and from (seed, stage, epoch, position), so a
resumed run, or one on another number of ranks, meets the same rows in the same windows. Called by `batches`.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Indices = npt.NDArray[np.int64]


def order(seed: int, stage_index: int, epoch: int, num_rows: int) -> Indices:
    """The permutation of the training rows in one epoch, [num_rows].

    Sorts raw 64-bit draws: numpy promises the raw stream of a bit generator for ever, that of ``permutation`` not.
    """
    draws = np.random.PCG64(np.random.SeedSequence([seed, stage_index, epoch])).random_raw(num_rows)
    return np.argsort(draws, kind="stable").astype(np.int64, copy=False)


def window(order_: Indices, step_in_epoch: int, global_size: int) -> Indices:
    """The rows of one optimizer step over all ranks; the last window of an epoch may be short."""
    return order_[step_in_epoch * global_size : (step_in_epoch + 1) * global_size]


def share(indices: Indices, rank: int, ranks: int, accumulation: int) -> list[list[tuple[int, float]]]:
    """One rank's micro-batches of a window, as pairs of a row and its weight.

    The window is cut into ``accumulation * ranks`` consecutive chunks whose sizes differ by at most one; micro-batch m
    of a rank is chunk ``m * ranks + rank``. All ranks must reach every forward pass, so a chunk that stays empty in a
    short window holds the window's first row with weight 0: computed, counted nowhere.
    """
    size, longer = divmod(len(indices), accumulation * ranks)  # the first ``longer`` chunks have one row more
    starts = [chunk * size + min(chunk, longer) for chunk in range(accumulation * ranks + 1)]
    mine = [indices[starts[chunk] : starts[chunk + 1]].tolist() for chunk in range(rank, accumulation * ranks, ranks)]
    return [[(row, 1.0) for row in chunk] or [(int(indices[0]), 0.0)] for chunk in mine]


def row_seed(seed: int, stage_index: int, epoch: int, row: int) -> int:
    """The 64-bit seed of one row's augmentation in one epoch."""
    return int(np.random.SeedSequence([seed, stage_index, epoch, row]).generate_state(1, np.uint64)[0])
