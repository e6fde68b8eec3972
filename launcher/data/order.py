"""Which rows each rank takes at each optimizer step.

Owns four pure functions; all of a run's data order follows from them and from (seed, stage, epoch, position), so a
resumed run, or one on another number of ranks, meets the same rows in the same windows. Called by `batches`.
"""

from __future__ import annotations

from collections.abc import Sequence

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


def row_seeds(seed: int, stage_index: int, epoch: int, rows: Sequence[int]) -> list[int]:
    """A 64-bit seed for the augmentation of each row in one epoch.

    SplitMix64 (Steele, Lea and Flood, 2014, fig. 15) of the row, from a start that depends on the other three.
    """
    start = np.random.SeedSequence([seed, stage_index, epoch]).generate_state(1, np.uint64)
    mixed = start + (np.asarray(rows, np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    seeds: list[int] = (mixed ^ (mixed >> np.uint64(31))).tolist()
    return seeds
