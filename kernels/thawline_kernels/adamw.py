"""`FusedAdamW`, a `torch.optim.AdamW` whose step is one pass over memory.

Owns what a step is made of: gather, measure, scale, update. The arithmetic is in `reference` and, equal to the bit, in
the compiled kernels; the state's layouts are in `state`.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable, Sequence
from ctypes import c_ssize_t
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim import AdamW
from torch.optim.optimizer import ParamsT

from thawline_kernels import backends, formats, native, reference
from thawline_kernels.batches import Batch, gather, is_dense, local
from thawline_kernels.native import NativeBatch
from thawline_kernels.state import Layout, Master, StateDtype, full_value, saved

_OPTIONS = {
    "backend": ("auto", "cuda", "cpu", "torch"),
    "numerics": ("torch", "accurate"),
    "master": ("none", "split16", "fp32"),
    "state_dtype": ("fp32", "bf16"),
}


class FusedAdamW(AdamW):
    """AdamW with the state of `torch.optim.AdamW`, which it loads and which loads it.

    Args:
        params, lr, betas, eps, weight_decay, amsgrad, maximize: as in `torch.optim.AdamW`; parameters in fp32 or bf16.
        backend: ``"cpu"`` and ``"cuda"`` are compiled and never fall back; ``"torch"`` is the reference; ``"auto"``
            takes the compiled step where it can be built, else the reference, and says so once. All give the same bits.
        numerics: ``"torch"`` decays as torch does, by fp32(1 - lr * weight_decay), which is 1 for a decay below 3e-8;
            ``"accurate"`` joins the decay to the update, and arrives on average.
        master: how the full value of a bf16 parameter is kept: ``"fp32"`` beside it; ``"split16"`` as the 16 bits it
            lacks, the same value in 2 bytes less; ``"none"`` not at all.
        state_dtype: of the two moments; ``"bf16"`` rounds the second one stochastically.
        seed: of that rounding, with the step and the parameter's position.

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
        backend: Literal["auto", "cuda", "cpu", "torch"] = "auto",
        numerics: Literal["torch", "accurate"] = "torch",
        master: Master = "none",
        state_dtype: StateDtype = "fp32",
        seed: int = 0,
    ) -> None:
        chosen = {"backend": backend, "numerics": numerics, "master": master, "state_dtype": state_dtype}
        for name, value in chosen.items():
            if value not in _OPTIONS[name]:
                raise ValueError(f"FusedAdamW({name}={value!r}): choose one of {', '.join(_OPTIONS[name])}")
        super().__init__(params, lr, betas, eps, weight_decay, amsgrad, maximize=maximize)
        self._backend, self._is_accurate = backend, numerics == "accurate"
        self._layout, self._seed = Layout(master, state_dtype), seed
        self._step_supports_amp_scaling = True  # GradScaler then hands over grad_scale and found_inf

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As in `torch.optim.AdamW`.

        torch's own imports torch._dynamo, a second or two, to keep itself out of compiled code. While nobody has
        imported that, nothing is compiled, and it goes without: the first step need not wait for it.
        """
        plain = getattr(AdamW.add_param_group, "__wrapped__", None)
        if plain is None or "torch._dynamo" in sys.modules:
            super().add_param_group(param_group)
        else:
            plain(self, param_group)

    @torch.no_grad()
    def step(
        self, closure: Callable[[], Any] | None = None, *, max_norm: float | None = None, zero_grad: bool = False
    ) -> Any:
        """One step, clipped to a global gradient norm of ``max_norm`` if one is given; infinity only measures.

        The norm is that of the unscaled gradients, in double. If it is not finite, or GradScaler found an Inf,
        parameters, moments and step counts stay as they are. Gradients are left as they are, or zeroed with
        ``zero_grad``.

        Raises:
            TypeError: a parameter or gradient is of a kind that is refused (see `batches`). After the first step, and
                without ``max_norm``, others may have been stepped by then.

        Returns:
            The closure's loss when there is a closure; else the norm before clipping, a 0-d float64 tensor, when
            ``max_norm`` is given; else None.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        unscale = _number(getattr(self, "grad_scale", None), default=1.0)
        is_skipped = bool(_number(getattr(self, "found_inf", None), default=0.0))
        norm, grad_scale = None, 1.0 / unscale
        is_known = max_norm is None and not is_skipped
        batches = self._gather(native.Ahead(grad_scale, zero_grad) if is_known else None)
        if max_norm is not None:
            norm = self._norm(batches) / unscale
            grad_scale *= min(1.0, max_norm / (norm + 1e-6))
            is_skipped = is_skipped or not math.isfinite(norm)
        if not is_skipped:
            for batch in batches:
                k = reference.scalars(batch.hyper, batch.step, grad_scale)
                if isinstance(batch, NativeBatch):
                    batch.update(k, zero_grad=zero_grad)
                else:
                    backends.choose(self._backend, batch.device_type).update(batch, k, zero_grad=zero_grad)
                batch.finish()
        if zero_grad and is_skipped:
            _zero_grads(param for group in self.param_groups for param in group["params"])
        elif zero_grad:
            _zero_grads(param for batch in batches if isinstance(batch, Batch) for param in batch.relaid)
        return (None if norm is None else torch.tensor(norm, dtype=torch.float64)) if closure is None else loss

    def _gather(self, ahead: native.Ahead | None) -> list[Batch | NativeBatch]:
        batches: list[Batch | NativeBatch] = []
        first, cursor = 0, c_ssize_t(0)
        for group in self.param_groups:
            hyper, params = _hyper(group, is_accurate=self._is_accurate), group["params"]
            target = params[0].device.type if params else ""
            is_native = target in ("cpu", "cuda") and backends.is_compiled(self._backend, target)
            everything: tuple[list[NativeBatch], Sequence[int]] = [], range(len(params))
            given = target, group, hyper, self.state, cursor, (self._seed, first), ahead
            ordinary, rest = native.gather(*given) if is_native else everything
            others = gather(group, hyper, self._state_of(group), rest)
            for batch in others if self._layout.state_dtype == "bf16" else ():
                batch.keys = [formats.random_key(self._seed, batch.step, first + i) for i in batch.positions]
            batches += [*ordinary, *others]
            first += len(params)
        return batches

    def _state_of(self, group: dict[str, Any]) -> Callable[[Tensor], dict[str, Any]]:
        def state_of(param: Tensor) -> dict[str, Any]:
            state: dict[str, Any] = self.state[param]
            if "step" not in state:
                self._layout.start(state, param, amsgrad=group["amsgrad"])
            return state

        return state_of

    def _norm(self, batches: list[Batch | NativeBatch]) -> float:
        """L2 norm of all gradients as they are; of DTensors, over the ranks that hold their shards."""
        squares: list[float] = []
        for batch in batches:
            if isinstance(batch, NativeBatch):
                squares += batch.sums_of_squares()
                continue
            sums = backends.choose(self._backend, batch.device_type).sums_of_squares(batch.grads)
            squares += [batch.over_shards(reference.total(sums))] if batch.sharding else sums
        return math.sqrt(reference.total(squares))

    def full_value(self, param: Tensor) -> Tensor:
        """The fp32 value of a parameter, of its shape: with ``master``, what its bf16 is the rounding of."""
        return full_value(self.state.get(param, {}), param)

    @torch.no_grad()
    def set_full_value(self, param: Tensor, value: Tensor) -> None:
        """Give a parameter a value in fp32, of its shape; with ``master``, what bf16 cannot hold is kept beside it."""
        state = self.state.get(param, {})
        self._layout.set_full_value(state, param, value)
        if state:
            self.state[param] = state

    def state_dict(self) -> dict[str, Any]:
        """As `torch.optim.AdamW`'s, with ``master`` where bf16 parameters have a fuller value (see `state`)."""
        out = super().state_dict()
        params = [param for group in self.param_groups for param in group["params"]]
        for key, state in out["state"].items():
            out["state"][key] = saved(state, params[key])
        return out

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what this class, in any layout, or `torch.optim.AdamW` saved; nothing is rounded that has room."""
        super().load_state_dict(state_dict)
        keys = [key for group in state_dict["param_groups"] for key in group["params"]]
        params = [param for group in self.param_groups for param in group["params"]]
        for key, param in zip(keys, params, strict=True):
            if key in state_dict["state"]:
                self._layout.restore(self.state[param], state_dict["state"][key], param)

    def __getstate__(self) -> dict[str, Any]:
        own = ("_backend", "_is_accurate", "_layout", "_seed", "_step_supports_amp_scaling")
        return {**super().__getstate__(), **{name: getattr(self, name) for name in own}}


def _hyper(group: dict[str, Any], *, is_accurate: bool) -> reference.Hyper:
    beta1, beta2 = map(float, group["betas"])
    eps, weight_decay = float(group["eps"]), float(group["weight_decay"])
    return reference.Hyper(float(group["lr"]), beta1, beta2, eps, weight_decay, group["maximize"], is_accurate)


def _number(tensor: Tensor | None, *, default: float) -> float:
    return default if tensor is None else float(tensor)


def _zero_grads(params: Iterable[Tensor]) -> None:
    for param in params:
        grad = param.grad
        if grad is not None and is_dense(local(grad)):
            grad.zero_()
        elif grad is not None:
            param.grad = torch.zeros_like(param, dtype=grad.dtype)  # expanded: one zero cannot be written to many
