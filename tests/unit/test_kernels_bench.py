"""The benchmark of the kernels, as far as it needs no clock."""

from __future__ import annotations

import importlib.util
import json
import sys

import pytest

from thawline_kernels import bench, races


def test_a_picture_without_matplotlib_is_refused_before_the_races(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(bench, "run", lambda *_: pytest.fail("the races ran"))
    monkeypatch.setattr(sys, "argv", ["bench", "--png", "out.png"])
    with pytest.raises(
        SystemExit, match=r"--png out\.png: matplotlib is not installed; pip install 'thawline\[bench\]'"
    ):
        bench.main()


def test_an_unknown_race_or_set_names_the_known_ones(capsys: pytest.CaptureFixture[str]) -> None:
    from typer.testing import CliRunner

    from launcher.cli import app

    result = CliRunner().invoke(app, ["bench", "adamw", "--races", "step,swim", "--sets", "ax"])
    assert result.exit_code != 0
    assert "no race or set swim, x: the races are step, clip, bf16, compiled" in str(result.exception or result.output)


def test_small_races_report_every_contender(monkeypatch: pytest.MonkeyPatch, tmp_path, capsys) -> None:
    """The whole way, on sets of three small tensors: each contender has a line, in the table and in the file."""
    monkeypatch.setattr(races, "sizes", lambda set_name: [70_000, 5, 300])
    monkeypatch.setattr(races, "peers", lambda device: {"nobody": "ModuleNotFoundError: no nobody"})
    monkeypatch.setattr(bench, "peers", races.peers)
    monkeypatch.setattr(bench, "first_use_s", lambda: (3.0, 0.1))
    bench.report("ab", races.QUICK, 2, "cpu", tmp_path / "figures.json", None)
    shown = capsys.readouterr().out
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert [len([r for r in figures["results"] if r["race"] == race]) for race in races.QUICK] == [10, 4, 4]
    assert all(r["ratio_min"] <= r["ratio"] <= r["ratio_max"] and r["milliseconds"] > 0 for r in figures["results"])
    assert all(r["ratio"] == 1 for r in figures["results"] if r["contender"] == races.OURS)
    assert "not raced: nobody: ModuleNotFoundError: no nobody" in shown
    assert shown.count(races.OURS) == 6


def test_a_peer_that_fails_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(races, "PEERS", {"missing": ("cpu", "no_such_package", "Adam"), "other": ("cuda", "x", "y")})
    races.peers.cache_clear()
    found = races.peers("cpu")
    races.peers.cache_clear()
    assert found == {"missing": "ModuleNotFoundError: No module named 'no_such_package'", "other": "for cuda"}
