"""The step against its peers and against the memory: the sets of tensors, the races and their ratios.

Contenders of a race take turns, so that a slow minute of the machine meets all of them; what is reported is the ratio
of paired times, which a drifting bandwidth leaves alone. The floor reads the four streams of the step and writes three,
with next to no arithmetic. `bench` runs the races and shows their results.
"""

from __future__ import annotations

import functools
import importlib
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from thawline_kernels import FusedAdamW

OURS = "FusedAdamW"
BYTES_PER_PARAMETER = {"step": 28, "clip": 32, "bf16": 26, "compiled": 28}
"""What our step moves: fp32 p, g, m, v read and p, m, v written; the clip reads g once more; bf16 is split16."""


@dataclass(frozen=True)
class Result:
    """One contender of one race."""

    race: str
    set_name: str
    contender: str
    milliseconds: float
    """Median."""
    ratio_min: float
    """Its time over that of `OURS`, pair by pair: above 1, ours is faster."""
    ratio: float
    ratio_max: float


def sizes(set_name: str) -> list[int]:
    """Elements of each tensor: a, one of 50M; b, BERT base, 199 tensors, 110M; c, 5,000 tensors, 1.2M in all."""
    if set_name == "a":
        return [50_000_000]
    if set_name == "b":
        hidden, inner = 768, 3072
        layer = [hidden * hidden, hidden] * 4 + [hidden] * 2
        layer += [hidden * inner, inner, inner * hidden, hidden] + [hidden] * 2
        return [30522 * hidden, 512 * hidden, 2 * hidden, hidden, hidden, *layer * 12, hidden * hidden, hidden]
    generator = torch.Generator().manual_seed(1)
    return [int(2**power) for power in (4 + 6 * torch.rand(5000, generator=generator)).tolist()]


def make_params(set_name: str, dtype: torch.dtype, device: str) -> list[Tensor]:
    """Parameters of a set with gradients of a plausible size."""
    params = []
    for size in sizes(set_name):
        param = (torch.randn(size, device=device) * 0.02).to(dtype).requires_grad_()
        param.grad = (torch.randn(size, device=device) * 1e-3).to(dtype)
        params.append(param)
    return params


Race = dict[str, Callable[[], Any]]


def step_race(set_name: str, device: str) -> Race:
    """The plain step: ours, the floor, and every other that this machine has."""
    params = make_params(set_name, torch.float32, device)
    ours = FusedAdamW(params)
    race: Race = {OURS: ours.step}
    if device == "cpu":
        ours.step()
        streams = ([ours.state[p][name] for p in params] for name in ("exp_avg", "exp_avg_sq"))
        floor = ([p.detach() for p in params], [p.grad for p in params], *streams)
        race["floor: reads 4, writes 3"] = lambda: torch.ops.thawline.touch_(*floor)
    else:
        race["floor: device copy"] = _copy_floor(sum(sizes(set_name)), device)
    race |= {
        "torch single": torch.optim.AdamW(params, foreach=False).step,
        "torch foreach": torch.optim.AdamW(params, foreach=True).step,
        "torch fused": torch.optim.AdamW(params, fused=True).step,
    }
    return race | {name: peer(params).step for name, peer in peers(device).items() if not isinstance(peer, str)}


def compiled_race(set_name: str, device: str) -> Race:
    """The plain step against torch's foreach step through `torch.compile`, which takes minutes to compile."""
    params = make_params(set_name, torch.float32, device)
    theirs = torch.optim.AdamW(params, foreach=True, capturable=device != "cpu")
    theirs.step()  # the state is there before it is traced, as torch's own recipe has it
    return {OURS: FusedAdamW(params).step, "torch foreach, compiled": torch.compile(theirs.step)}


