"""``thawline bench adamw`` and ``python -m thawline_kernels.bench``: the races as table, JSON and picture.

Owns the report; `races` owns what is measured.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from thawline_kernels.races import BYTES_PER_PARAMETER, OURS, QUICK, RACES, Result, peers, run, sizes


def table(results: list[Result]) -> str:
    """The results as lines of text."""
    lines = [f"{'race':5} {'set':3} {'contender':32} {'ms':>9} {'GB/s':>6}   over ours: min median max"]
    for r in results:
        rate = BYTES_PER_PARAMETER[r.race] * sum(sizes(r.set_name)) / r.milliseconds / 1e6
        ratios = f"{r.ratio_min:6.2f} {r.ratio:6.2f} {r.ratio_max:6.2f}"
        shown = f"{rate:6.1f}" if r.contender == OURS or r.contender.startswith("floor") else " " * 6
        lines.append(f"{r.race:5} {r.set_name:3} {r.contender:32} {r.milliseconds:9.3f} {shown}   {ratios}")
    return "\n".join(lines)


def draw(results: list[Result], path: Path) -> None:
    """One bar a contender: how many times our time it takes; the whisker spans all pairs."""
    panels = sorted({(r.race, r.set_name) for r in results})
    figure = importlib.import_module("matplotlib.figure").Figure(
        figsize=(9, 1 + 0.3 * len(results) + 0.4 * len(panels)), layout="constrained"
    )
    for axes, panel in zip(figure.subplots(len(panels), squeeze=False)[:, 0], panels, strict=True):
        rows = [r for r in results if (r.race, r.set_name) == panel]
        whiskers = [[r.ratio - r.ratio_min for r in rows], [r.ratio_max - r.ratio for r in rows]]
        axes.barh([r.contender for r in rows], [r.ratio for r in rows], xerr=whiskers, color="tab:blue", ecolor="gray")
        axes.axvline(1.0, color="black", linewidth=0.8)
        axes.set(title=f"{panel[0]}, set {panel[1]}: time over ours", xscale="log")
        axes.invert_yaxis()
    figure.savefig(path, dpi=150)


def machine(device: str) -> dict[str, Any]:
    """What a reader needs to judge the figures."""
    model = torch.cuda.get_device_name() if device == "cuda" else platform.processor() or platform.machine()
    versions = {"torch": torch.__version__, "python": platform.python_version()}
    return {"device": model, "threads": torch.get_num_threads(), **versions}


def first_use_s() -> tuple[float, float]:
    """Seconds to the first step of a fresh process with an empty cache of kernels, and with the cache it left: the time
    of an optimizer's making and a 64-element step, imports excluded."""
    program = (
        "import time, torch; from thawline_kernels import FusedAdamW\n"
        "param = torch.zeros(64, requires_grad=True); param.grad = torch.ones(64)\n"
        "started = time.perf_counter(); FusedAdamW([param], backend='cpu').step()\n"
        "print(time.perf_counter() - started)"
    )
    with tempfile.TemporaryDirectory() as cache:
        environment = os.environ | {"THAWLINE_CACHE": cache, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        command = [sys.executable, "-c", program]
        runs = [subprocess.run(command, env=environment, capture_output=True, check=True).stdout for _ in range(2)]
    return float(runs[0]), float(runs[1])


def report(
    sets: str, races: Sequence[str], repeats: int, device: str, json_file: Path | None, png_file: Path | None
) -> None:
    """Race, print the table, and write the files that are asked for.

    Exits with a message before the races if one of them or a set is unknown, or if a picture is asked for and
    matplotlib is not installed.
    """
    unknown = [name for name in races if name not in RACES] + [name for name in sets if name not in "abc"]
    if unknown:
        sys.exit(f"no race or set {', '.join(unknown)}: the races are {', '.join(RACES)}, the sets a, b, c")
    if png_file and importlib.util.find_spec("matplotlib") is None:
        sys.exit(
            f"--png {png_file}: matplotlib is not installed; pip install 'thawline[bench]' "
            "(pip install -e '.[bench]' in a checkout), or leave --png out"
        )
    about = machine(device)
    absent = {name: peer for name, peer in peers(device).items() if isinstance(peer, str)}
    results = run(sets, races, repeats, device)
    print(", ".join(f"{key} {value}" for key, value in about.items()))
    print(table(results))
    for name, reason in absent.items():
        print(f"not raced: {name}: {reason}")
    cold, warm = first_use_s() if device == "cpu" else (None, None)
    if cold is not None:
        print(f"first use to first step: {cold:.1f} s, compiled then; {warm:.3f} s after")
    if json_file:
        figures: dict[str, Any] = {"machine": about, "first_use_s": [cold, warm], "absent": absent}
        figures["results"] = [asdict(result) for result in results]
        json_file.write_text(json.dumps(figures, indent=1) + "\n")
    if png_file:
        draw(results, png_file)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m thawline_kernels.bench", description=__doc__.partition("\n")[0])
    parser.add_argument("--sets", default="abc", help="of a, b, c")
    parser.add_argument("--races", nargs="+", choices=RACES, default=QUICK)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--png", type=Path)
    options = parser.parse_args()
    report(options.sets, options.races, options.repeats, options.device, options.json, options.png)


if __name__ == "__main__":
    main()
