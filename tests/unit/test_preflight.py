"""What is wrong with a node: from facts that are made up here, and how they travel from node to head."""

from __future__ import annotations

import argparse
import os
import re
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from launcher import __version__, preflight
from launcher.errors import EnvironmentProblem
from launcher.preflight import Facts, problems, summary
from launcher.run_dir import RunDir
from launcher.slurm import preflight as slurm_preflight

VERSIONS = {"thawline": "1.0", "torch": "2.14.1", "CUDA": "13.0", "NCCL": "2.30.7"}


def facts(host: str, **changes: Any) -> Facts:
    known = {"time": 0.0, "versions": VERSIONS, "gpus": 8, "memory_bytes": 64 * 2**30, "disk_bytes": 2**40}
    return Facts(**{"host": host, "clock_ahead_s": 0.1, "link_s": 0.001} | known | changes)


def test_nodes_that_are_alike_have_no_problem() -> None:
    nodes = [facts(f"n{number}") for number in range(3)]
    assert problems(nodes, 8, 8, "32G") == []
    assert summary(nodes) == (
        "3 nodes alike: thawline 1.0, torch 2.14.1, CUDA 13.0, NCCL 2.30.7; clocks within 0.10 s, the head 1.0 ms away"
    )


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"versions": VERSIONS | {"NCCL": "2.29.0"}}, "n1: NCCL 2.29.0, and 2.30.7 elsewhere"),
        ({"versions": VERSIONS | {"torch": "not installed"}}, "n1: torch not installed, and 2.14.1 elsewhere"),
        ({"folder_error": "the run's folder is not shared: x"}, "n1: the run's folder is not shared"),
        ({"disk_bytes": 2**28}, "n1: 0.2 GiB are free where the run's folder is"),
        ({"link_error": "it does not reach the head at n0:2"}, "n1: it does not reach the head"),
        ({"clock_ahead_s": -62.0}, "n1: its clock is 62 s behind the head's"),
        ({"clock_ahead_s": 7.0}, "n1: its clock is 7 s ahead of the head's"),
        ({"memory_bytes": 20 * 2**30}, "n1: 20.0 GiB of memory are free, and 8 ranks need 25.6 GiB"),
        ({"gpus": 7}, "n1: 7 GPUs answer, and the job asked for 8"),
        ({"gpus": 0, "gpu_error": "nvidia-smi failed with exit code 9"}, "n1: nvidia-smi failed with exit code 9"),
    ],
)
def test_what_is_wrong_is_said_of_the_host_that_has_it(changes: dict[str, Any], says: str) -> None:
    [found] = problems([facts("n0"), facts("n1", **changes), facts("n2")], 8, 8, "32G")
    assert found.startswith(says)


def test_of_two_that_differ_the_heads_is_right() -> None:
    [found] = problems([facts("n0"), facts("n1", versions=VERSIONS | {"torch": "2.13.0"})], 1, 0)
    assert found.startswith("n1: torch 2.13.0, and 2.14.1 elsewhere")


def test_a_job_without_gpus_asks_for_none() -> None:
    assert problems([facts("n0", gpus=0, gpu_error="no nvidia-smi")], 1, 0, "0") == []


def test_a_look_at_this_machine(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("abc")
    seen = preflight.look("here", tmp_path, "abc")
    assert (seen.folder_error, (tmp_path / "here").read_text()) == (None, "abc")
    assert seen.memory_bytes > 2**20
    import torch

    assert seen.versions["torch"].partition("+")[0] == torch.__version__.partition("+")[0]
    assert seen.versions["CUDA"] == (torch.version.cuda or "none")
    assert "is another file than the head's" in str(preflight.look("here", tmp_path, "xyz").folder_error)
    assert "cannot be read here" in str(preflight.look("here", tmp_path / "nowhere", "xyz").folder_error)


# --- on the way to the head -------------------------------------------------------------------------------------------
NEEDS = argparse.Namespace(
    ranks_per_node=1, gpus_per_node=0, memory=None, python=sys.executable, prefix=[], srun_arguments=[]
)


def srun(folder: Path, monkeypatch: pytest.MonkeyPatch, tasks: str) -> Path:
    """A PATH on which srun is a script of our own; it gets the task's command after its options."""
    folder.mkdir()
    file = folder / "srun"
    file.write_text(f"#!/bin/bash\nwhile [[ $1 == --* ]]; do shift; done\n{tasks}\n")
    file.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)
    return folder


