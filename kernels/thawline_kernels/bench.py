"""``python -m thawline_kernels.bench``: the step against its peers and against the memory, in one run.

Owns the sets of tensors, the races and their ratios. Contenders of a race take turns, so that a slow minute of the
machine meets all of them; what is reported is the ratio of paired times, which a drifting bandwidth leaves alone. The
floor reads the four streams of the step and writes three, with next to no arithmetic. `thawline bench adamw` calls
`run`.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from thawline_kernels import FusedAdamW

OURS = "FusedAdamW"
BYTES_PER_PARAMETER = {"step": 28, "clip": 32, "bf16": 26}
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
    return race | {name: make(params).step for name, make in peers(device)}


def _copy_floor(numel: int, device: str) -> Callable[[], Any]:
    """A copy that moves the bytes of the step: 28 a parameter, half of them read."""
    source = torch.empty(numel * 14, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return lambda: target.copy_(source)


def peers(device: str) -> Iterator[tuple[str, Callable[[list[Tensor]], torch.optim.Optimizer]]]:
    """The optimizers of other libraries that import here."""
    if importlib.util.find_spec("deepspeed"):
        adam = importlib.import_module("deepspeed.ops.adam")
        kind = adam.DeepSpeedCPUAdam if device == "cpu" else adam.FusedAdam  # both decay as AdamW unless told otherwise
        yield f"DeepSpeed {kind.__name__}", kind
    if device != "cpu" and importlib.util.find_spec("apex"):
        yield "apex FusedAdam", importlib.import_module("apex.optimizers").FusedAdam
    if device != "cpu" and importlib.util.find_spec("bitsandbytes"):
        yield "bitsandbytes AdamW", importlib.import_module("bitsandbytes.optim").AdamW


def clip_race(set_name: str, device: str) -> Race:
    """The step with a global-norm clip."""
    params = make_params(set_name, torch.float32, device)
    ours, theirs = FusedAdamW(params), torch.optim.AdamW(params, fused=True)

    def clip_and_step() -> None:
        torch.nn.utils.clip_grad_norm_(params, 1.0)
        theirs.step()

    return {OURS: lambda: ours.step(max_norm=1.0), "torch clip_grad_norm_ + fused": clip_and_step}


def bf16_race(set_name: str, device: str) -> Race:
    """bf16 parameters and gradients with their true fp32 value kept: split16 against cast, step, cast back."""
    params = make_params(set_name, torch.bfloat16, device)
    ours = FusedAdamW(params, master="split16")
    masters = [param.detach().float().requires_grad_() for param in params]
    theirs = torch.optim.AdamW(masters, fused=True)
    for master in masters:
        master.grad = torch.zeros_like(master)
    wide_grads = [master.grad for master in masters if master.grad is not None]

    @torch.no_grad()
    def cast_step_cast() -> None:
        torch._foreach_copy_(wide_grads, [param.grad for param in params if param.grad is not None])
        theirs.step()
        torch._foreach_copy_(params, masters)

    return {OURS: ours.step, "cast + torch fused + cast": cast_step_cast}


RACES: dict[str, Callable[[str, str], Race]] = {"step": step_race, "clip": clip_race, "bf16": bf16_race}


def run(
    sets: str = "abc", races: tuple[str, ...] = tuple(RACES), repeats: int = 15, device: str = "cpu"
) -> list[Result]:
    """All ``races`` on all ``sets``; a race's contenders take ``repeats`` turns each, after one that warms up."""
    results = []
    for race in races:
        for set_name in sets:
            times = _times(RACES[race](set_name, device), repeats, device)
            for contender, seconds in times.items():
                ratios = [own / other for own, other in zip(seconds, times[OURS], strict=True)]
                spread = (min(ratios), statistics.median(ratios), max(ratios))
                results.append(Result(race, set_name, contender, 1e3 * statistics.median(seconds), *spread))
    return results


def _times(race: Race, repeats: int, device: str) -> dict[str, list[float]]:
    """Seconds of each contender's turns."""

    def synchronize() -> None:
        if device == "cuda":
            torch.cuda.synchronize()

    times: dict[str, list[float]] = {name: [] for name in race}
    for turn in range(repeats + 1):
        for name, take in race.items():
            synchronize()
            started = time.perf_counter()
            take()
            synchronize()
            if turn:
                times[name].append(time.perf_counter() - started)
    return times


def table(results: list[Result]) -> str:
    """The results as lines of text."""
    lines = [f"{'race':5} {'set':3} {'contender':32} {'ms':>9} {'GB/s':>6}   over ours: min median max"]
    for r in results:
        rate = BYTES_PER_PARAMETER[r.race] * sum(sizes(r.set_name)) / r.milliseconds / 1e6
        ratios = f"{r.ratio_min:6.2f} {r.ratio:6.2f} {r.ratio_max:6.2f}"
        shown = f"{rate:6.1f}" if r.contender == OURS or r.contender.startswith("floor") else " " * 6
        lines.append(f"{r.race:5} {r.set_name:3} {r.contender:32} {r.milliseconds:9.3f} {shown}   {ratios}")
    return "\n".join(lines)


def draw(results: list[Result], path: Path) -> None:
    """One bar a contender: how many times our time it takes; the whisker spans all pairs."""
    panels = sorted({(r.race, r.set_name) for r in results})
    figure = importlib.import_module("matplotlib.figure").Figure(
        figsize=(9, 1 + 0.3 * len(results) + 0.4 * len(panels)), layout="constrained"
    )
    for axes, panel in zip(figure.subplots(len(panels), squeeze=False)[:, 0], panels, strict=True):
        rows = [r for r in results if (r.race, r.set_name) == panel]
        whiskers = [[r.ratio - r.ratio_min for r in rows], [r.ratio_max - r.ratio for r in rows]]
        axes.barh([r.contender for r in rows], [r.ratio for r in rows], xerr=whiskers, color="tab:blue", ecolor="gray")
        axes.axvline(1.0, color="black", linewidth=0.8)
        axes.set(title=f"{panel[0]}, set {panel[1]}: time over ours", xscale="log")
        axes.invert_yaxis()
    figure.savefig(path, dpi=150)


def machine(device: str) -> dict[str, Any]:
    """What a reader needs to judge the figures."""
    model = torch.cuda.get_device_name() if device == "cuda" else platform.processor() or platform.machine()
    versions = {"torch": torch.__version__, "python": platform.python_version()}
    return {"device": model, "threads": torch.get_num_threads(), **versions}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m thawline_kernels.bench", description=__doc__.partition("\n")[0])
    parser.add_argument("--sets", default="abc", help="of a, b, c")
    parser.add_argument("--races", nargs="+", choices=RACES, default=list(RACES))
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--png", type=Path)
    options = parser.parse_args()
    if options.png and importlib.util.find_spec("matplotlib") is None:  # said before the races, which take minutes
        sys.exit(
            f"--png {options.png}: matplotlib is not installed; pip install 'thawline[bench]' "
            "(pip install -e '.[bench]' in a checkout), or leave --png out"
        )
    results = run(options.sets, tuple(options.races), options.repeats, options.device)
    print(table(results))
    if options.json:
        report = {"machine": machine(options.device), "results": [asdict(result) for result in results]}
        options.json.write_text(json.dumps(report, indent=1) + "\n")
    if options.png:
        draw(results, options.png)


if __name__ == "__main__":
    main()
