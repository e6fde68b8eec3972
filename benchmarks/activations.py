"""Predicted and measured bytes that one forward pass saves for the backward: prints the table of docs/memory.md.

    python -m benchmarks.activations

Each model has its real sizes and random weights; all of it trains, in fp32 on the CPU. Predicted is what the plan
counts on fake tensors, measured what autograd's saved-tensor hooks see in a real pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import torchvision
import transformers
from accelerate import init_empty_weights
from torch import nn

from benchmarks.memory import SMOLLM2
from launcher.models import activations, recompute
from launcher.models.alike_blocks import SavedTensors
from launcher.plan import assumed

MINILM = {"model_type": "bert", "hidden_size": 384, "intermediate_size": 1536, "num_hidden_layers": 6}
QWEN = {
    "model_type": "qwen2", "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24,
    "num_attention_heads": 14, "num_key_value_heads": 2, "vocab_size": 151936, "tie_word_embeddings": True,
}  # fmt: skip
VIT_SMALL = {
    "model_type": "vit", "hidden_size": 384, "intermediate_size": 1536, "num_hidden_layers": 12,
    "num_attention_heads": 6,
}  # fmt: skip
TEXTS = [(1, 32), (2, 128), (4, 64)]
SIDES = [(2, 224), (4, 224), (8, 224)]


def of_config(sizes: dict[str, Any], kind: Any) -> Callable[[], nn.Module]:
    """Builds the transformers model of a configuration."""
    found = dict(sizes)
    config = transformers.AutoConfig.for_model(found.pop("model_type"), **found)
    config.use_cache = False
    return lambda: kind.from_config(config)


CLASSIFIER = transformers.AutoModelForSequenceClassification
CAUSAL = transformers.AutoModelForCausalLM
IMAGES = transformers.AutoModelForImageClassification
MODELS: dict[str, tuple[str, Callable[[], nn.Module], list[tuple[int, int]]]] = {
    "MiniLM-L6 (BERT)": ("text", of_config(MINILM, CLASSIFIER), TEXTS),
    "GPT-2": ("text", of_config(assumed.CONFIGURATIONS["openai-community/gpt2"], CAUSAL), TEXTS),
    "SmolLM2-135M (Llama)": ("text", of_config(SMOLLM2, CAUSAL), TEXTS),
    "Qwen2.5-0.5B": ("text", of_config(QWEN, CAUSAL), TEXTS),
    "ViT-S/16": ("pixel_values", of_config(VIT_SMALL, IMAGES), SIDES),
    "ResNet-18": ("x", lambda: torchvision.models.resnet18(num_classes=10), SIDES),
    "ResNet-50": ("x", lambda: torchvision.models.resnet50(num_classes=10), SIDES),
}


def inputs_of(argument: str, shape: tuple[int, int], *, is_real: bool) -> dict[str, torch.Tensor]:
    """Texts as a tokenizer gives them, or, to be counted, as `activations` does; or images."""
    size, length = shape
    if argument != "text":
        return {argument: torch.zeros(size, 3, length, length)}
    if not is_real:
        return activations.text_inputs(size, length)
    mask = torch.ones(size, length, dtype=torch.int64)
    mask[0, -2:] = 0
    return {"input_ids": torch.ones(size, length, dtype=torch.int64), "attention_mask": mask}


def rows() -> Iterator[tuple[str, str, bool, int, int]]:
    """(model, micro-batch, with checkpointing, predicted bytes, measured bytes)."""
    for name, (argument, build, shapes) in MODELS.items():
        with init_empty_weights(include_buffers=False):
            outline = build().train()
        real: Any = build().train()
        if hasattr(real, "config"):
            real.config.pad_token_id = 0
        for checkpoints in (False, True):
            if checkpoints:
                recompute.enable(real)
            for shape in shapes:
                given = partial(inputs_of, argument, shape, is_real=False)
                counted = activations.count(outline, given, "cpu", "fp32", is_cast=False, checkpoints=checkpoints)
                saved = SavedTensors(real)
                with saved:
                    real(**inputs_of(argument, shape, is_real=True))
                yield name, f"{shape[0]} x {shape[1]}", checkpoints, counted.saved, saved.num_bytes


def main() -> None:
    print("| model | micro-batch | checkpointing | predicted, MiB | measured, MiB | error |")
    print("|---|---|---|---|---|---|")
    for name, shape, checkpoints, predicted, measured in rows():
        cells = (f"{predicted / 2**20:.2f}", f"{measured / 2**20:.2f}", f"{predicted / measured - 1:+.2%}")
        print(f"| {name} | {shape} | {'yes' if checkpoints else 'no'} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
