"""The fp32 masters and the optimizer's state of a ZeRO-3 engine that DeepSpeed keeps in files (``offload: nvme``).

Owns what DeepSpeed 0.19.8 lacks around its swapper: reading and writing one parameter's part without bringing a whole
sub-group into memory, state that an optimizer is given before its first step, and checkpoints. DeepSpeed's own copies
the files into the checkpoint, but neither the step counts nor the state of sub-groups too small to be swapped, and its
``load_checkpoint`` brings back no state that a client optimizer makes in its first step (deepspeed/runtime/engine.py,
``zero_nvme_offload_optimizer``; swap_tensor/optimizer_utils.py, ``_get_state_tensors``): a resumed run would begin with
zero moments. Refuses nothing: `launcher.nvme` has looked at the machine before. Used by `zero_nvme` alone.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from launcher import nvme

STATE = "state.pt"


class SwapFiles:
    """One rank's, as long as the engine lives. No method is collective but `save`, `load` and `whole`."""

    def __init__(self, zero: Any, rank: int, folder: Path) -> None:
        """``zero``: a DeepSpeedZeroOptimizer_Stage3 that swaps under ``folder``."""
        self._zero = zero
        self._rank = rank
        self._folder = folder

    def tensor(self, index: int, key: str | None = None) -> torch.Tensor:
        """A sub-group's flat fp32 master, or its state ``key``: a view of the file, which may be written to, or where
        the sub-group is too small to be swapped the tensor itself.

        The kernel keeps such views and the operator's direct reads and writes in step, page by page.
        """
        flat = self._flat(index)
        if not self._is_swapped(index):
            return flat.data if key is None else self._zero.optimizer.state[flat][key]
        size = int(self._zero.fp16_partitioned_groups_flat_numel[index])
        return torch.from_file(str(self._file(index, key)), shared=True, size=size, dtype=torch.float32)

    def part(self, parameter: nn.Parameter, key: str | None = None) -> torch.Tensor:
        """This rank's part of a trained parameter's master or state, padded as ZeRO-3 does; to read or to write."""
        index, offset, numel = self._zero.grad_position[self._zero.get_param_id(parameter)]
        return self.tensor(index, key).narrow(0, int(offset), int(numel))

    def whole(self, parameter: nn.Parameter, key: str | None = None) -> torch.Tensor:
        """The parameter's whole master or state, in fp32, on its device; every rank must reach this."""
        whole: torch.Tensor = self._zero._fp32_state_allgather(parameter, self.part(parameter, key))
        return whole

    def keys(self, index: int) -> Iterator[str]:
        """Names of a sub-group's per-element states."""
        for key, value in self._zero.optimizer.state.get(self._flat(index), {}).items():
            if isinstance(value, torch.Tensor) and (value.dim() or getattr(value, "ds_id", None)):
                yield key

    def index_of(self, parameter: nn.Parameter) -> int:
        """The sub-group of a trained parameter."""
        return int(self._zero.grad_position[self._zero.get_param_id(parameter)][0])

    def give_state(self, index: int, keys: list[str], steps: torch.Tensor | None) -> None:
        """Let a sub-group have the states ``keys``, of zeros where it has none, and as many ``steps`` behind it."""
        flat = self._flat(index)
        state = self._zero.optimizer.state[flat]
        if steps is not None:
            state["step"] = steps
        missing = [key for key in keys if key not in state]
        if not missing:
            return
        if self._is_swapped(index):
            self._zero._optimizer_states_and_gradient_swap_in(index)
        for key in missing:
            state[key] = torch.zeros_like(flat, requires_grad=False)
        if self._is_swapped(index):
            self._zero._optimizer_states_and_gradient_swap_out(index)

    def save(self, folder: Path, module: nn.Module) -> None:
        """Write what `load` needs besides the weights of the stage's start: frozen parameters are as they were."""
        mine = folder / f"rank{self._rank}"
        mine.mkdir(parents=True)
        states = []
        for index in range(self._count):
            entries = dict(self._zero.optimizer.state.get(self._flat(index), {}))
            entry: dict[str, Any] = {"keys": [*self.keys(index)]}
            if self._is_swapped(index):
                for key in (None, *entry["keys"]):
                    shutil.copyfile(self._file(index, key), mine / f"{index}-{key or 'master'}")
            else:
                entry |= {key: entries[key] for key in entry["keys"]} | {"master": self._flat(index).data}
            states.append(entry | {"step": entries.get("step")})
        scaler = {k: v for k, v in vars(self._zero.loss_scaler).items() if isinstance(v, bool | int | float)}
        buffers = {name: buffer.cpu() for name, buffer in module.named_buffers()}
        torch.save({"states": states, "scaler": scaler, "buffers": buffers}, mine / STATE)

    def load(self, folder: Path, module: nn.Module) -> None:
        """Take up what `save` wrote with as many ranks."""
        mine = folder / f"rank{self._rank}"
        saved = torch.load(mine / STATE, weights_only=True)
        self._zero.checkpoint_event_prologue()
        for index, entry in enumerate(saved["states"]):
            self.give_state(index, entry["keys"], entry["step"])
            for key in (None, *entry["keys"]):
                if self._is_swapped(index):
                    shutil.copyfile(mine / f"{index}-{key or 'master'}", self._file(index, key))
                else:
                    self.tensor(index, key).copy_(entry[key or "master"])
            if not self._is_swapped(index):
                self._zero._reassign_or_swap_out_partitioned_parameters(index)
        for index in filter(self._is_swapped, range(self._count)):
            self._zero._optimizer_states_and_gradient_swap_in(index)
            self._zero._reassign_or_swap_out_partitioned_parameters(index)
            self._zero._release_swap_buffers(index)
        for name, buffer in module.named_buffers():
            buffer.copy_(saved["buffers"][name])
        vars(self._zero.loss_scaler).update(saved["scaler"])
        self._zero.checkpoint_event_epilogue()

    def num_bytes(self) -> int:
        """Of this rank's files now."""
        return sum(file.stat().st_size for file in nvme.rank_folder(self._folder, self._rank).iterdir())

    def buffer_bytes(self) -> int:
        """Of the memory that this rank swaps through."""
        return sum(buffer.nbytes for buffer in self._zero.optimizer_swapper.swap_buffer_manager.all_buffers)

    def remove(self) -> None:
        """Take the files away, and the buffers, which outlive whoever refers to them: their memory is locked."""
        swapper = self._zero.optimizer_swapper
        swapper.swap_buffer_manager.__del__()
        nvme.remove(self._folder, self._rank)

    @property
    def _count(self) -> int:
        return len(self._zero.fp32_partitioned_groups_flat)

    def _flat(self, index: int) -> torch.Tensor:
        flat: torch.Tensor = self._zero.fp32_partitioned_groups_flat[index]
        return flat

    def _is_swapped(self, index: int) -> bool:
        return bool(self._zero._swappable_optimizer_subgroup(index))

    def _file(self, index: int, key: str | None) -> Path:
        name = self._flat(index).ds_id  # type: ignore[attr-defined]
        prefix = "" if key is None else f"{key}-"
        return Path(self._zero.optimizer_swapper.swap_folder) / f"{prefix}{name}.tensor.swp"
