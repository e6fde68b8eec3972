"""ZeRO 3 whose fp32 masters and optimizer state lie in files on the node's own disk: ``offload: nvme``.

Owns what differs from `zero` where those are read and written; the swapping is DeepSpeed's, through libaio (Rajbhandari
et al., "ZeRO-Infinity", 2021). Parameters' shards and gradients are in host memory, as under ``offload: cpu``.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import deepspeed
import torch
from accelerate import Accelerator
from deepspeed.accelerator import get_accelerator
from torch import nn

from launcher import nvme
from launcher.backends.engine import Engine, Parts
from launcher.backends.swap_files import SwapFiles
from launcher.backends.zero import ZeroEngine, deepspeed_config, wrapped
from launcher.costs import memory
from launcher.errors import EnvironmentProblem
from launcher.models.parameter_names import named_parameters, parameter_of


def build(parts: Parts) -> Engine:
    """Look at the machine, make the swap folder, and build the engine.

    Raises: EnvironmentProblem when this node cannot swap; RuntimeError as `zero.wrapped`.
    """
    stage, runtime = parts.stage, parts.runtime
    on_this_node = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    first = runtime.rank - runtime.local_rank
    largest = max(group.parameters for group in stage.groups) // runtime.ranks
    sub_group = min(largest, memory.SWAP_SUB_GROUP_ELEMENTS)  # but for what its last parameter adds
    _load_operator()
    folder = nvme.require(
        stage.settings.sharding.nvme_path, parts.run_dir, stage.memory.nvme_bytes if stage.memory else 0,
        range(first, first + on_this_node), runtime.rank,
        buffer_bytes=memory.SWAP_BUFFERS * memory.FP32_BYTES * sub_group,
    )  # fmt: skip
    runtime.barrier()  # nobody writes before all have looked at what is free
    built = NvmeEngine(*wrapped(parts, deepspeed_config(stage, folder)), parts, folder)
    if stage.settings.precision != "fp32":
        built.restore_masters(parts)
    return built


def _load_operator() -> None:
    """Raises: EnvironmentProblem when DeepSpeed's operator cannot be compiled or loaded on this node."""
    try:
        with redirect_stdout(sys.stderr):  # it prints what it compiles
            get_accelerator().create_op_builder("AsyncIOBuilder").load(verbose=False)
    except Exception as error:  # of a compiler, ninja, the CUDA toolkit, the dynamic linker: each has its own type
        raise EnvironmentProblem(
            f"{nvme.NAME}: DeepSpeed's async_io operator cannot be built or loaded here: {error}"
        ) from error


class NvmeEngine(ZeroEngine):
    """A DeepSpeed engine that swaps."""

    def __init__(self, accelerator: Accelerator, engine: deepspeed.DeepSpeedEngine, parts: Parts, folder: Path) -> None:
        super().__init__(accelerator, engine, parts)
        self.swapped = SwapFiles(engine.optimizer, parts.runtime.rank, folder)

    def restore_masters(self, parts: Parts) -> None:
        for name, parameter in named_parameters(self.module):
            if parameter.requires_grad:
                value = parts.start_tensor(name).to(parts.runtime.device)
                self.swapped.part(parameter).copy_(self._shard(parameter, value))

    def parameters(self) -> Iterator[tuple[str, torch.Tensor]]:
        for name, parameter in named_parameters(self.module):
            if parameter.requires_grad:
                yield name, self.swapped.whole(parameter)
            else:
                with deepspeed.zero.GatheredParameters([parameter]):
                    yield name, parameter.detach().clone()

    def _whole_state(self, parameter: nn.Parameter, flat_state: torch.Tensor, key: str) -> torch.Tensor:
        return self.swapped.whole(parameter, key).cpu()

    def set_optimizer_state(self, name: str, steps: int, tensors: dict[str, torch.Tensor]) -> None:
        parameter = parameter_of(self.module, name)
        self.swapped.give_state(self.swapped.index_of(parameter), [*tensors], torch.tensor(float(steps)))
        for key, value in tensors.items():
            self.swapped.part(parameter, key).copy_(self._shard(parameter, value))

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.swapped.save(folder, self.module)

    def load(self, folder: Path) -> None:
        self.swapped.load(folder, self.module)

    def describe(self) -> dict[str, Any]:
        swapped = {"nvme_bytes": self.swapped.num_bytes(), "buffer_bytes": self.swapped.buffer_bytes()}
        return super().describe() | swapped

    def close(self) -> None:
        self.swapped.remove()
        super().close()
