"""The CUDA step compiles for the GPUs that people have, and its library loads where there is none. Runs: tests/gpu."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from thawline_kernels import build


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc")
def test_the_cuda_step_compiles_and_loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THAWLINE_CUDA_ARCH", "80;90;100")
    build.ahead_of_time("cuda", tmp_path)
    (library,) = tmp_path.glob("*.so")
    program = f"import torch; from thawline_kernels import ops; torch.ops.load_library({str(library)!r})"
    path = str(Path(build.__file__).parents[1])
    subprocess.run([sys.executable, "-c", program], env={"PYTHONPATH": path}, check=True)


def test_no_architecture_is_guessed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("THAWLINE_CUDA_ARCH", raising=False)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    with pytest.raises(build.BuildError, match="THAWLINE_CUDA_ARCH"):
        build.library("cuda")