def _copy_floor(numel: int, device: str) -> Callable[[], Any]:
    """A copy that moves the bytes of the step: 28 a parameter, half of them read."""
    source = torch.empty(numel * 14, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return lambda: target.copy_(source)


Make = Callable[[list[Tensor]], torch.optim.Optimizer]
PEERS = {
    "DeepSpeed CPUAdam": ("cpu", "deepspeed.ops.adam", "DeepSpeedCPUAdam"),
    "DeepSpeed FusedAdam": ("cuda", "deepspeed.ops.adam", "FusedAdam"),
    "apex FusedAdam": ("cuda", "apex.optimizers", "FusedAdam"),
    "bitsandbytes AdamW": ("cuda", "bitsandbytes.optim", "AdamW"),
}
"""Of other libraries, all decoupled unless told otherwise: device, module, class."""


@functools.cache
def peers(device: str) -> dict[str, Make | str]:
    """Those that import, build and step here; of each other one, why not."""
    found: dict[str, Make | str] = {}
    for name, (runs_on, module, kind) in PEERS.items():
        if runs_on != device:
            found[name] = f"for {runs_on}"
            continue
        try:
            make: Make = getattr(importlib.import_module(module), kind)
            param = torch.zeros(64, device=device, requires_grad=True)
            param.grad = torch.ones_like(param)
            make([param]).step()
            found[name] = make
        except Exception as error:  # whatever a library does when it does not fit this machine: said, not hidden
            found[name] = f"{type(error).__name__}: {str(error).partition(chr(10))[0][:100]}"
    return found


def clip_race(set_name: str, device: str) -> Race:
    """The step with a global-norm clip."""
    params = make_params(set_name, torch.float32, device)
    ours, theirs = FusedAdamW(params), torch.optim.AdamW(params, fused=True)

    def clip_and_step() -> None:
        torch.nn.utils.clip_grad_norm_(params, 1.0)
        theirs.step()

    return {OURS: lambda: ours.step(max_norm=1.0), "torch clip_grad_norm_ + fused": clip_and_step}


def bf16_race(set_name: str, device: str) -> Race:
    """bf16 parameters and gradients with their true fp32 value kept: split16 against cast, step, cast back; with
    DeepSpeed's FusedAdam, the scheme of its bf16 optimizer."""
    params = make_params(set_name, torch.bfloat16, device)
    ours = FusedAdamW(params, master="split16")
    masters = [param.detach().float().requires_grad_() for param in params]
    for master in masters:
        master.grad = torch.zeros_like(master)
    wide_grads = [master.grad for master in masters if master.grad is not None]

    def scheme(step: Callable[[], Any]) -> Callable[[], Any]:
        @torch.no_grad()
        def cast_step_cast() -> None:
            torch._foreach_copy_(wide_grads, [param.grad for param in params if param.grad is not None])
            step()
            torch._foreach_copy_(params, masters)

        return cast_step_cast

    race: Race = {OURS: ours.step, "cast + torch fused + cast": scheme(torch.optim.AdamW(masters, fused=True).step)}
    name = "DeepSpeed FusedAdam"
    peer = peers(device).get(name)
    if peer is not None and not isinstance(peer, str):
        race[f"cast + {name} + cast"] = scheme(peer(masters).step)
    return race


RACES: dict[str, Callable[[str, str], Race]] = {
    "step": step_race,
    "clip": clip_race,
    "bf16": bf16_race,
    "compiled": compiled_race,
}
QUICK = ("step", "clip", "bf16")
"""The races that compile nothing."""


def run(sets: str = "abc", races: Sequence[str] = QUICK, repeats: int = 15, device: str = "cpu") -> list[Result]:
    """All ``races`` on all ``sets``; a race's contenders take ``repeats`` turns each, after two that warm up.

    The one that takes more than `SLOW` times our time takes `SLOW_TURNS` only.
    """
    results = []
    for race in races:
        for set_name in sets:
            times = _times(RACES[race](set_name, device), repeats, device)
            for contender, seconds in times.items():
                ratios = [own / other for own, other in zip(seconds, times[OURS], strict=False)]
                spread = (min(ratios), statistics.median(ratios), max(ratios))
                results.append(Result(race, set_name, contender, 1e3 * statistics.median(seconds), *spread))
    return results


SLOW, SLOW_TURNS = 3.0, 5
QUEUED_S = 0.05
"""Seconds of work that a turn queues on a GPU, one step after the other as a training loop does; so a step costs the
device's time or the host's, whichever is longer, and the wait at the turn's end next to nothing."""


def _times(race: Race, repeats: int, device: str) -> dict[str, list[float]]:
    """Seconds a step of each contender's turns."""

    def synchronize() -> None:
        if device == "cuda":
            torch.cuda.synchronize()

    times: dict[str, list[float]] = {name: [] for name in race}
    steps = dict.fromkeys(race, 1)
    for turn in range(repeats + 2):
        for name, take in race.items():
            if len(times[name]) >= SLOW_TURNS and statistics.median(times[name]) > SLOW * min(times[OURS]):
                continue
            synchronize()
            started = time.perf_counter()
            for _ in range(steps[name]):
                take()
            synchronize()
            seconds = (time.perf_counter() - started) / steps[name]
            if turn > 1:
                times[name].append(seconds)
            elif turn == 1 and device == "cuda":
                steps[name] = max(1, int(QUEUED_S / seconds))
    return times
