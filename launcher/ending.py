"""How a rank that has done its work ends: without taking the interpreter down.

Threads of C++ outlive Python's `main`: gloo's, say, while DeepSpeed keeps the process group beyond
`distributed.Runtime.close`. One that lets go of a tensor while the interpreter is taken down asks for the GIL, is ended
by Python in its place, and C++, in whose destructor that is, aborts the process ("terminate called without an active
exception"; https://github.com/pybind/pybind11/issues/3274). A run that is done would be told as killed.
"""

from __future__ import annotations

import atexit
import logging
import os
import sys
from typing import NoReturn


class Ending:
    """Made before others register with `atexit`, it runs after them.

    What was registered earlier, destructors, and what C libraries registered do not run where the rank is done.
    """

    def __init__(self) -> None:
        self.is_done = False
        """Whether the process, when Python's own ending is reached, ends there with 0."""
        atexit.register(self._end)

    def _end(self) -> None:
        if self.is_done:
            end_now(0)


def end_now(code: int) -> NoReturn:
    """End this process with ``code`` at once, after what is buffered is out, as far as anyone still reads it."""
    try:
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)
