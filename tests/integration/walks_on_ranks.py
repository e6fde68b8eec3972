"""Run by `running.walks` on each rank: several runs, one after the other, by ranks that are started once.

Each takes the very way of ``launcher.worker``; what is spared is to import torch and transformers for every run again.
"""

from __future__ import annotations

from launcher.ending import Ending

ending = Ending()  # before what registers with atexit is imported

import json
import os
import sys
from pathlib import Path

import torch

from launcher import walk
from launcher.run_dir import RunDir
from launcher.stop import StopRequest

if __name__ == "__main__":
    runtime = walk.join()
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))  # as ranks of `thawline run` take it: bits depend on it
    for recipe, overrides, run_dir in json.loads(sys.argv[1]):
        opened = walk.opened_run_dir(runtime, Path(recipe), overrides, Path(run_dir), StopRequest())
        assert opened is not None, "each run is new"
        walk.walk(runtime, RunDir(opened), StopRequest())
    runtime.close()
    ending.is_done = True
