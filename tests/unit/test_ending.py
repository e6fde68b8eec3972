"""How a rank ends: what is registered runs, what is buffered goes out, and nothing is taken down."""

from __future__ import annotations

import subprocess
import sys

import pytest

SCRIPT = """
import atexit, sys
from launcher.ending import Ending
ending = Ending()
atexit.register(sys.stdout.write, "registered ")

class Torn:
    def __del__(self, write=sys.stderr.write):
        write("torn down")

torn = Torn()
sys.stdout.write("buffered ")
"""


@pytest.mark.parametrize(
    ("end", "code", "is_torn_down"),
    [
        ("ending.is_done = True", 0, False),
        ("pass", 0, True),
        ("raise SystemExit(3)", 3, True),
        ("raise ValueError", 1, True),
    ],
)
def test_the_interpreter_is_left_standing_by_a_rank_that_is_done(end: str, code: int, is_torn_down: bool) -> None:
    command = [sys.executable, "-c", SCRIPT + end]
    ended = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert ended.returncode == code
    assert ended.stdout == "buffered registered "
    assert ("torn down" in ended.stderr) == is_torn_down


def test_a_rank_that_is_done_is_done_though_nobody_reads_on() -> None:
    script = SCRIPT + "ending.is_done = True; sys.stdout.close()\nimport os; sys.stdout = os.fdopen(9, 'w'); print(1)"
    command = ["bash", "-c", 'exec 9> >(:); wait $!; exec "$@"', "bash", sys.executable, "-c", script]
    ended = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 0, ended.stderr
