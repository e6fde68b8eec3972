"""The optimizer that a stage gets."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from launcher import optim
from launcher.plan import RunPlan
from thawline_kernels import FusedAdamW


@pytest.mark.parametrize(
    ("has_gpu", "offload", "backend"), [(True, "none", "cuda"), (True, "cpu", "cpu"), (False, "none", "cpu")]
)
def test_the_compiled_step_is_that_of_where_the_state_lies(
    make_plan: Callable[..., RunPlan], monkeypatch: pytest.MonkeyPatch, has_gpu: bool, offload: str, backend: str
) -> None:
    """With CPU offload DeepSpeed hands the optimizer partitions in host memory, whatever the module computes on."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_gpu)
    plan = make_plan(
        optimizer={"kind": "adamw", "implementation": "fused"}, sharding={"strategy": "zero2", "offload": offload}
    )
    stage = plan.stages[0]
    module = nn.Module()
    for name in [name for group in stage.groups for name in group.names]:
        child, _, leaf = name.partition(".")
        module.add_module(child, nn.Module())
        module.get_submodule(child).register_parameter(leaf, nn.Parameter(torch.zeros(4, 4)))
    built = optim.build(stage, module, {})
    assert isinstance(built, FusedAdamW)
    assert built._backend == backend