def lead(tmp_path: Path, *hosts: str, port: int = 0) -> str:
    from launcher.launch import free_port

    return slurm_preflight.lead(RunDir(tmp_path), tmp_path / "attempt-0", hosts, "127.0.0.1", free_port(), NEEDS)


def test_every_node_is_heard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    srun(tmp_path / "bin", monkeypatch, 'for n in a b; do SLURMD_NODENAME=$n "$@" | sed "s/^/0: /"; done')
    began = time.monotonic()
    assert lead(tmp_path, "a", "b").startswith("preflight: 2 nodes alike: thawline")
    assert time.monotonic() - began < slurm_preflight.PATIENCE_S


def test_a_node_without_python_is_named_with_what_srun_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tasks = (
        'SLURMD_NODENAME=a "$@"; echo "1: python: not found"; echo "srun: error: b: task 1: Exited with exit code 127"'
    )
    srun(tmp_path / "bin", monkeypatch, tasks)
    with pytest.raises(EnvironmentProblem) as wrong:
        lead(tmp_path, "a", "b")
    assert "  b: it cannot run " in str(wrong.value)
    assert "1: python: not found; srun: error: b: task 1: Exited with exit code 127" in str(wrong.value)
    assert "  a: " not in str(wrong.value)


def test_a_node_of_another_release_is_named_whatever_it_sends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sent = '{"host": "b", "versions": {"thawline": "9.9"}, "a_new_field": 1}'
    srun(tmp_path / "bin", monkeypatch, f"SLURMD_NODENAME=a \"$@\"; echo '1: thawline-facts {sent}'")
    with pytest.raises(
        EnvironmentProblem, match=rf"  b: thawline 9\.9, and {re.escape(__version__)} on the first node"
    ):
        lead(tmp_path, "a", "b")


def test_what_srun_says_is_told_where_no_node_was_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    srun(tmp_path / "bin", monkeypatch, "echo \"srun: unrecognized option '--mpii=x'\"; exit 1")
    with pytest.raises(EnvironmentProblem, match=r"a: it cannot run .*unrecognized option '--mpii=x'"):
        lead(tmp_path, "a", "b")


def test_one_kind_of_gpu_is_asked_of_all_nodes() -> None:
    facts = preflight.look()
    kinds = {"a": "NVIDIA A100", "b": "NVIDIA A100", "c": "Tesla V100"}
    found = preflight.problems([facts.model_copy(update={"host": n, "gpu_kind": k}) for n, k in kinds.items()], 1, 0)
    assert found == ["c: Tesla V100, and NVIDIA A100 elsewhere; ask for one kind, with --constraint or --gres"]


def test_a_node_that_says_nothing_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    srun(tmp_path / "bin", monkeypatch, 'SLURMD_NODENAME=a "$@"; exec sleep 1000')
    monkeypatch.setattr(slurm_preflight, "PATIENCE_S", 3.0)
    with pytest.raises(EnvironmentProblem, match=r"b: it cannot run .*no answer in 3 s"):
        lead(tmp_path, "a", "b")


def test_a_head_without_srun_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    given = ["lead", str(tmp_path), str(tmp_path / "attempt-0"), "a", "--port=0", "--ranks-per-node=1"]
    assert slurm_preflight.main([*given, "--gpus-per-node=0"]) == EnvironmentProblem.exit_code
    assert "'srun', on the first node" in capsys.readouterr().out


def test_a_head_that_is_not_reached_is_the_nodes_problem(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "token").write_text("t")
    from launcher.launch import free_port

    slurm_preflight.node(tmp_path, "t", "127.0.0.1", free_port())
    [found] = slurm_preflight._facts(capsys.readouterr().out)[0].values()
    assert "it does not reach the head at 127.0.0.1:" in str(found.link_error)
    assert found.clock_ahead_s is None
