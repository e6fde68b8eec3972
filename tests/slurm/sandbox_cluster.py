"""A real SLURM cluster on this machine, as the tests of this folder see it: a login node, in a network of its own.

Each node is a set of namespaces on this machine, with an address, a hostname and a process table of its own. Needs
root, the right to make namespaces, and Debian's slurmctld, slurmd, slurm-client, munge and iproute2; where one is
missing the tests are skipped, and say what is. `conftest` starts and ends it.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
SANDBOX = Path(__file__).parent / "sandbox"
CANNOT = 77
"""What start.sh exits with where the machine cannot."""
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "PREEMPTED", "OUT_OF_MEMORY")


class Cluster:
    """Commands on the cluster's login node, and what SLURM knows of a job."""

    NODES = ("node1", "node2", "node3")

    def __init__(self, holder: int, state: Path) -> None:
        self.holder, self.state = holder, state

    def run(self, *command: str | Path, check: bool = True, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
        """Run a command in the cluster's network."""
        done = subprocess.run(
            ["nsenter", "-t", str(self.holder), "--net", "--", *map(str, command)],
            capture_output=True, text=True, check=False, timeout=120, cwd=cwd, env=self.environment(),
        )  # fmt: skip
        assert not check or done.returncode == 0, f"{command}: exit {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    def start(self, *command: str | Path, path: Path) -> subprocess.Popen[str]:
        """Start a command in the cluster's network, with ``path`` before the others on PATH."""
        environment = self.environment()
        return subprocess.Popen(
            ["nsenter", "-t", str(self.holder), "--net", "--", *map(str, command)],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT,
            env=environment | {"PATH": f"{path}{os.pathsep}{environment['PATH']}"},
        )  # fmt: skip

    def environment(self) -> dict[str, str]:
        """Of the login node; jobs inherit it."""
        ours = {
            "SLURM_CONF": str(self.state / "slurm.conf"),
            "SLURM_SANDBOX": str(self.state),
            "SLURM_SANDBOX_GPUS": "2",
            "SLURM_SANDBOX_NODES": str(len(self.NODES)),
            "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'kernels'}",
            "PATH": f"{os.environ['PATH']}{os.pathsep}/usr/sbin{os.pathsep}/sbin",
        }
        return dict(os.environ) | ours

    def thawline(self, *arguments: str | Path, check: bool = True) -> subprocess.CompletedProcess[str]:
        return self.run(sys.executable, "-m", "launcher", *arguments, check=check)

    def node(self, action: str, node: str, *command: str | Path) -> None:
        """Power it off (``kill``) or on (``boot``), ``cut`` or ``heal`` its link."""
        self.run("bash", SANDBOX / "node.sh", action, node, *command)

    def say_down(self, node: str) -> None:
        """Tell SLURM at once that a node is gone, as its administrator would; by itself it waits for SlurmdTimeout."""
        self.run("scontrol", "update", f"NodeName={node}", "State=DOWN", "Reason=gone")

    def make_ready(self, timeout_s: float = 120) -> None:
        """Wait until all nodes are idle, those too that were down or drained."""
        deadline = time.monotonic() + timeout_s
        while set(
            shown := self.run("sinfo", "--noheader", "--Node", "--partition=main", "--format=%T").stdout.split()
        ) != {"idle"}:
            assert time.monotonic() < deadline, shown
            self.run("scontrol", "update", "NodeName=ALL", "State=RESUME", check=False)
            time.sleep(0.4)

    def on(self, node: str, *command: str | Path) -> None:
        """Run a command on a node."""
        self.node("exec", node, *command)

    def slow_down(self, node: str, *, undo: bool = False) -> None:
        """Make a step's collectives over its link take seconds, at no cost to the processors."""
        rate = ("tbf", "rate", "20mbit", "burst", "64kb", "latency", "2s")
        change = ("del",) if undo else ("add",)
        # A node that was booted meanwhile has a new link, at full speed.
        self.run("tc", "qdisc", *change, "dev", f"slbr0-{node}", "root", *(() if undo else rate), check=not undo)

    def submit(self, *arguments: str | Path) -> str:
        """``thawline submit``; the job's number, from the last line."""
        return self.thawline("submit", *arguments).stdout.splitlines()[-1]

    def job(self, number: str) -> dict[str, str]:
        """What scontrol says of a job."""
        shown = self.run("scontrol", "--oneliner", "show", "job", number).stdout
        return dict(part.partition("=")[::2] for part in shown.split() if "=" in part)

    def end_of(self, number: str, run: Path, timeout_s: float = 400) -> dict[str, str]:
        """The job once SLURM has ended it for good."""
        deadline = time.monotonic() + timeout_s
        while (job := self.job(number))["JobState"] not in ENDED:
            assert time.monotonic() < deadline, f"{job['JobState']} after {timeout_s} s\n{log(run)}"
            time.sleep(0.4)
        return job


def log(run: Path) -> str:
    """All that the jobs of a run wrote, for a message."""
    files = sorted((run / "slurm").glob("*.log")) + sorted((run / "slurm").glob("*/*/*.log"))
    return "\n".join(f"== {file}\n{file.read_text(errors='replace')[-4000:]}" for file in files)
