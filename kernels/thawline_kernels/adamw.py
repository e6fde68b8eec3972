"""`FusedAdamW`, a `torch.optim.AdamW` whose step is one pass over memory.

Owns what a step is made of: gather, measure, scale, update. The arithmetic is in `reference` and, equal to the bit, in
the compiled kernels; the state's layouts are in `state`.
"""

from __future__ import annotations

import math
import sys
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from ctypes import c_ssize_t
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim import AdamW
from torch.optim.optimizer import ParamsT

from thawline_kernels import backends, formats, native, reference
from thawline_kernels.batches import Batch, gather, zero_grads
from thawline_kernels.state import Layout, Master, StateDtype, full_value, own_counts, save_states

Hook = Callable[..., Any]

_REFUSED = {
    "foreach": "there is no such step; leave it out: this one takes all tensors at once already",
    "capturable": "the step computes its scalars on the host, which a CUDA graph would repeat; use torch.optim.AdamW",
    "differentiable": "the step is not recorded by autograd; use torch.optim.AdamW",
}
"""Why flags of `torch.optim.AdamW` cannot be what they ask for."""

_OPTIONS = {
    "backend": ("auto", "cuda", "cpu", "torch"),
    "numerics": ("torch", "accurate"),
    "master": ("none", "split16", "fp32"),
    "state_dtype": ("fp32", "bf16"),
}


@dataclass
class _Part:
    """One group in one step."""

    params: list[Tensor]
    hyper: reference.Hyper
    first: int
    """Number of its first parameter."""
    target: str = ""
    """Whose kernels gather it, "cpu" or "cuda"."""
    trail: native.Trail | None = None
    """None: C++ does not gather it."""
    gathered: set[int] = field(default_factory=set)
    """Positions that are in a `Batch`, or need be in none."""

    @property
    def left(self) -> Sequence[int]:
        """The other positions."""
        everything = range(len(self.params))
        return [i for i in everything if i not in self.gathered] if self.gathered else everything


