"""Run by test_backends.py on two ranks: engines of every sharding in one process group, checked from inside."""

from __future__ import annotations

from launcher.ending import Ending

ending = Ending()  # before what registers with atexit is imported

import json
import sys
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import nn

from launcher import backends, distributed, optim
from launcher.backends import Parts
from launcher.backends.engine import state_tensors
from launcher.plan import BatchPlan, GroupPlan, StagePlan
from launcher.recipe import Stage


class Net(nn.Module):
    """Odd sizes, so that shards need padding; ``unused`` trains and never gets a gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.frozen = nn.Linear(3, 7)
        self.body = nn.Linear(7, 5)
        self.head = nn.Linear(5, 3, bias=False)
        self.unused = nn.Linear(3, 3, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(torch.tanh(self.body(torch.tanh(self.frozen(x)))))
        return logits


def start_state() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(p.shape, generator=generator) for name, p in Net().named_parameters()}


LAYOUTS: dict[str, dict[str, str]] = {
    "fp32": {},
    "bf16": {},
    "split16": {"master": "split16"},
    "moments": {"state_dtype": "bf16"},
}
"""What is said of the optimizer, beside the precision of the same name; the last two are of bf16."""
SHARDED = ("zero3", "zero1", "zero2")
RUNS = [
    *((layout, strategy) for layout in ("fp32", "bf16") for strategy in ("ddp", *SHARDED)),
    ("split16", "ddp"), ("moments", "zero2"), ("moments", "zero3"),
]  # fmt: skip


def stage_plan(
    strategy: str, layout: str, trained: list[str], accumulation: int, ranks: int, implementation: str = "torch"
) -> StagePlan:
    settings = Stage.model_validate_json(
        json.dumps(
            {
                "name": strategy,
                "train": trained,
                "steps": 9,
                "precision": "fp32" if layout == "fp32" else "bf16",
                "clip_grad_norm": 0.5,
                "sharding": {"strategy": strategy},
                "optimizer": {"kind": "adamw", "implementation": implementation, **LAYOUTS[layout]},
            }
        )
    )
    numel = {name: value.numel() for name, value in start_state().items()}
    groups = [
        GroupPlan(pattern=n, learning_rate=1e-2, weight_decay=0.1, parameters=numel[n], names=[n]) for n in trained
    ]
    trainable = sum(numel[n] for n in trained)
    return StagePlan(
        index=0, name=strategy, settings=settings, groups=groups, trainable=trainable,
        frozen=sum(numel.values()) - trainable,
        batch=BatchPlan(global_size=4 * accumulation, micro_size=2, accumulation=accumulation, ranks=ranks),
        steps=9, steps_per_epoch=9, evaluate_every_steps=None, evaluate_at_end=False, checkpoint_every_steps=9,
    )  # fmt: skip


def parts(
    runtime: distributed.Runtime, stage: StagePlan, state: dict[str, torch.Tensor], carried: dict[str, int]
) -> Parts:
    def load_module(context: AbstractContextManager[Any] | None) -> nn.Module:
        import deepspeed

        with context or nullcontext():
            module = Net()
        for name, parameter in module.named_parameters():
            gathered = deepspeed.zero.GatheredParameters([parameter], modifier_rank=0) if context else nullcontext()
            with gathered, torch.no_grad():
                if not context or runtime.is_first:
                    parameter.copy_(state[name])
            parameter.requires_grad_(name in stage.trained_names)
        return module

    return Parts(
        stage,
        runtime,
        load_module,
        lambda m: optim.build(stage, m, carried),
        optim.clipped_step,
        lambda name: state[name],
    )


def train(runtime: distributed.Runtime, engine: backends.Engine, steps: range, accumulation: int) -> list[float]:
    norms = []
    for step in steps:
        data = torch.randn(runtime.ranks, accumulation, 2, 3, generator=torch.Generator().manual_seed(step))
        optim.set_learning_rates(engine.optimizer, 1.0 / (1 + step))
        for micro in range(accumulation):
            x = data[runtime.rank, micro]
            with engine.accumulate(last=micro == accumulation - 1):
                loss = engine.forward({"x": x}).float().pow(2).sum()
                engine.backward(loss * (runtime.ranks / (4 * accumulation)))
        norms.append(engine.step().grad_norm)
    return norms


def main() -> None:
    runtime = distributed.start()
    folder = Path(sys.argv[1])
    state = start_state()
    report: dict[str, Any] = {}
    trained = ["body.weight", "body.bias", "head.weight", "unused.weight"]
    for layout, strategy in RUNS:
        stage = stage_plan(strategy, layout, trained, 2, runtime.ranks)
        compiled = stage_plan(strategy, layout, trained, 2, runtime.ranks, "fused")
        engine = backends.build(parts(runtime, stage, state, {}))
        begins = {name: value.clone().tolist() for name, value in engine.parameters()}
        norms = train(runtime, engine, range(3), 2)
        engine.save(folder / f"{layout}-{strategy}")
        runtime.barrier()
        train(runtime, engine, range(3, 5), 2)
        ends = {name: value.clone().float().tolist() for name, value in engine.parameters()}
        moments = [
            (name, seen, {key: value.tolist() for key, value in tensors.items()})
            for name, seen, tensors in engine.optimizer_state(("exp_avg", "exp_avg_sq"))
        ]
        train(runtime, engine, range(5, 7), 2)
        straight = {name: value.clone().float().tolist() for name, value in engine.parameters()}
        description = engine.describe()
        shards = [getattr(parameter, "ds_tensor", parameter) for parameter in engine.module.parameters()]
        storages = [tensor.untyped_storage() for tensor in [*shards, *state_tensors(engine.optimizer)]]
        engine.close()
        left = sum(storage.nbytes() for storage in storages)

        # From the same checkpoint, once with the step in torch and once with the one in C++.
        again = backends.build(parts(runtime, compiled, state, {}))
        again.load(folder / f"{layout}-{strategy}")
        train(runtime, again, range(3, 5), 2)
        resumed = {name: value.clone().float().tolist() for name, value in again.parameters()}
        again.close()

        # Carry: a new engine that starts from the weights and moments after step 5 must do what the old one would.
        carried = {name: seen for name, seen, tensors in moments if tensors}
        ended = {name: torch.tensor(value) for name, value in ends.items()}
        heir = backends.build(parts(runtime, compiled, ended, carried))
        for name, seen, tensors in moments:
            if tensors:
                heir.set_optimizer_state(name, seen, {key: torch.tensor(value) for key, value in tensors.items()})
        train(runtime, heir, range(5, 7), 2)
        continued = {name: value.clone().float().tolist() for name, value in heir.parameters()}
        seen_after = {name: seen for name, seen, tensors in heir.optimizer_state(("exp_avg",))}
        heir.close()
        report[f"{layout}-{strategy}"] = {
            "engine": description, "norms": norms, "begins": begins, "ends": ends, "resumed": resumed,
            "moments": moments, "continued": continued, "straight": straight, "seen_after": seen_after,
            "left": left,
        }  # fmt: skip
    if runtime.is_first:
        (folder / "report.json").write_text(json.dumps(report))
    runtime.barrier()
    runtime.close()


if __name__ == "__main__":
    main()
    ending.is_done = True
