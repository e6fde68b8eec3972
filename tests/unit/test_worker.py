"""How a rank takes its leave: its exit code, its file, and what it says where no launcher speaks for it."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from launcher import orphans, rank_error, worker
from launcher.run_dir import RunDir


def raised(error: Exception) -> Exception:
    try:
        raise error
    except Exception as caught:
        return caught


@pytest.mark.parametrize("has_launcher", [True, False])
def test_out_of_memory_shows_no_traceback_to_the_user(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    has_launcher: bool,
) -> None:
    """Under thawline the rank's log is a file and has the traceback; under torchrun it is the terminal."""
    if has_launcher:
        monkeypatch.setenv(orphans.LAUNCHER_PID, "1")
    assert worker.leave(tmp_path, 0, raised(MemoryError("no 9 GiB"))) == 4
    (written,) = rank_error.read_all(RunDir(tmp_path))
    assert "Traceback" in written.traceback
    (logged,) = caplog.records
    assert logged.levelno == logging.ERROR
    assert (logged.exc_info is not None) == has_launcher
    told = "" if has_launcher else f"OutOfMemory: {written.message}\n"
    assert capsys.readouterr().err == told
