"""The error table of kernels/README.md: against float64 and against torch, for every dtype and mode, within bounds."""

from __future__ import annotations

from pathlib import Path

import pytest

from thawline_kernels import accuracy
from thawline_kernels.accuracy import Row

README = Path(__file__).parents[2] / "kernels" / "README.md"


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    return accuracy.rows()


def test_errors_against_float64_stay_within_their_bounds(rows: list[Row]) -> None:
    assert not [row for row in rows if not row.ours <= row.bound]


def test_with_torchs_numerics_and_full_state_ours_is_torchs_result(rows: list[Row]) -> None:
    """Apart from torch's root, which is off by one ULP for one value in five."""
    full = [row for row in rows if row.numerics == "torch" and row.bound == 1e-4]
    assert len(full) == 3
    assert all(row.between < 5e-7 for row in full)
    assert all(row.ours < 1.01 * row.torchs for row in full)


def test_accurate_numerics_are_five_times_nearer_than_torchs(rows: list[Row]) -> None:
    full = [row for row in rows if row.numerics == "accurate" and row.bound == 1e-5]
    assert len(full) == 3
    assert all(5 * row.ours < row.torchs for row in full)


def test_masters_are_what_bf16_lacks(rows: list[Row]) -> None:
    bare = [row.ours for row in rows if (row.format.param, row.format.master) == ("bf16", "none")]
    assert min(bare) > 0.1


def test_the_readme_has_a_line_for_every_row_with_its_bound(rows: list[Row]) -> None:
    text = README.read_text()
    for row in rows:
        kinds = f"| {row.format.param} | {row.format.master} | {row.format.state_dtype} | {row.numerics} |"
        (line,) = [line for line in text.splitlines() if line.startswith(kinds)]
        assert line.split("|")[6].strip() == f"{row.bound:.0e}"
