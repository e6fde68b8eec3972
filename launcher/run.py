"""What one rank holds while it trains: the plan, the data, the job it belongs to, and where its files go.

Built once by `walk`, handed to `train`. Also the one thing all ranks check together outside the engine: that they agree
on every weight.
"""

from __future__ import annotations

import resource
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from launcher.data import Splits
from launcher.distributed import Runtime
from launcher.errors import TrainingFailed
from launcher.plan import RunPlan
from launcher.run_dir import RunDir
from launcher.stop import StopRequest
from launcher.tasks import BoundTask
from launcher.tracking import Tracker


@dataclass
class Run:
    """One rank's view of the whole run."""

    plan: RunPlan
    run_dir: RunDir
    runtime: Runtime
    splits: Splits
    task: BoundTask
    tracker: Tracker
    stop: StopRequest = field(default_factory=StopRequest)

    @property
    def recipe_dir(self) -> Path:
        return Path(self.plan.recipe_dir)

    @property
    def pin_memory(self) -> bool:
        """Whether batches go through pinned host memory."""
        return self.runtime.device.type == "cuda"

    def logits(self, outputs: Any) -> torch.Tensor:
        """The logits in what a transformers or torchvision module returned."""
        logits: torch.Tensor = getattr(outputs, "logits", outputs)
        return logits

    def carries_into(self, stage_index: int) -> bool:
        """Whether the stage of that index takes over optimizer state."""
        stages = self.plan.stages
        return stage_index < len(stages) and stages[stage_index].settings.optimizer_state == "carry"

    def agree_on_digests(self, digests: dict[str, str]) -> dict[str, str]:
        """The digests, the same on every rank.

        Raises:
            TrainingFailed: ranks hold different bits of a parameter; they have drifted apart.
        """
        for rank, others in enumerate(self.runtime.gather(digests)):
            for name, digest in others.items():
                if digests[name] != digest:
                    raise TrainingFailed(
                        f"parameter {name} differs between rank {self.runtime.rank} and rank {rank}: the ranks have "
                        "drifted apart, and the weights cannot be trusted; please report this with the run's plan.json"
                    )
        return digests

    def peak_memory_bytes(self) -> int:
        """Peak memory of this rank: allocated on the GPU in this stage, or resident on a CPU rank so far."""
        if self.runtime.device.type == "cuda":
            return int(torch.cuda.max_memory_allocated())
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
