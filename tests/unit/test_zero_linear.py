"""Linear layers under ZeRO-3: DeepSpeed's gradients, without inputs that nothing needs; and torch's own afterwards."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from launcher.backends import zero_linear
from launcher.models.alike_blocks import SavedTensors

TORCHS = functional.linear


@pytest.fixture
def _replaced() -> object:
    zero_linear.replace()
    yield
    zero_linear.restore()
    assert functional.linear is TORCHS


@pytest.mark.usefixtures("_replaced")
@pytest.mark.parametrize("trains", [False, True], ids=["frozen", "trained"])
@pytest.mark.parametrize("bias", [False, True], ids=["plain", "bias"])
@pytest.mark.parametrize("shape", [(5, 8), (2, 5, 8)], ids=["rows", "batch"])
def test_gradients_are_torch_s_and_only_a_weight_that_trains_keeps_the_input(
    shape: tuple[int, ...], bias: bool, trains: bool
) -> None:
    layer = nn.Linear(8, 3, bias=bias).requires_grad_(trains)
    given = torch.randn(shape, requires_grad=True)
    wanted = [given, *layer.parameters()] if trains else [given]
    saved = SavedTensors(layer)
    with saved:
        found = layer(given)
    assert saved.num_bytes == (given.numel() * 4 if trains else 0)
    expected = TORCHS(given, layer.weight, layer.bias)
    torch.testing.assert_close(found, expected)
    upstream = torch.randn_like(expected)
    ours, torchs = (torch.autograd.grad(output, wanted, upstream) for output in (found, expected))
    torch.testing.assert_close(ours, torchs)
