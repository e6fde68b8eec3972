"""Activations counted on fake tensors against the bytes that autograd saves in a real pass."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
import torchvision
import transformers
from accelerate import init_empty_weights
from torch import nn

from launcher.costs.peak import NotCounted
from launcher.models import activations, adapters, recompute
from launcher.models.alike_blocks import SavedTensors
from launcher.recipe import Lora

TINY = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 64}
WORDS = {"vocab_size": 200, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0, "use_cache": False}


def bert() -> nn.Module:
    return transformers.AutoModelForSequenceClassification.from_config(transformers.BertConfig(**TINY, **WORDS))


def bert_without_dropout() -> nn.Module:
    config = transformers.BertConfig(**TINY, **WORDS, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    return transformers.AutoModelForSequenceClassification.from_config(config)


def gpt2() -> nn.Module:
    return transformers.AutoModelForCausalLM.from_config(
        transformers.GPT2Config(n_embd=32, n_layer=4, n_head=4, **WORDS)
    )


def llama() -> nn.Module:
    return transformers.AutoModelForCausalLM.from_config(
        transformers.LlamaConfig(**TINY, num_key_value_heads=2, **WORDS)
    )


def vit() -> nn.Module:
    return transformers.AutoModelForImageClassification.from_config(
        transformers.ViTConfig(**TINY, image_size=32, patch_size=8)
    )


def with_adapters(build: Callable[[], nn.Module], dropout: float) -> Callable[[], nn.Module]:
    """The base frozen, as a stage that trains head and adapters has it."""

    def built() -> nn.Module:
        module = build()
        adapters.inject(module, Lora(rank=4, dropout=dropout), ["query", "value", "q_proj", "v_proj"])
        for name, parameter in module.named_parameters():
            parameter.requires_grad_("lora" in name or name.startswith(("classifier", "lm_head")))
        return module

    return built


TEXT = {"bert": bert, "bert without dropout": bert_without_dropout, "gpt2": gpt2, "llama": llama}
ADAPTED = {"bert with adapters": with_adapters(bert, 0.1), "llama with adapters": with_adapters(llama, 0.0)}
IMAGES: dict[str, tuple[str, Callable[[], nn.Module]]] = {
    "vit": ("pixel_values", vit),
    "resnet18": ("x", lambda: torchvision.models.resnet18(num_classes=3)),
}


def on_meta(build: Callable[[], nn.Module]) -> nn.Module:
    with init_empty_weights(include_buffers=False):
        return build().train()


def texts(batch_size: int, length: int) -> dict[str, torch.Tensor]:
    """A batch with padding, as a tokenizer gives it."""
    mask = torch.ones(batch_size, length, dtype=torch.int64)
    mask[0, -2:] = 0
    return {"input_ids": torch.ones(batch_size, length, dtype=torch.int64), "attention_mask": mask}


def really_saved(
    module: nn.Module, inputs: dict[str, torch.Tensor], *, low: bool = False, checkpoints: bool = False
) -> int:
    if checkpoints:
        recompute.enable(module)
    saved = SavedTensors(module)
    with saved, torch.autocast("cpu", torch.bfloat16, enabled=low):
        outputs = module(**inputs)
    assert getattr(outputs, "logits", outputs).requires_grad
    return saved.num_bytes


def assert_counted(build: Callable[[], nn.Module], batch_size: int, length: int) -> None:
    """With gradient checkpointing the mask is kept too, once, where hooks do not see it: tiny models show it most."""
    module = on_meta(build)
    for checkpoints in (False, True):
        counted = activations.count(
            module, lambda: activations.text_inputs(batch_size, length), "cpu", "fp32", is_cast=False,
            checkpoints=checkpoints,
        )  # fmt: skip
        measured = really_saved(build().train(), texts(batch_size, length), checkpoints=checkpoints)
        assert counted.saved == pytest.approx(measured, rel=0.1 if checkpoints else 0.01)
        assert (counted.recomputed > 0) == checkpoints


@pytest.mark.parametrize(("batch_size", "length"), [(1, 9), (2, 16), (3, 40)])
@pytest.mark.parametrize("name", TEXT)
def test_texts(name: str, batch_size: int, length: int) -> None:
    assert_counted(TEXT[name], batch_size, length)


@pytest.mark.parametrize("name", ADAPTED)
def test_adapters_keep_their_inputs(name: str) -> None:
    assert_counted(ADAPTED[name], 3, 40)


@pytest.mark.parametrize(("batch_size", "side"), [(2, 32), (3, 32), (5, 32)])
@pytest.mark.parametrize("name", IMAGES)
def test_images(name: str, batch_size: int, side: int) -> None:
    argument, build = IMAGES[name]

    def inputs() -> dict[str, torch.Tensor]:
        return {argument: torch.zeros(batch_size, 3, side, side)}

    module = on_meta(build)
    for checkpoints in (False, True):
        counted = activations.count(module, inputs, "cpu", "fp32", is_cast=False, checkpoints=checkpoints)
        measured = really_saved(build().train(), inputs(), checkpoints=checkpoints)
        assert counted.saved == pytest.approx(measured, rel=0.01)


@pytest.mark.parametrize("is_cast", [True, False], ids=["bf16 module", "autocast"])
@pytest.mark.parametrize("name", ["bert", "llama", "llama with adapters"])
def test_low_precision(name: str, is_cast: bool) -> None:
    """Autocast saves its 16-bit copies of the weights too; a module that is in 16 bits itself has none."""
    build = (TEXT | ADAPTED)[name]
    counted = activations.count(on_meta(build), lambda: activations.text_inputs(2, 16), "cpu", "bf16", is_cast=is_cast)
    module = build().train()
    if is_cast:
        module = module.bfloat16()
    assert counted.saved == pytest.approx(really_saved(module, texts(2, 16), low=not is_cast), rel=0.01)


def test_what_is_frozen_saves_less() -> None:
    module, real = on_meta(bert), bert().train()
    for each in (module, real):
        for name, parameter in each.named_parameters():
            parameter.requires_grad_(name.startswith(("classifier", "bert.pooler", "bert.encoder.layer.1.")))
    counted = activations.count(module, lambda: activations.text_inputs(2, 16), "cpu", "fp32", is_cast=False)
    measured = really_saved(real, texts(2, 16))
    assert counted.saved == pytest.approx(measured, rel=0.01)
    assert counted.saved < 0.7 * really_saved(bert().train(), texts(2, 16))


def test_a_gpu_never_stores_the_scores_of_attention() -> None:
    """Twice the length is twice the activations; with the scores of BERT's dropped attention on the CPU it is more."""

    def ratio(device: Any) -> float:
        short, long = (
            activations.count(
                on_meta(gpt2), lambda length=length: activations.text_inputs(2, length), device, "fp32", is_cast=False
            ).saved
            for length in (256, 512)
        )  # fmt: skip
        return long / short

    assert ratio("cpu") > 3
    assert ratio("cuda") < 2.6  # what grows with the square is the mask


