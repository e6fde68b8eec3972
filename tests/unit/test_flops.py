"""Operations counted on fake tensors, where most blocks stand in, against torch's own counter over real passes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torchvision
import transformers
from accelerate import init_empty_weights
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from launcher.models import activations
from launcher.models.flops import FlopMeter

SIZES = {"hidden_size": 32, "num_hidden_layers": 5, "num_attention_heads": 4, "intermediate_size": 64}


def bert() -> nn.Module:
    return transformers.BertForSequenceClassification(transformers.BertConfig(**SIZES, vocab_size=50))


def llama() -> nn.Module:
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES, num_key_value_heads=2, vocab_size=50))


def resnet18() -> nn.Module:
    return torchvision.models.resnet18(num_classes=3)


def texts() -> dict[str, torch.Tensor]:
    return activations.text_inputs(3, 12)


def images() -> dict[str, torch.Tensor]:
    return {"x": torch.zeros(3, 3, 32, 32)}


@pytest.mark.parametrize("is_frozen", [False, True], ids=["all", "last two"])
@pytest.mark.parametrize(("build", "inputs"), [(bert, texts), (llama, texts), (resnet18, images)])
def test_as_torch_counts_them(
    build: Callable[[], nn.Module], inputs: Callable[[], dict[str, torch.Tensor]], is_frozen: bool
) -> None:
    """Frozen below: no gradients of weights there, and none of what enters them."""

    def freeze(module: nn.Module) -> nn.Module:
        parameters = list(module.parameters())
        for parameter in parameters[: len(parameters) - 2 if is_frozen else 0]:
            parameter.requires_grad_(False)
        return module.train()

    with FlopCounterMode(display=False) as forward, sdpa_kernel(SDPBackend.MATH):
        outputs = freeze(build())(**inputs())
    with FlopCounterMode(display=False) as backward:
        getattr(outputs, "logits", outputs).sum().backward()
    with init_empty_weights(include_buffers=False):
        module = freeze(build())
    with sdpa_kernel(SDPBackend.MATH):
        work = activations.count(module, inputs, "cpu", "fp32", is_cast=False).work
    assert work.forward == forward.get_total_flops()
    assert work.backward == pytest.approx(backward.get_total_flops(), rel=0.02)
    assert work.again == 0


def test_checkpointing_repeats_the_blocks_and_not_the_head() -> None:
    with init_empty_weights(include_buffers=False):
        module, meter = llama().train(), FlopMeter()
    counted = [
        activations.count(module, texts, "cuda", "bf16", is_cast=True, checkpoints=checkpoints, meter=one)
        for checkpoints, one in ((False, None), (False, meter), (False, meter), (True, meter))
    ]
    assert counted[0] == counted[1] == counted[2], "tensors that are taken again change nothing"
    plain, again = counted[0].work, counted[3].work
    assert (again.forward, again.backward) == (plain.forward, plain.backward)
    head = 2 * 3 * 12 * 32 * 50
    assert again.again == again.forward - head


def test_fused_attention_counts_as_its_products() -> None:
    shape = (2, 4, 6, 8)
    meter = FlopMeter()
    with meter:
        query = torch.zeros(shape, requires_grad=True)
    meter.attention(query, query, query)
    assert meter.done["forward"] == 2 * (2 * 2 * 4 * 6 * 6 * 8)
    assert meter.done["backward"] == 2.5 * meter.done["forward"]
    with meter:
        torch.nn.functional.scaled_dot_product_attention(query, query, query)
    assert meter.done["forward"] == 2 * 2 * (2 * 2 * 4 * 6 * 6 * 8), "torch's fused kernel counts the same"
