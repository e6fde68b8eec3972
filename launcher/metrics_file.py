"""``metrics.jsonl``: the curves of a run, one JSON object a line.

Owns the file. Each line is the kernel's when `MetricsFile.write` returns, so a killed run loses none. After a resume
the file holds what the run that counts did: records of steps that are about to be taken again are cut.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from launcher.run_dir import RunDir, write_atomic
from launcher.status import json_line


class MetricsFile:
    """Appends; one writer."""

    def __init__(self, run_dir: RunDir) -> None:
        self._file = run_dir.metrics.open("a", encoding="utf-8")

    def write(self, record: Mapping[str, Any]) -> None:
        self._file.write(json_line(record) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def cut_back(run_dir: RunDir, stages: Sequence[str], resumed_from: tuple[int, int] | None) -> None:
    """Keep the records up to ``(stage index, step)``, that step's own included; None keeps none.

    ``stages`` are the names in order. A last line that a crash cut short goes too.
    """
    if not run_dir.metrics.exists():
        return
    order = {name: index for index, name in enumerate(stages)}
    kept = []
    for line in run_dir.metrics.read_text(encoding="utf-8").splitlines():
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            continue
        if resumed_from is not None and (order[record["stage"]], record["step"]) <= resumed_from:
            kept.append(line + "\n")
    write_atomic(run_dir.metrics, "".join(kept))
