"""Measures what a stage takes of this rank's memory, while it trains.

Owns the moments of measuring: autograd's tensors in the first micro-batch, gradients after its backward, the engine's
state after the first step, and the peaks of the whole stage. Costs one micro-batch's hooks and nothing after it.
`memory_record` is the file it writes. Called by `train`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from launcher.backends import Engine
from launcher.distributed import Runtime
from launcher.memory_record import Measured, MemoryRecord
from launcher.models.alike_blocks import SavedTensors
from launcher.plan import StagePlan
from launcher.run_dir import RunDir, write_atomic

_OWN = Path("/proc/self")


class MemoryMeter:
    """One rank's, over one stage; made before the stage's engine is."""

    def __init__(self, stage: StagePlan, runtime: Runtime) -> None:
        self._stage, self._runtime = stage, runtime
        self._on_gpu = runtime.device.type == "cuda"
        self._activations: int | None = None
        self._gradients: int | None = None
        self._held: dict[str, int] | None = None
        self._has_resident = False
        if self._on_gpu:
            torch.cuda.reset_peak_memory_stats()
        else:
            self._has_resident = _reset_resident_peak()

    def forward(self, engine: Engine, inputs: dict[str, torch.Tensor]) -> Any:
        """The engine's forward pass; the first one's saved tensors are counted."""
        if self._activations is not None or self._held is not None or self._stage.zero_stage == 3:
            return engine.forward(inputs)
        saved = SavedTensors(engine.module)
        with saved:
            outputs = engine.forward(inputs)
        self._activations = saved.num_bytes
        saved.forget()  # or it would keep alive what the backward frees
        return outputs

    def after_backward(self, engine: Engine) -> None:
        """Look at the gradients, once."""
        if self._gradients is None:
            self._gradients = engine.held()["gradients"]

    def after_step(self, engine: Engine) -> None:
        """Look at the engine's state, once."""
        if self._held is None:
            self._held = engine.held()

    def write(self, run_dir: RunDir) -> None:
        """The stage's record, by the first rank; all must reach this."""
        ranks = self._runtime.gather(self._measured())
        if self._runtime.is_first:
            most = {
                name: max((value for one in ranks if (value := getattr(one, name)) is not None), default=None)
                for name in Measured.model_fields
            }
            record = MemoryRecord(
                stage=self._stage.name, micro_size=self._stage.batch.micro_size, predicted=self._stage.memory,
                measured=Measured.model_validate(most), ranks=ranks,
            )  # fmt: skip
            path = run_dir.memory(self._stage.index, self._stage.name)
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(path, record.model_dump_json(indent=1))

    def _measured(self) -> Measured:
        held = self._held or {}
        return Measured(
            allocated=torch.cuda.max_memory_allocated() if self._on_gpu else None,
            reserved=torch.cuda.max_memory_reserved() if self._on_gpu else None,
            resident=_resident_peak() if self._has_resident else None,
            parameters=held.get("parameters"),
            gradients=self._gradients,
            masters=held.get("masters"),
            optimizer=held.get("optimizer"),
            activations=self._activations,
        )


def _reset_resident_peak() -> bool:
    """Let the kernel's peak (``VmHWM``) begin anew at what is resident now; whether it did (proc(5), clear_refs)."""
    try:
        (_OWN / "clear_refs").write_text("5")
    except OSError:
        return False
    return True


def _resident_peak() -> int | None:
    lines = (_OWN / "status").read_text().splitlines()
    found = [line.split()[1] for line in lines if line.startswith("VmHWM:")]
    return int(found[0]) * 1024 if found else None
