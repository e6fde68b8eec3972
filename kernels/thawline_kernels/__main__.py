"""``python -m thawline_kernels cpu|cuda``: compile ahead of time, into this package or a folder."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from thawline_kernels import build


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m thawline_kernels", description=__doc__)
    parser.add_argument("target", choices=("cpu", "cuda"))
    parser.add_argument(
        "--into", type=Path, default=build.AHEAD_OF_TIME, help="folder for the library; default: this package"
    )
    options = parser.parse_args()
    try:
        build.ahead_of_time(options.target, options.into)
    except build.BuildError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
