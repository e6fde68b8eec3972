"""What this host lets this process have: cores and memory, within every control group that it is in.

Owns the reading of ``/proc`` and ``/sys/fs/cgroup``, both versions. A container or a SLURM job has a limit of its own,
often below the root of what it sees; the least of all counts. None where the system does not say. Called by `cluster`
and `oversubscription`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
PROC = Path("/proc")
NO_LIMIT = 2**60
"""Version 1 says "no limit" with a number near 2 ** 63."""


def cores() -> int:
    """Those this process may run on at once: its affinity, and the quota of its groups rounded up; at least 1."""
    found = len(os.sched_getaffinity(0))
    for folder in _groups("cpu"):
        for files in (("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us")):
            quota, period = _quota(folder, files)
            if quota is not None and period and quota > 0:
                found = min(found, -(-quota // period))
    return max(1, found)


def memory_bytes() -> int | None:
    """All that its processes may take together."""
    limits = [limit for folder in _groups("memory") if (limit := _limit(folder)) is not None]
    total = _meminfo("MemTotal")
    return min([*limits, *([total] if total else [])], default=None)


def available_bytes() -> int | None:
    """What they may take besides what is taken now; cached files that can be dropped do not count as taken."""
    free = [available] if (available := _meminfo("MemAvailable")) else []
    for folder in _groups("memory"):
        limit = _limit(folder)
        used = _number(folder / "memory.current") or _number(folder / "memory.usage_in_bytes")
        if limit is not None and used is not None:
            free.append(max(0, limit - used + _inactive_file(folder)))
    return min(free, default=None)


def _groups(controller: str) -> Iterator[Path]:
    """The folders of the groups that this process is in, from its own up to the root of what it sees."""
    try:
        lines = (PROC / "self" / "cgroup").read_text().splitlines()
    except OSError:
        lines = []
    for line in [*lines, "0::/", f"1:{controller}:/"]:
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        root = CGROUPS / controller if controllers else CGROUPS
        own = root / path.lstrip("/")
        yield from (folder for folder in (own, *own.parents) if folder.is_relative_to(root) and folder.is_dir())


def _limit(folder: Path) -> int | None:
    for name in ("memory.max", "memory.limit_in_bytes"):
        limit = _number(folder / name)
        if limit is not None and limit < NO_LIMIT:
            return limit
    return None


def _inactive_file(folder: Path) -> int:
    try:
        text = (folder / "memory.stat").read_text()
    except OSError:
        return 0
    found = re.search(r"^(?:total_)?inactive_file ([0-9]+)$", text, re.MULTILINE)
    return int(found[1]) if found else 0


def _meminfo(name: str) -> int | None:
    try:
        found = re.search(rf"^{name}:\s+([0-9]+) kB", (PROC / "meminfo").read_text(), re.MULTILINE)
    except OSError:  # not Linux
        return None
    return int(found[1]) * 1024 if found else None


def _quota(folder: Path, names: tuple[str, ...]) -> tuple[int | None, int | None]:
    """Quota and period: both in one file, or one in each."""
    parts = [part for name in names for part in _words(folder / name)]
    values = [int(part) if re.fullmatch(r"-?[0-9]+", part) else None for part in parts]
    return (values[0], values[1]) if len(values) == 2 else (None, None)


def _number(file: Path) -> int | None:
    words = _words(file)
    return int(words[0]) if len(words) == 1 and words[0].isdecimal() else None


def _words(file: Path) -> list[str]:
    try:
        return file.read_text().split()
    except OSError:
        return []
