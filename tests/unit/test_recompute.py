"""Gradient checkpointing changes what is kept and nothing of what is computed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torchvision
import transformers
from torch import nn

from launcher.errors import UserError
from launcher.models import recompute
from launcher.models.alike_blocks import SavedTensors

TINY = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 64}
WORDS = {"vocab_size": 50, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0, "use_cache": False}
IDS = {"input_ids": torch.arange(24).view(2, 12), "attention_mask": torch.ones(2, 12, dtype=torch.int64)}


def bert() -> nn.Module:
    return transformers.BertForSequenceClassification(transformers.BertConfig(**TINY, **WORDS))


def gpt2() -> nn.Module:
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(n_embd=32, n_layer=4, n_head=4, **WORDS))


def llama() -> nn.Module:
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**TINY, num_key_value_heads=2, **WORDS))


def resnet() -> nn.Module:
    return torchvision.models.resnet18(num_classes=3)


def vit() -> nn.Module:
    return torchvision.models.VisionTransformer(16, 8, 4, 4, 32, 64, dropout=0.1, num_classes=3)


Build = Callable[[], nn.Module]
MODELS: dict[str, tuple[Build, dict[str, torch.Tensor]]] = {
    "bert": (bert, IDS),
    "gpt2": (gpt2, IDS),
    "llama": (llama, IDS),
    "resnet": (resnet, {"x": torch.linspace(-1, 1, 2 * 3 * 32 * 32).view(2, 3, 32, 32)}),
    "vit": (vit, {"x": torch.linspace(-1, 1, 2 * 3 * 16 * 16).view(2, 3, 16, 16)}),
}


def passed(build: Build, inputs: dict[str, torch.Tensor], *, again: bool, frozen: str | None) -> dict[str, Any]:
    """Everything that two passes leave: losses, gradients, buffers, and the bytes that the second one kept."""
    torch.manual_seed(0)
    module = build().train()
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(frozen is None or frozen not in name)
    for child in module.modules():
        parameters = list(child.parameters())
        child.training = not parameters or any(parameter.requires_grad for parameter in parameters)
    if again:
        recompute.enable(module)
    losses = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        saved = SavedTensors(module)
        with saved:
            outputs = module(**inputs)
        loss = getattr(outputs, "logits", outputs).float().pow(2).mean()
        loss.backward()
        losses.append(loss.detach())
        losses.append(torch.rand(1))  # the generator stands where it stood
    gradients = {name: parameter.grad for name, parameter in module.named_parameters() if parameter.requires_grad}
    return {"losses": losses, "gradients": gradients, "buffers": dict(module.named_buffers()), "saved": saved.num_bytes}


@pytest.mark.parametrize("frozen", [None, "1."], ids=["all train", "a block is frozen"])
@pytest.mark.parametrize("name", MODELS)
def test_the_same_bits_and_fewer_bytes(name: str, frozen: str | None) -> None:
    build, inputs = MODELS[name]
    plain, again = (passed(build, inputs, again=each, frozen=frozen) for each in (False, True))
    for first, second in zip(plain["losses"], again["losses"], strict=True):
        assert torch.equal(first, second)
    for kind in ("gradients", "buffers"):
        assert plain[kind].keys() == again[kind].keys()
        for key, tensor in plain[kind].items():
            assert tensor is None or torch.equal(tensor, again[kind][key]), key
    assert again["saved"] < 0.75 * plain["saved"]


@pytest.mark.parametrize("name", MODELS)
def test_an_evaluation_computes_once(name: str) -> None:
    build, inputs = MODELS[name]
    module = build().eval()
    runs = []
    recompute.enable(module, lambda forward, *given: runs.append(1) or forward(*given))
    with torch.no_grad():
        module(**inputs)
    assert not runs
    module.train()(**inputs)
    assert len(runs) == {"resnet": 8}.get(name, 4), "each block once"
    recompute.disable(module)
    module(**inputs)
    assert len(runs) == {"resnet": 8}.get(name, 4)


def test_a_model_without_blocks_is_refused() -> None:
    with pytest.raises(UserError, match="VGG has no list of equal blocks to compute again"):
        recompute.enable(torchvision.models.vgg11(weights=None, init_weights=False))
