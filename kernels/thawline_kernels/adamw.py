"""`FusedAdamW`, a `torch.optim.AdamW` whose step is one pass over memory.

Owns the optimizer's state and what a step is made of: gather, measure, scale, update. Refuses sparse, complex and float64
parameters. The arithmetic is in `reference` and, equal to the bit, in the compiled kernels.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim import AdamW
from torch.optim.optimizer import ParamsT

from thawline_kernels import reference
from thawline_kernels.batches import Batch, dense, gather, gradients

Backend = Literal["auto", "cuda", "cpu", "torch"]
Numerics = Literal["torch", "accurate"]
Master = Literal["none", "split16", "fp32"]
StateDtype = Literal["fp32", "bf16"]

_OPTIONS = {
    "backend": ("auto", "cuda", "cpu", "torch"),
    "numerics": ("torch", "accurate"),
    "master": ("none", "split16", "fp32"),
    "state_dtype": ("fp32", "bf16"),
}


class FusedAdamW(AdamW):
    """AdamW with the state of `torch.optim.AdamW`, which it loads and which loads it.

    Args:
        params, lr, betas, eps, weight_decay, amsgrad, maximize: as in `torch.optim.AdamW`.
        backend: ``"cpu"`` and ``"cuda"`` are compiled and never fall back; ``"torch"`` is the reference; ``"auto"`` takes the
            compiled step where it can be built, else the reference, and says so once.
        numerics: ``"torch"`` decays as torch does, by fp32(1 - lr * weight_decay); ``"accurate"`` joins the decay to the
            update, which keeps decays below 3e-8.
        master: how a bf16 parameter's full value is kept; ``"none"`` keeps none.
        state_dtype: of the two moments.

    Raises:
        ValueError: an option is not one of those named.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
        backend: Backend = "auto",
        numerics: Numerics = "torch",
        master: Master = "none",
        state_dtype: StateDtype = "fp32",
    ) -> None:
        self._options = {"backend": backend, "numerics": numerics, "master": master, "state_dtype": state_dtype}
        for name, value in self._options.items():
            if value not in _OPTIONS[name]:
                raise ValueError(f"FusedAdamW({name}={value!r}): choose one of {', '.join(_OPTIONS[name])}")
        if backend in ("cpu", "cuda") or master != "none" or state_dtype != "fp32":
            raise NotImplementedError(f"FusedAdamW: {self._options} is not there yet; leave the defaults")
        super().__init__(params, lr, betas, eps, weight_decay, amsgrad, maximize=maximize)
        self._step_supports_amp_scaling = True  # GradScaler then hands over grad_scale and found_inf

    @torch.no_grad()
    def step(  # type: ignore[override]
        self, closure: Callable[[], Any] | None = None, *, max_norm: float | None = None, zero_grad: bool = False
    ) -> Any:
        """One step, clipped to a global gradient norm of ``max_norm`` if one is given (infinity measures and clips nothing).

        The norm is taken of the unscaled gradients, in double. If it is not finite, or GradScaler found an Inf, parameters,
        moments and step counts stay as they are. Gradients are left as they are, or zeroed with ``zero_grad``.

        Returns:
            The closure's loss when there is a closure; else the norm before clipping as a 0-d float64 tensor when
            ``max_norm`` is given; else None.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        batches = [batch for group in self.param_groups for batch in gather(group, self.state)]
        unscale = _number(getattr(self, "grad_scale", None), default=1.0)
        is_skipped = bool(_number(getattr(self, "found_inf", None), default=0.0))
        norm, grad_scale = None, 1.0 / unscale
        if max_norm is not None:
            norm = _norm(batches) / unscale
            grad_scale *= min(1.0, max_norm / (norm + 1e-6))
        if not is_skipped and (norm is None or math.isfinite(norm)):
            for batch in batches:
                self._update(batch, grad_scale)
                batch.count_step()
        if zero_grad:
            for grad in gradients(batches):
                grad.zero_()
        if closure is not None:
            return loss
        return None if norm is None else torch.tensor(norm, dtype=torch.float64)

    def _update(self, batch: Batch, grad_scale: float) -> None:
        k = reference.scalars(batch.hyper, batch.step, grad_scale)
        for i, param in enumerate(batch.params):
            peak = batch.max_exp_avg_sqs[i] if batch.max_exp_avg_sqs else None
            reference.adamw_(param, batch.grads[i], batch.exp_avgs[i], batch.exp_avg_sqs[i], peak, batch.hyper, k)

    def state_dict(self) -> dict[str, Any]:
        """As `torch.optim.AdamW`'s; each parameter's step count is a tensor of its own, since torch counts in place."""
        saved = super().state_dict()
        for key, state in saved["state"].items():
            saved["state"][key] = {name: value.clone() if name == "step" else value for name, value in state.items()}
        return saved

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what this class or `torch.optim.AdamW` saved; the moments keep fp32 where torch would cast to bf16."""
        super().load_state_dict(state_dict)
        saved_ids = [key for group in state_dict["param_groups"] for key in group["params"]]
        params = [param for group in self.param_groups for param in group["params"]]
        for key, param in zip(saved_ids, params, strict=True):
            for name, value in state_dict["state"].get(key, {}).items():
                self.state[param][name] = _restored(name, value, param)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_options": self._options, "_step_supports_amp_scaling": True}


def _restored(name: str, value: Any, param: Tensor) -> Any:
    """A copy of a saved state tensor on the parameter's device, at the precision it was saved in or better."""
    if name == "step":
        return torch.tensor(float(value))
    return value.to(param.device, torch.float32, copy=True) if isinstance(value, Tensor) else value


def _number(tensor: Tensor | None, *, default: float) -> float:
    return default if tensor is None else float(tensor)


def _norm(batches: list[Batch]) -> float:
    """L2 norm of all gradients, as they are."""
    return reference.norm(total for grad in gradients(batches) for total in reference.sums_of_squares(dense(grad)))
