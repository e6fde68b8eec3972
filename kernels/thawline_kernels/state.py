"""The optimizer's state of one parameter: how it starts, how it is saved, and how any layout becomes any other.

Saved, it has the keys of `torch.optim.AdamW`, and ``master`` where a bf16 parameter has a fuller value: the true fp32,
in the parameter's shape, whatever the layout that ran (``split16`` keeps only its low half, ``low``).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from thawline_kernels import formats
from thawline_kernels.batches import local

Master = Literal["none", "split16", "fp32"]
StateDtype = Literal["fp32", "bf16"]
State = dict[str, Any]


@dataclass(frozen=True)
class Layout:
    """How the state of bf16 parameters and the moments of all are kept."""

    master: Master
    state_dtype: StateDtype

    @property
    def moment_dtype(self) -> torch.dtype:
        return torch.float32 if self.state_dtype == "fp32" else torch.bfloat16

    @torch.inference_mode(False)
    @torch.no_grad()  # which the line above would end
    def complete(self, state: State, param: Tensor, *, amsgrad: bool) -> None:
        """Add to the ``state`` of a parameter with a gradient what its step needs and it has not got: all at the first
        one; the maximum of AMSGrad when its group is told to keep one; a step that is a number becomes a tensor."""
        if "step" not in state:
            self._start(state, param)
        elif not isinstance(state["step"], Tensor):
            state["step"] = count(state["step"])
        if amsgrad and "max_exp_avg_sq" not in state:
            state["max_exp_avg_sq"] = torch.zeros_like(param, dtype=torch.float32)

    def _start(self, state: State, param: Tensor) -> None:
        """Its full value may be there already."""
        state["step"] = count(0)
        for key in ("exp_avg", "exp_avg_sq"):
            state[key] = torch.zeros_like(param, dtype=self.moment_dtype)
        if param.dtype is torch.bfloat16 and self.master == "fp32" and "master" not in state:
            state["master"] = param.detach().float()
        elif param.dtype is torch.bfloat16 and self.master == "split16" and "low" not in state:
            state["low"] = torch.zeros_like(param, dtype=torch.int16)

    @torch.inference_mode(False)
    @torch.no_grad()  # which the line above would end
    def set_full_value(self, state: State, param: Tensor, value: Tensor) -> None:
        """Write an fp32 ``value`` into the parameter and, as far as it does not fit there, beside it."""
        if param.dtype is not torch.bfloat16 or self.master == "none":
            param.copy_(value)
            return
        master = _like(param, value, torch.float32)
        if self.master == "fp32":
            state["master"] = master
            local(param).copy_(formats.nearest_bf16(local(master)))
        else:
            upper, lower = formats.split16(local(master))
            local(param).copy_(upper)
            state["low"] = torch.zeros_like(param, dtype=torch.int16)
            local(state["low"]).copy_(lower)

    @torch.inference_mode(False)
    @torch.no_grad()  # which the line above would end
    def restore(self, state: State, saved: State, param: Tensor) -> None:
        """Fill ``state`` from one that this class or `torch.optim.AdamW` saved, in whatever layout that ran.

        With ``split16`` and a saved master the parameter is written too: it is the upper half of the true value.
        """
        state.clear()
        for key, value in saved.items():
            if key == "step":
                state[key] = count(value)
            elif key in ("exp_avg", "exp_avg_sq"):
                state[key] = _like(param, value, self.moment_dtype)
            elif key == "max_exp_avg_sq":
                state[key] = _like(param, value, torch.float32)
            elif key != "master":
                state[key] = value
        if param.dtype is not torch.bfloat16 or self.master == "none":
            return
        if self.master == "fp32":
            state["master"] = _like(param, saved.get("master", param), torch.float32)
        else:
            self.set_full_value(state, param, saved.get("master", param))


def count(steps: float | Tensor) -> Tensor:
    """A step count, fp32 on the host as torch's, whatever the default dtype and device: bf16 would stay at 256."""
    with torch.inference_mode(False):
        return torch.tensor(float(steps), dtype=torch.float32, device="cpu")


def own_counts(states: Iterable[Any]) -> None:
    """Give every state a step count of its own: counted in place, one that two share would count double.

    DeepSpeed's checkpoints restore one tensor for all parameters; optimizers pickled by earlier releases share one.
    """
    seen: set[int] = set()
    for state in states:
        counter = state.get("step") if isinstance(state, dict) else None
        if isinstance(counter, Tensor):
            if id(counter) in seen:
                state["step"] = counter = count(counter)
            seen.add(id(counter))


def saved(state: State, param: Tensor) -> State:
    """``state`` as it goes to a checkpoint (see the module); its moments are shared, not copied.

    The step is a copy: a torch.optim.AdamW that loads it would otherwise count in this optimizer's place.
    """
    out = {key: value.clone() if key == "step" else value for key, value in state.items() if key != "low"}
    if "low" in state:
        master = full_value(state, param)
        # Joined values of all parameters would be 4 bytes an element more on a GPU than any step needs.
        out["master"] = master.cpu() if local(master) is master else master
    return out


def save_states(optimizer: Any, state_dict: dict[str, Any]) -> None:
    """Turn the packed states of parameters into those of a checkpoint."""
    params = [param for group in optimizer.param_groups for param in group["params"]]
    keys = [key for group in state_dict["param_groups"] for key in group["params"]]
    for key, param in zip(keys, params, strict=True):
        if key in state_dict["state"]:
            state_dict["state"][key] = saved(state_dict["state"][key], param)


def full_value(state: State, param: Tensor) -> Tensor:
    """The fp32 value of a parameter: its master, which is shared, or what its halves make; else its own, in fp32."""
    if "low" in state:
        joined = torch.zeros_like(param, dtype=torch.float32)
        local(joined).copy_(formats.join16(local(param.detach()), local(state["low"])))
        return joined
    master: Tensor = state.get("master", param)
    return master.detach().float()


def _like(param: Tensor, value: Tensor, dtype: torch.dtype) -> Tensor:
    """A copy of ``value`` with the device and strides of ``param``."""
    return torch.zeros_like(param, dtype=dtype).copy_(value.detach())
