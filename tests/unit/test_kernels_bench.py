"""The benchmark of the kernels, as far as it needs no clock."""

from __future__ import annotations

import importlib.util
import sys

import pytest

from thawline_kernels import bench


def test_a_picture_without_matplotlib_is_refused_before_the_races(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(bench, "run", lambda *_: pytest.fail("the races ran"))
    monkeypatch.setattr(sys, "argv", ["bench", "--png", "out.png"])
    with pytest.raises(
        SystemExit, match=r"--png out\.png: matplotlib is not installed; pip install 'thawline\[bench\]'"
    ):
        bench.main()
