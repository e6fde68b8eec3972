"""`make bench`: prints the tables of docs/performance.md, measured here and now.

make bench BENCH_ARGS="--ranks 1 --pairs 7 --steps 60 --json bench.json"
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
from importlib.metadata import version
from pathlib import Path

from benchmarks import startup, trainer_vs_thawline
from benchmarks.trainer_vs_thawline import Comparison


def table(comparisons: list[Comparison]) -> str:
    """Markdown, medians of the samples a second and of the paired ratios."""
    lines = [
        "| ranks | thawline, samples/s | Trainer, samples/s | ratio of pairs, median (lowest to highest) | pairs |",
        "|---|---|---|---|---|",
    ]
    for each in comparisons:
        ratios = each.ratios
        lines.append(
            f"| {each.ranks} | {statistics.median(each.thawline):.1f} | {statistics.median(each.trainer):.1f} "
            f"| {statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f}) | {len(ratios)} |"
        )
    return "\n".join(lines)


def machine() -> str:
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "accelerate", "thawline"))
    return f"{len(os.sched_getaffinity(0))} cores, {platform.machine()}, Python {platform.python_version()}, {versions}"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "--ranks", type=int, nargs="*", default=[1, 2], help="numbers of ranks to compare at; none: skip"
    )
    parser.add_argument("--pairs", type=int, default=3, help="pairs of runs for each number of ranks")
    parser.add_argument("--steps", type=int, default=20, help="optimizer steps a run, 5 of them warm-up")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    asked = parser.parse_args()

    print(machine())
    starts = startup.help_s()
    print(startup.report(starts))
    with tempfile.TemporaryDirectory() as folder:
        comparisons = [
            trainer_vs_thawline.compare(Path(folder), ranks, asked.pairs, asked.steps) for ranks in asked.ranks
        ]
    if comparisons:
        print(table(comparisons))
    if asked.json:
        figures = {"machine": machine(), "help_s": starts, "trainer": [each.as_dict() for each in comparisons]}
        asked.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
