"""The learning rate as a function of the step."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.recipe import Constant, Cosine, Exponential, Linear
from launcher.schedule import factor_at

SCHEDULES = [
    Constant(kind="constant", warmup=0.1),
    Linear(warmup=0.1, end=0.2),
    Cosine(kind="cosine", warmup=0.1, end=0.2),
    Exponential(kind="exponential", warmup=0.1, end=0.2),
]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda schedule: schedule.kind)
@given(steps=st.integers(1, 500))
def test_rises_to_one_then_never_rises_and_stays_within_its_end(schedule: Linear, steps: int) -> None:
    factors = [factor_at(schedule, step, steps) for step in range(steps)]
    warmup = round(schedule.warmup * steps)
    assert all(later > earlier for earlier, later in pairwise(factors[:warmup]))
    if warmup:
        assert factors[warmup - 1] == 1.0
    assert all(later <= earlier for earlier, later in pairwise(factors[warmup:]))
    assert all(0 < factor <= 1 for factor in factors)
    assert min(factors[warmup:], default=1.0) >= getattr(schedule, "end", 1.0) - 1e-12


def test_values_of_the_textbook() -> None:
    assert factor_at(Linear(), 0, 4) == 1.0
    assert [factor_at(Linear(), step, 4) for step in range(4)] == [1.0, 0.75, 0.5, 0.25]
    assert factor_at(Linear(warmup=0.5), 0, 4) == 0.5
    cosine = Cosine(kind="cosine")
    assert factor_at(cosine, 5, 10) == pytest.approx(0.5)
    assert factor_at(cosine, 2, 8) == pytest.approx(0.5 * (1 + math.cos(math.pi / 4)))
    exponential = Exponential(kind="exponential", end=0.01)
    assert factor_at(exponential, 5, 10) == pytest.approx(0.1)
    ratios = {round(factor_at(exponential, s + 1, 10) / factor_at(exponential, s, 10), 12) for s in range(9)}
    assert len(ratios) == 1
