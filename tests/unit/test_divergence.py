"""Which losses have run away, and which have not."""

from __future__ import annotations

import math

import pytest

from launcher.divergence import PATIENCE, Course

GUESS = math.log(2)


def course(losses: list[float], steps: int | None = None, guess: float | None = GUESS) -> Course:
    found = Course()
    for step, loss in enumerate(losses, start=1):
        found = found.after(step, steps or len(losses), loss, guess)
    return found


@pytest.mark.parametrize(
    ("losses", "steps", "at"),
    [
        ([0.7, 0.6, 0.5] + [9e13] * PATIENCE + [9e13] * 3, 40, 3 + PATIENCE),
        ([0.7] + [50.0] * (PATIENCE - 1), 40, None),  # not for long enough yet
        ([0.7, 0.6, 90.0, 0.6, 80.0, 0.5] * 5, 30, None),  # bad batches
        ([0.7, 900.0, 900.0], 3, 2),  # a short stage has no time for patience
        ([0.7, 900.0], 2, 2),
        ([0.7], 1, None),
        ([0.7] + [3.0, 4.0, 5.0] * 10 + [0.7], 32, None),  # bad for a while
        ([0.7] + [3.0, 4.0, 5.0] * 10, 31, 31),  # and at the end still worse than guessing
        ([0.7] * 20 + [3.0] * (PATIENCE - 1), 20 + PATIENCE - 1, None),
        ([80.0, 90.0, 85.0] * 10, 30, None),  # high from the start
        ([0.001] + [0.69] * 30, 31, None),  # from nearly nothing to guessing
        ([0.001] + [7.0] * 30, 31, 1 + PATIENCE),
    ],
)
def test_a_runaway_is_told_from_what_is_none(losses: list[float], steps: int, at: int | None) -> None:
    assert course(losses, steps).diverged_at == at


def test_a_model_over_a_new_vocabulary_is_measured_from_where_it_began() -> None:
    falling = [60.0 * 0.9**step for step in range(30)]
    assert course(falling, guess=math.log(50_000)).diverged_at is None
    assert course([0.0] * 9, guess=None).diverged_at is None


def test_it_says_where_it_began_and_to_lower_the_rate() -> None:
    text = course([0.7] + [9e13] * 9).warning("wild", GUESS)
    assert text is not None
    assert "stage wild diverged: at step 6 its loss had run away from 0.7 at the start and guessing gives 0.693" in text
    assert "highest 9e+13, last 9e+13" in text
    assert text.endswith("lower the learning rate, or set clip_grad_norm")
    assert course([0.7] * 9).warning("tame", GUESS) is None


def test_the_last_evaluation_counts_too() -> None:
    calm = course([0.7] * 9)
    assert calm.evaluated(9, 0.8, GUESS) == calm
    assert calm.evaluated(9, 8.0, GUESS).diverged_at == 9
    wild = course([0.7] + [9e13] * 9)
    assert wild.evaluated(10, 1e3, GUESS) == wild


def test_a_checkpoint_keeps_it() -> None:
    losses = [0.7] + [90.0] * 9
    whole = course(losses, 40)
    part = Course.model_validate_json(course(losses[:4], 40).model_dump_json())
    for step, loss in enumerate(losses[4:], start=5):
        part = part.after(step, 40, loss, GUESS)
    assert part == whole
    assert whole.diverged_at == 1 + PATIENCE
