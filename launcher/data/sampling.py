"""Which rows a limit keeps and which a split takes.

Owns one pure function of a seed. Called by `data`.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Indices = npt.NDArray[np.int64]


def sample(num_rows: int, count: int, seed: tuple[int, ...], groups: Indices | None = None, leave: int = 0) -> Indices:
    """``count`` of the positions 0 … num_rows - 1, chosen at random, in rising order.

    Args:
        num_rows: rows there are.
        count: rows to choose, at most ``num_rows``.
        seed: of the choice; the same seed chooses the same rows for ever.
        groups: [num_rows] group of each row; the sample then keeps the groups' proportions, rounded by largest
            remainder. None: one group.
        leave: rows of each group that are never chosen; the sample is smaller than ``count`` where that binds.
    """
    draws = np.random.PCG64(np.random.SeedSequence(seed)).random_raw(num_rows)
    if groups is None:
        groups = np.zeros(num_rows, np.int64)
    _, groups, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    quotas = _quotas(sizes, count, np.maximum(sizes - leave, 0))
    # By group, and inside a group by draw: a group's sample is its first rows.
    shuffled = np.lexsort((draws, groups))
    rank_in_group = np.arange(num_rows) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return np.sort(shuffled[rank_in_group < np.repeat(quotas, sizes)])


def _quotas(sizes: Indices, count: int, capacity: Indices) -> Indices:
    """Rows to take of each group: proportional to ``sizes``, whole, within ``capacity``, summing to ``count``."""
    exact = sizes * (count / sizes.sum())
    quotas: Indices = np.minimum(np.floor(exact).astype(np.int64), capacity)
    by_remainder = np.argsort(quotas - exact, kind="stable")
    while (missing := count - int(quotas.sum())) > 0:
        open_ = by_remainder[quotas[by_remainder] < capacity[by_remainder]][:missing]
        if not len(open_):
            break
        quotas[open_] += 1
    return quotas
