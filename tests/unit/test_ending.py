"""How a rank ends: what is registered runs, what is buffered goes out, and nothing is taken down."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

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


WORKER = """
import os, runpy, sys, types
import launcher
walk = types.ModuleType("launcher.walk")
walk.join = lambda: types.SimpleNamespace(close=lambda: None)
walk.opened_run_dir = lambda *_, **__: None
sys.modules["launcher.walk"] = launcher.walk = walk

class Torn:
    def __del__(self, abort=os.abort):
        abort()

torn = Torn()
sys.argv = ["launcher.worker", "recipe.yaml"]
runpy.run_module("launcher.worker", run_name="__main__", alter_sys=True)
"""
"""A worker whose work is stood in for, in a process that aborts as soon as the interpreter is taken down."""


def test_the_worker_ends_so() -> None:
    ended = subprocess.run([sys.executable, "-c", WORKER], check=False, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 0, ended.stderr


ROOT = Path(__file__).parents[2]
JOINS = re.compile(r"init_process_group\(|distributed\.start\(|walk\.join\(|deepspeed\.initialize\(|trainer\.train\(")
ENDS = re.compile(r"\.is_done = True|\bend_now\(")
NO_PROCESS_OF_THEIR_OWN = {
    "launcher/distributed.py": "joins for whoever calls it",
    "launcher/walk.py": "joins for the worker",
    "tests/unit/test_big_worlds.py": "in pytest's own process, a fake group without threads",
    "tests/integration/test_loss_scaling.py": "in pytest's own process, closed by its fixture",
}


def test_whatever_joins_a_process_group_ends_so() -> None:
    joining = {}
    for folder in ("launcher", "kernels", "tests", "benchmarks"):
        for file in (ROOT / folder).rglob("*.py"):
            source = file.read_text()
            if JOINS.search(source):
                joining[file.relative_to(ROOT).as_posix()] = "launcher.ending" in source and bool(ENDS.search(source))
    assert joining.keys() >= NO_PROCESS_OF_THEIR_OWN.keys(), "an exception that is none any more"
    assert [name for name, ends in joining.items() if not ends and name not in NO_PROCESS_OF_THEIR_OWN] == []
    assert {
        "launcher/worker.py",
        "launcher/rendezvous_probe.py",
        "tests/integration/restarted_ranks.py",
    } <= joining.keys()