class FusedAdamW(AdamW):
    """AdamW with the state of `torch.optim.AdamW`, which it loads and which loads it.

    Args:
        params, lr, betas, eps, weight_decay, amsgrad, maximize: as in `torch.optim.AdamW`; parameters in fp32 or bf16.
        foreach, capturable, differentiable: None or False; True is refused, also in a group.
        fused: with True a GradScaler leaves the unscaling to the step, as it does with torch's; the step is the same.
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
        foreach: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
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
        usual = lr, betas, eps, weight_decay, amsgrad
        flags: dict[str, Any] = {"foreach": foreach, "capturable": capturable, "differentiable": differentiable}
        super().__init__(params, *usual, maximize=maximize, fused=fused, **flags)
        self._backend, self._is_accurate = backend, numerics == "accurate"
        self._layout, self._seed = Layout(master, state_dtype), seed
        self._trails: dict[tuple[str, int], native.Trail] = {}

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As in `torch.optim.AdamW`.

        torch's own imports torch._dynamo, a second or two, to keep itself out of compiled code. While nobody has
        imported that, nothing is compiled, and it goes without: the first step need not wait for it.

        Raises:
            ValueError: the group asks for what this optimizer has not got.
        """
        for name, why in _REFUSED.items():
            if isinstance(param_group, dict) and param_group.get(name, self.defaults.get(name)):
                raise ValueError(f"FusedAdamW({name}=True): {why}")
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
        self._own_counts()
        parts, batches = self._parts(), list[Batch]()
        if max_norm is not None:
            norm = self._norm(parts, batches) / unscale
            grad_scale *= min(1.0, max_norm / (norm + 1e-6))
            is_skipped = is_skipped or not math.isfinite(norm)
        if not is_skipped:
            self._step(parts, batches, grad_scale, zero_grad=zero_grad)
        elif zero_grad:
            zero_grads(param for part in parts for param in part.params)
        measured = None if norm is None else torch.tensor(norm, dtype=torch.float64, device="cpu")
        return measured if closure is None else loss

    def _parts(self) -> list[_Part]:
        parts: list[_Part] = []
        first = 0
        for number, group in enumerate(list(self.param_groups)):
            params = list(group["params"])  # a hook or another thread may change the group's
            part = _Part(params, _hyper(group, is_accurate=self._is_accurate), first)
            target = params[0].device.type if params else ""
            if target in ("cpu", "cuda") and backends.is_compiled(self._backend, target):
                trail = self._trails.get((target, number)) or native.Trail(target)
                self._trails[target, number] = trail
                has_repeats = trail.follow(params)
                part.target, part.trail = target, None if has_repeats else trail
            parts.append(part)
            first += len(params)
        return parts

    def _gather(self, part: _Part, positions: Sequence[int], pending: Counter[Tensor]) -> list[Batch]:
        def state_of(param: Tensor) -> dict[str, Any]:
            state: dict[str, Any] = self.state[param]
            self._layout.complete(state, param, amsgrad=part.hyper.amsgrad)
            return state

        part.gathered |= set(positions)
        batches = gather(part.params, part.hyper, state_of, positions, pending)
        for batch in batches if self._layout.state_dtype == "bf16" else ():
            batch.keys = [formats.random_key(self._seed, batch.step, part.first + i) for i in batch.positions]
        return batches

    def _norm(self, parts: list[_Part], batches: list[Batch]) -> float:
        """L2 norm of all gradients as they are; of DTensors, over the ranks that hold their shards.

        Appends to ``batches`` what C++ leaves; so what is refused is refused before anything is stepped.
        """
        squares: list[float] = []
        pending = Counter[Tensor]()
        for part in parts:
            sums, rest = native.measure(part.target, part.params, part.trail) if part.trail else ([], part.left)
            squares += sums
            batches += self._gather(part, rest, pending)
        for batch in batches:
            sums = backends.choose(self._backend, batch.device_type).sums_of_squares(batch.grads)
            squares += [batch.over_shards(reference.total(sums))] if batch.sharding else sums
        return math.sqrt(reference.total(squares))

    def _step(self, parts: list[_Part], batches: list[Batch], grad_scale: float, *, zero_grad: bool) -> None:
        cursor, pending = c_ssize_t(0), Counter(owner for batch in batches for owner in batch.owners)
        given = native.Step(grad_scale, zero_grad)
        for part in parts:
            rest: Sequence[int] = part.left
            if part.trail:
                positions = list(rest) if part.gathered else None
                walk = part.hyper, self.state, cursor, part.trail, (self._seed, part.first)
                rest = native.step(part.target, part.params, positions, *walk, given)
            batches += self._gather(part, rest, pending)
        is_once = all(times == 1 for times in pending.values())  # one named twice needs its gradient twice
        for batch in batches:
            k = reference.scalars(batch.hyper, batch.step, grad_scale)
            backends.choose(self._backend, batch.device_type).update(batch, k, zero_grad=zero_grad and is_once)
            batch.finish(zero_grad=zero_grad and is_once)
        if zero_grad:
            zero_grads(param for batch in batches for param in (batch.relaid if is_once else batch.owners))

    def _own_counts(self) -> None:
        """Look, at two parameters of each group, whether somebody gave several one step count."""
        some = [self.state.get(param, {}).get("step") for group in self.param_groups for param in group["params"][:2]]
        counters = [id(counter) for counter in some if counter is not None]
        if len(set(counters)) < len(counters):
            own_counts(self.state.values())

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
        with self._hooked("state_dict_post", first=save_states):
            return super().state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what this class, in any layout, or `torch.optim.AdamW` saved; nothing is rounded that has room.

        The groups' ``foreach``, ``fused``, ``capturable`` and ``differentiable`` stay as they are.
        """
        given: list[dict[str, Any]] = []

        def take(_: Any, state_dict: dict[str, Any]) -> None:
            given.append(state_dict)

        restore = self._hooked("load_state_dict_post", first=lambda _: self._restore(given[-1]))
        with self._hooked("load_state_dict_pre", last=take), restore:
            super().load_state_dict(state_dict)

    @contextmanager
    def _hooked(self, name: str, first: Hook | None = None, last: Hook | None = None) -> Iterator[None]:
        """With hooks of ours around the user's: those see, and may change, what is saved and what was restored."""
        attribute = f"_optimizer_{name}_hooks"
        hooks = getattr(self, attribute)
        ours = OrderedDict({"first": first, **hooks, "last": last})
        setattr(self, attribute, OrderedDict((key, hook) for key, hook in ours.items() if hook is not None))
        try:
            yield
        finally:
            setattr(self, attribute, hooks)

    @torch.no_grad()
    def _restore(self, state_dict: dict[str, Any]) -> None:
        keys = [key for group in state_dict["param_groups"] for key in group["params"]]
        params = [param for group in self.param_groups for param in group["params"]]
        for key, param in zip(keys, params, strict=True):
            if key in state_dict["state"]:
                self._layout.restore(self.state[param], state_dict["state"][key], param)
        for group in self.param_groups:
            group |= {name: self.defaults[name] for name in (*_REFUSED, "fused")}

    def __getstate__(self) -> dict[str, Any]:
        own = ("_backend", "_is_accurate", "_layout", "_seed", "_step_supports_amp_scaling")
        return {**super().__getstate__(), **{name: getattr(self, name) for name in own if hasattr(self, name)}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.__dict__.setdefault("_trails", {})
        own_counts(self.state.values())


def _hyper(group: dict[str, Any], *, is_accurate: bool) -> reference.Hyper:
    beta1, beta2 = map(float, group["betas"])
    eps, weight_decay = float(group["eps"]), float(group["weight_decay"])
    numbers = float(group["lr"]), beta1, beta2, eps, weight_decay
    return reference.Hyper(*numbers, group["maximize"], is_accurate, group["amsgrad"])


def _number(tensor: Tensor | None, *, default: float) -> float:
    return default if tensor is None else float(tensor)