def test_logits_are_told_apart() -> None:
    counted = activations.count(on_meta(llama), lambda: activations.text_inputs(2, 16), "cpu", "bf16", is_cast=True)
    assert counted.logits == 2 * 16 * 200
    assert counted.logits_forward == (2 + 4 + 4) * counted.logits, "the loss and its softmax are in fp32"


def test_a_model_that_looks_at_values_is_not_counted() -> None:
    class Curious(nn.Linear):
        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            return super().forward(input_ids.float()) * float(self.weight.detach().numpy().sum())

    with pytest.raises(NotCounted, match="Curious has no forward without values"):
        activations.count(Curious(8, 2), lambda: activations.text_inputs(1, 8), "cpu", "fp32", is_cast=False)


def test_blocks_that_are_alike_stand_in_for_one_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """Twelve layers of two kinds, as Gemma 2 has, take as much as if each were counted; and only two of each run."""
    config = transformers.Gemma2Config(
        **TINY | {"num_hidden_layers": 12}, **WORDS, num_key_value_heads=2, head_dim=8, sliding_window=8
    )

    def build() -> nn.Module:
        return transformers.AutoModelForCausalLM.from_config(config)

    def counted() -> Any:
        return activations.count(on_meta(build), lambda: inputs, "cpu", "fp32", is_cast=False)

    inputs = texts(2, 16) | {"attention_mask": {kind: None for kind in ("full_attention", "sliding_attention")}}
    runs = []
    forward = transformers.models.gemma2.modeling_gemma2.Gemma2MLP.forward
    monkeypatch.setattr(
        transformers.models.gemma2.modeling_gemma2.Gemma2MLP, "forward",
        lambda self, x: runs.append(1) or forward(self, x),
    )  # fmt: skip
    quick = counted()
    assert len(runs) == 4
    monkeypatch.setattr(activations, "standing_in", lambda module, saved, done: nullcontext())
    assert counted() == quick
    assert len(runs) == 4 + 12
