"""Where there can be no folder of adapters, and why."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from launcher import adapter_folder
from launcher.plan import RunPlan

ADAPTERS = {"encoder.0.lora_A.weight", "encoder.0.lora_B.weight"}


@pytest.mark.parametrize(
    ("weights", "trained", "shares_head", "why"),
    [
        ("pretrained", ADAPTERS, False, None),
        ("random", ADAPTERS, False, "the base has random weights, which are nowhere else"),
        ("pretrained", {*ADAPTERS, "encoder.1.weight"}, False, "trained 1 tensors of the base too, encoder.1.weight"),
        ("pretrained", ADAPTERS, True, "the output layer, which is the base's input embeddings too"),
    ],
)
def test_there_is_none_for_a_base_that_nobody_could_load(
    weights: str, trained: set[str], shares_head: bool, why: str | None, make_plan: Callable[..., RunPlan]
) -> None:
    plan = make_plan(model={"source": "somewhere/tiny", "weights": weights})
    found = adapter_folder._no_base(plan, trained, shares_head)
    assert (found is None) == (why is None)
    assert why is None or (found is not None and why in found)
