"""Run by test_launch.py under torchrun: two ranks that meet, end, are started again, and meet again."""

from __future__ import annotations

from launcher.ending import Ending, end_now

ending = Ending()  # before what registers with atexit is imported

import os
import time

from launcher import distributed

is_again = os.environ["TORCHELASTIC_RESTART_COUNT"] == "1"
if is_again and os.environ["RANK"] == "1":
    time.sleep(3)  # so the first looks for it where it was
runtime = distributed.start()
if not is_again:
    end_now(1)
met = runtime.gather(runtime.rank)
if runtime.is_first:
    print(met)
runtime.close()
ending.is_done = True
