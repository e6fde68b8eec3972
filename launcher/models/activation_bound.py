"""An upper bound of what a forward pass keeps, for a model whose forward cannot be counted on fake tensors.

Owns the arithmetic over the shapes of a model's parameters alone: nothing runs. The bound is stated, not tight: no
architecture that transformers ships keeps more in ``python -m benchmarks.families``, and most keep a fraction of it.
Called by `survey` where `activations.count` fails, so that ``auto`` and ``thawline plan`` have something to go by.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from launcher.costs.memory import FP32_BYTES
from launcher.costs.peak import Activations
from launcher.costs.step_time import Work

FACTOR = 7
"""Tensors that are kept of each feature that a layer takes or makes for each token: its inputs and outputs, and what
activations, norms, dropout, gates and casts leave."""
STATE_FACTOR = 24
"""The same of a model with states (linear attention, state spaces), each with products of all tokens of a chunk."""
CHUNK = 64
"""Tokens, to a multiple of which such a model pads a text."""
SCORE_BYTES = 32
"""Of an attention score: before and after the softmax and the dropout, its mask, and relative positions."""
WIDE = 64
"""A matrix with fewer rows or columns may be a state that each token has whole, as a state-space model's ``A_log``."""
KERNELS = 30
"""Of a layer with weights, forward and backward."""


def bound(module: Any, inputs: dict[str, torch.Tensor], *, checkpoints: bool = False, reason: str = "") -> Activations:
    """Bytes that no forward pass of one micro-batch exceeds; ``reason`` is why they are not counted.

    Each weight's rows and columns are features of each token, `FACTOR` times in fp32, and each head of each block
    has a score for each pair of tokens. A mixture's experts count as the share that a token is routed to. Images have
    as many tokens as the first convolution makes patches. With checkpointing one block's share is there at a time, and
    each block's input besides.
    """
    config = _text_config(module)
    batch, length = _tokens(module, inputs)
    factor = FACTOR
    if any(isinstance(child, nn.Conv1d) and child.groups > 1 for child in module.modules()):
        factor, length = STATE_FACTOR, -(-length // CHUNK) * CHUNK
    if window := _size(config, "attention_window"):
        length = -(-length // window) * window
    tokens = batch * length
    blocks = max(1, _size(config, "num_hidden_layers", "n_layer", "num_layers"))
    heads = _size(config, "num_attention_heads", "n_head", "num_heads")
    features = widest = products = 0
    for child in _layers(module):
        of_child, of_products = _features(child, config)
        features, products, widest = features + of_child, products + of_products, max(widest, of_child)
    scores = SCORE_BYTES * batch * heads * length**2
    whole = FP32_BYTES * factor * tokens * features + blocks * scores
    logits = _logits(module, batch, tokens)
    saved, recomputed = whole, 0
    if checkpoints:
        recomputed = -(-whole // blocks)
        saved = FP32_BYTES * factor * tokens * widest + blocks * tokens * FP32_BYTES * _width(config, widest)
    forward = 2.0 * tokens * products
    layers = sum(1 for _ in _layers(module))
    return Activations(
        saved=saved, recomputed=recomputed, largest=max(FP32_BYTES * tokens * widest, scores), logits=logits,
        logits_forward=12 * logits, buffers=sum(buffer.nbytes for buffer in module.buffers()),
        work=Work(forward, 2 * forward, forward if checkpoints else 0.0, KERNELS * layers), bound=reason or "a bound",
    )  # fmt: skip


def _layers(module: Any) -> Iterator[nn.Module]:
    """Modules with parameters of their own, but for the output embeddings, which make the logits."""
    output = getattr(module, "get_output_embeddings", lambda: None)()
    for child in module.modules():
        if child is not output and next(child.parameters(recurse=False), None) is not None:
            yield child


def _features(layer: nn.Module, config: Any) -> tuple[int, int]:
    """(features that a layer takes and makes of a token, multiplications of a token)."""
    if isinstance(layer, nn.Embedding):
        return layer.embedding_dim, 0
    experts = _size(config, "num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
    chosen = _size(config, "num_experts_per_tok", "moe_topk", "moe_top_k", "top_k") or experts
    features = products = 0
    for parameter in layer.parameters(recurse=False):
        shape, copies = parameter.shape, 1
        if parameter.dim() == 3 and shape[0] == experts:
            shape, copies = shape[1:], chosen
        is_state = (
            not isinstance(layer, (nn.Linear, nn.modules.conv._ConvNd)) and len(shape) == 2 and min(shape) <= WIDE
        )
        features += copies * (math.prod(shape) if is_state or len(shape) < 2 else shape[0] + shape[1])
        products += copies * math.prod(shape) if len(shape) > 1 else 0
    return features, products


def _tokens(module: Any, inputs: dict[str, torch.Tensor]) -> tuple[int, int]:
    if "input_ids" in inputs:
        return tuple(inputs["input_ids"].shape)  # type: ignore[return-value]
    image = next(iter(inputs.values()))
    first = next((child for child in module.modules() if isinstance(child, nn.Conv2d)), None)
    stride = math.prod(first.stride) if first is not None else 1
    return image.shape[0], -(-math.prod(image.shape[-2:]) // stride)


def _logits(module: Any, batch: int, tokens: int) -> int:
    output = getattr(module, "get_output_embeddings", lambda: None)()
    if output is not None and getattr(output, "weight", None) is not None:
        return int(tokens * output.weight.shape[0])
    return batch * int(getattr(getattr(module, "config", None), "num_labels", 1000))


def _text_config(module: Any) -> Any:
    config: Any = getattr(module, "config", None)
    return config.get_text_config() if hasattr(config, "get_text_config") else config


def _width(config: Any, otherwise: int) -> int:
    return _size(config, "hidden_size", "d_model", "n_embd") or otherwise


def _size(config: Any, *names: str) -> int:
    """The first of these that the configuration has, the largest where it has one for each stage; 0: none."""
    for name in names:
        try:
            found = getattr(config, name, None)
        except RuntimeError:  # it differs by layer, and transformers wants to be asked for each
            layers = config.per_layer_config
            found = [getattr(layers[index], name, 0) for index in range(len(layers))]
        if isinstance(found, (list, tuple)) and found:
            found = max(found)
        if isinstance(found, int) and found > 0:
            return found
    return 0
