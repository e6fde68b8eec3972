"""Starts the cluster once for all tests of this folder; ends only what it started, by the recorded numbers."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator

import pytest
from sandbox_cluster import CANNOT, SANDBOX, Cluster


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Two idle nodes, ``main``, ``low`` (preempted by ``high``) and ``high`` their partitions."""
    if os.geteuid() != 0:
        pytest.skip("the SLURM sandbox needs root")
    # Its child is the namespace's keeper: it ends when this process closes its end of the pipe, however it ends.
    holder = subprocess.Popen(
        ["unshare", "--net", "sh", "-c", "echo ready; exec cat"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdin is not None
    assert holder.stdout is not None
    if not holder.stdout.readline():
        holder.communicate()
        pytest.skip("this machine gives no network namespace")
    state = tmp_path_factory.mktemp("slurm")
    made = Cluster(holder.pid, state)
    try:
        made.run("ip", "link", "set", "lo", "up")
        started = made.run("bash", SANDBOX / "start.sh", check=False)
        if started.returncode == CANNOT:
            pytest.skip(started.stderr.strip())
        assert started.returncode == 0, started.stderr
        yield made
    finally:
        made.run("bash", SANDBOX / "stop.sh", "--purge", check=False)
        holder.communicate()
