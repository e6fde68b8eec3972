"""Which rows each rank takes: every row once, whatever the ranks and the accumulation."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.data.order import order, row_seeds, share, window
from launcher.data.sampling import sample
from launcher.plan.micro_size import num_micro_batches

small = st.integers(1, 6)


def counted(shares: list[list[tuple[int, float]]]) -> list[int]:
    return [row for chunk in shares for row, weight in chunk if weight]


@given(num_rows=st.integers(1, 80), global_size=st.integers(1, 40), ranks=small, accumulation=small)
def test_every_row_exactly_once_an_epoch(num_rows: int, global_size: int, ranks: int, accumulation: int) -> None:
    permutation = order(3, 1, 0, num_rows)
    met: list[int] = []
    for step in range(-(-num_rows // global_size)):
        rows = window(permutation, step, global_size)
        shares = [share(rows, rank, ranks, accumulation) for rank in range(ranks)]
        union = [row for mine in shares for row in counted(mine)]
        assert sorted(union) == sorted(rows.tolist()), "the ranks' micro-batches are the window, no row twice"
        sizes = [sum(weight for _, weight in chunk) for mine in shares for chunk in mine]
        assert max(sizes) - min(sizes) <= 1, "no rank waits for another"
        assert all(len(mine) == accumulation and all(mine) for mine in shares), "every forward pass has a row"
        met += union
    assert sorted(met) == list(range(num_rows))


@given(num_rows=st.integers(1, 200), ranks=small, micro_size=small)
def test_a_short_window_is_cut_into_no_more_micro_batches_than_it_needs(
    num_rows: int, ranks: int, micro_size: int
) -> None:
    count = num_micro_batches(num_rows, ranks, micro_size)
    chunks = share(np.arange(num_rows), 0, ranks, count)
    assert max(len(chunk) for chunk in chunks) <= micro_size
    assert count == 1 or (count - 1) * ranks * micro_size < num_rows
    if num_rows >= ranks * micro_size:
        assert min(sum(weight for _, weight in chunk) for chunk in chunks) >= micro_size / 2 - 1


@given(num_rows=st.integers(1, 40), ranks=st.sampled_from([1, 2, 4, 8]))
def test_micro_batches_are_the_same_on_any_number_of_ranks(num_rows: int, ranks: int) -> None:
    """1 rank x 8, 2 ranks x 4, 8 ranks x 1: the same eight chunks."""
    rows = window(order(0, 0, 0, 40), 0, num_rows)
    alone = [counted([chunk]) for chunk in share(rows, 0, 1, 8)]
    spread = [share(rows, rank, ranks, 8 // ranks) for rank in range(ranks)]
    together = [counted([spread[rank][micro]]) for micro in range(8 // ranks) for rank in range(ranks)]
    assert together == alone


def test_order_depends_on_seed_stage_and_epoch_alone() -> None:
    np.random.seed(0)
    first = order(1, 2, 3, 1000)
    np.random.seed(1)
    assert (order(1, 2, 3, 1000) == first).all()
    assert sorted(first) == list(range(1000))
    for other in ((0, 2, 3), (1, 0, 3), (1, 2, 0)):
        assert (order(*other, 1000) != first).mean() > 0.9


def test_order_never_changes_between_releases() -> None:
    """A run begun with one release is resumed with the next."""
    assert order(0, 0, 0, 8).tolist() == [3, 2, 1, 6, 0, 7, 4, 5]
    assert row_seeds(0, 0, 0, [0, 1]) == [429404410292939812, 7378380503522490360]


def test_rows_have_seeds_of_their_own() -> None:
    seeds = row_seeds(1, 2, 3, range(10_000))
    assert len(set(seeds)) == 10_000
    assert row_seeds(1, 2, 3, [7, 5]) == [seeds[7], seeds[5]]
    ones = np.unpackbits(np.array(seeds, np.uint64).view(np.uint8)).mean()
    assert abs(ones - 0.5) < 0.01
    for other in ((0, 2, 3), (1, 0, 3), (1, 2, 0)):
        assert not set(row_seeds(*other, range(10_000))) & set(seeds)


@given(sizes=st.lists(st.integers(1, 40), min_size=1, max_size=6), share_=st.floats(0.01, 0.9), leave=st.integers(0, 1))
def test_a_sample_keeps_the_groups_proportions(sizes: list[int], share_: float, leave: int) -> None:
    groups = np.repeat(np.arange(len(sizes)), sizes)
    count = round(share_ * len(groups))
    chosen = sample(len(groups), count, (0, 1), groups, leave)
    assert (np.diff(chosen) > 0).all()
    assert len(chosen) == count or leave
    taken = np.bincount(groups[chosen], minlength=len(sizes))
    for size, number in zip(sizes, taken, strict=True):
        assert number <= size - leave
        assert leave or abs(number - size * count / len(groups)) < 1


@pytest.mark.parametrize("seed", range(3))
def test_a_sample_is_random_and_repeatable(seed: int) -> None:
    chosen = sample(10_000, 5_000, (seed, 1))
    assert (chosen == sample(10_000, 5_000, (seed, 1))).all()
    assert abs(chosen.mean() - 5_000) < 150
    assert len(np.intersect1d(chosen, sample(10_000, 5_000, (seed, 2)))) < 3_000
