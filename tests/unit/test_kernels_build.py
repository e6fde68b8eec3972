"""Compiling on first use: the key, the private cache, many ranks at once, and what a failure says."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from thawline_kernels import backends, build

COMPILER = """#!/bin/sh
echo "$@" >> "{calls}"
while [ $# -gt 1 ]; do [ "$1" = -o ] && echo built > "$2"; shift; done
"""


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A compiler that writes down how it is called, and an empty cache; returns what it wrote."""
    written = tmp_path / "calls"
    compiler = tmp_path / "g++"
    compiler.write_text(COMPILER.format(calls=written))
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    monkeypatch.setenv("THAWLINE_CACHE", str(tmp_path / "cache"))
    return written


def test_a_library_is_compiled_once_into_a_private_cache(calls: Path, capfd: pytest.CaptureFixture[str]) -> None:
    first = build.library("cpu")
    assert first.read_text() == "built\n"
    assert first.parent.stat().st_mode & 0o777 == 0o700
    assert "compiling the AdamW step (cpu)" in capfd.readouterr().err
    num_calls = len(calls.read_text().splitlines())
    assert build.library("cpu") == first
    assert len(calls.read_text().splitlines()) == num_calls
    assert not capfd.readouterr().err


def test_ranks_that_start_together_compile_once(calls: Path) -> None:
    program = "from thawline_kernels import build; print(build.library('cpu'))"
    paths = [str(path) for path in sys.path if path]
    ranks = [
        subprocess.Popen([sys.executable, "-c", program], env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)})
        for _ in range(3)
    ]
    assert [rank.wait(timeout=120) for rank in ranks] == [0, 0, 0]
    assert sum("-shared" in call for call in calls.read_text().splitlines()) == 1


def test_with_a_full_cache_the_first_step_starts_no_process_and_imports_nothing_slow() -> None:
    """It hashes the sources once, and leaves out torch._dynamo, whose import takes longer than all the rest."""
    build.library("cpu")
    program = (
        "import sys, subprocess, torch; from thawline_kernels import FusedAdamW, build\n"
        "def refuse(*_, **__): raise AssertionError('a process was started')\n"
        "subprocess.Popen.__init__ = refuse\n"
        "keys, key = [], build._key; build._key = lambda target: keys.append(target) or key(target)\n"
        "param = torch.zeros(64, requires_grad=True); param.grad = torch.ones(64)\n"
        "FusedAdamW([param], backend='cpu').step(zero_grad=True)\n"
        "assert keys == ['cpu'] and 'torch._dynamo' not in sys.modules, (keys, 'torch._dynamo' in sys.modules)"
    )
    paths = os.pathsep.join(path for path in sys.path if path)
    command = [sys.executable, "-c", program]
    done = subprocess.run(
        command, env=os.environ | {"PYTHONPATH": paths}, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.usefixtures("calls")
def test_another_source_another_torch_or_another_architecture_is_another_library(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = build.library("cpu")
    with monkeypatch.context() as patch:
        patch.setattr("torch.__version__", "9.9.9")
        assert build.library("cpu") != before
    with monkeypatch.context() as patch:
        patch.setattr("platform.machine", lambda: "sparc")
        assert build.library("cpu") != before
    sources = tmp_path / "csrc"
    sources.mkdir()
    (sources / "step.h").write_text("// changed")
    monkeypatch.setattr(build, "SOURCES", sources)
    assert build.library("cpu") != before


@pytest.mark.usefixtures("calls")
def test_a_cache_that_others_can_write_is_refused(tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache").chmod(0o777)
    with pytest.raises(build.BuildError, match=r"others can write .*mode 777.*chmod 700"):
        build.library("cpu")


@pytest.mark.parametrize(("target", "variable"), [("cpu", "CXX"), ("cuda", "NVCC")])
def test_a_missing_compiler_is_named(
    target: str, variable: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("THAWLINE_CACHE", str(tmp_path))
    monkeypatch.setenv("THAWLINE_CUDA_ARCH", "90")
    monkeypatch.setenv(variable, "no-such-compiler")
    with pytest.raises(build.BuildError, match=f"no-such-compiler.*{variable}.*backend torch"):
        build.library(target)
    assert not list(tmp_path.glob("*.so"))


def test_a_failing_compiler_shows_what_it_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = tmp_path / "g++"
    compiler.write_text("#!/bin/sh\necho 'no such flag' >&2; exit 3\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    monkeypatch.setenv("THAWLINE_CACHE", str(tmp_path / "cache"))
    with pytest.raises(build.BuildError, match=r"failed \(3\)(.|\n)*no such flag"):
        build.library("cpu")
    assert not list((tmp_path / "cache").glob("*.so"))


def test_auto_runs_the_reference_without_a_compiler_and_says_so_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(target: str) -> None:
        raise build.BuildError("no g++")

    monkeypatch.setattr(build, "load", fail)
    backends.choose.cache_clear()
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert isinstance(backends.choose("auto", "cpu"), backends.TorchBackend)
    assert [record.message.count("no g++") for record in caplog.records] == [1]
    with pytest.raises(build.BuildError):
        backends.choose("cpu", "cpu")
    backends.choose.cache_clear()


def test_a_compiled_backend_is_not_taken_for_another_device() -> None:
    with pytest.raises(ValueError, match="on cuda; take 'auto' or 'cuda'"):
        backends.choose("cpu", "cuda")
    assert isinstance(backends.choose("auto", "mps"), backends.TorchBackend)
