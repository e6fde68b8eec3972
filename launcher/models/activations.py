"""What a forward pass keeps for the backward: counted exactly, for any model, without weights and without a GPU.

Owns the run of a model on fake tensors, which have shapes and dtypes and no memory, under hooks that see every tensor
autograd saves. So widths, heads, frozen layers, autocast and checkpointing need no table of architectures. Of blocks
that are alike two run, and the others are taken to be as the second (see `alike_blocks`). The result is compared with
real passes in tests/unit/test_activations.py. Called by `survey`; `costs.peak` does arithmetic with it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import nn
from torch.nn import functional
from transformers import masking_utils

from launcher.costs.peak import Activations, NotCounted, Routed
from launcher.costs.step_time import Work
from launcher.models import recompute
from launcher.models.alike_blocks import SavedTensors, standing_in
from launcher.models.flops import AGAIN, BACKWARD, FORWARD, KERNELS, MOVED, FlopMeter, TooMany
from launcher.models.image_spec import ImageSpec
from launcher.models.own_processor import OwnProcessor
from launcher.recipe import ImageClassification, Task

Device = Literal["cpu", "cuda"]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
CAPABILITY = (9, 0)
"""Of the GPU that is planned for, where none is here to ask."""
IMAGE_SIDE = 224
"""Of a model that takes images of any size and says none."""


def count(
    module: nn.Module, inputs: Callable[[], dict[str, torch.Tensor]], device: Device, precision: str, *,
    is_cast: bool, checkpoints: bool = False, meter: FlopMeter | None = None,
) -> Activations:  # fmt: skip
    """Bytes that the forward pass of one micro-batch saves, for a module whose ``requires_grad`` and modes are set.

    The module is left on fake tensors, and may be counted again. Nothing is counted that a parameter or buffer holds
    anyway; what autocast makes of a weight is, since it lives as long.

    Args:
        inputs: makes the keyword arguments of the module on the default device.
        device: whose kernels run. ``cuda`` needs no GPU; its attention is taken to be a fused kernel (see `_Fused`).
        precision: fp32, bf16 or fp16.
        is_cast: the module itself is in ``precision`` (see `plan.StagePlan`), not computing in it under autocast.
        checkpoints: with gradient checkpointing, which the model must have: see `recompute.refusal`.
        meter: the one of an earlier count of the module, whose fake tensors are taken again.

    Raises:
        TooMany: the pass calls more operators than ``meter.room``.
        NotCounted: the model asks for the values of a tensor, or for something that only real tensors have.
    """
    with meter or FlopMeter() as meter:
        meter.start("even")
        found = _pass(module, inputs, device, precision, meter, is_cast=is_cast, checkpoints=checkpoints)
        if not meter.routes:
            return found
        meter.start("worst")
        other = _pass(module, inputs, device, precision, meter, is_cast=is_cast, checkpoints=checkpoints)
    routed = Routed(even=found.saved, worst=other.saved)
    return replace(max(found, other, key=lambda one: one.saved + one.recomputed), routed=routed)


def _pass(
    module: nn.Module, inputs: Callable[[], dict[str, torch.Tensor]], device: Device, precision: str, meter: FlopMeter,
    *, is_cast: bool, checkpoints: bool,
) -> Activations:  # fmt: skip
    """One forward on the meter's fake tensors."""
    dtype = DTYPES[precision]
    low = nullcontext() if is_cast or precision == "fp32" else _autocast(device, dtype)
    with torch.device(device):
        _fake(module, device, dtype if is_cast else torch.float32, meter)
        arguments = inputs()
        if is_cast:
            arguments = {key: _cast(value, dtype) for key, value in arguments.items()}
        saved = SavedTensors(module)
        checkpointed = _checkpointed(module, saved, meter) if checkpoints else nullcontext()
        meter.done.clear()
        pretended = _pretended(device, meter)
        try:
            with checkpointed, pretended, standing_in(module, saved, meter.done), saved, low:
                outputs = module(**arguments)
        except TooMany:
            raise
        except Exception as error:  # whatever a model's own code makes of tensors without values
            what = str(error).strip().splitlines()[:1]
            raise NotCounted(f"{type(module).__name__} has no forward without values: {' '.join(what)}") from error
        logits = getattr(outputs, "logits", outputs)
        buffers = sum(buffer.untyped_storage().nbytes() for buffer in module.buffers())
        return Activations(
            saved=saved.num_bytes, recomputed=saved.recomputed, largest=saved.largest,
            logits=logits.numel() if logits.requires_grad else 0,
            logits_forward=logits.numel() * (8 + (logits.element_size() if is_cast and precision != "fp32" else 0)),
            buffers=buffers, work=_work(meter), assumed=tuple(meter.assumed),
        )  # fmt: skip


def _work(meter: FlopMeter) -> Work:
    """What was computed; a whole pass's, or of a model that does not train the forward's alone."""
    done = meter.done
    return Work(float(done[FORWARD]), float(done[BACKWARD]), float(done[AGAIN]), done[KERNELS], float(done[MOVED]))


def text_inputs(batch_size: int, length: int, config: Any = None) -> dict[str, torch.Tensor]:
    """Token ids and their mask, [B, T], of a batch in which one text is shorter than the others, as batches of real
    texts are; each ends with the end token of the model's configuration, which some models look for."""
    text_config = config.get_text_config() if hasattr(config, "get_text_config") else config
    pad, end = (getattr(text_config, name, None) for name in ("pad_token_id", "eos_token_id"))
    end = end[0] if isinstance(end, list) else end
    ordinary = next(token for token in range(3) if token not in (pad, end))
    tokens = torch.full((batch_size, length), ordinary, dtype=torch.int64)
    mask = torch.ones(batch_size, length, dtype=torch.int64)
    if length > 1:
        mask[0, -1] = 0
        if isinstance(pad, int) and pad >= 0:
            tokens[0, -1] = pad
    if isinstance(end, int) and end >= 0:
        tokens[1:, -1] = end
        tokens[0, -2 if length > 1 else -1] = end
    return {"input_ids": tokens, "attention_mask": mask}


def image_inputs(batch_size: int, spec: ImageSpec | OwnProcessor) -> dict[str, torch.Tensor]:
    """What the task makes of images: [B, 3, height, width] in fp32, or what the model's own processor makes."""
    if isinstance(spec, OwnProcessor):
        return spec.zeros(batch_size)
    size = spec.crop or spec.size or IMAGE_SIDE
    height, width = (size, size) if isinstance(size, int) else size
    return {spec.input_name: torch.zeros(batch_size, 3, height, width)}


def inputs_of(task: Task, processor: Any, batch_size: int, length: int, config: Any = None) -> dict[str, torch.Tensor]:
    """A micro-batch of the task, at its largest: texts of ``length`` tokens, or images of the model's size."""
    if isinstance(task, ImageClassification):
        return image_inputs(batch_size, processor)
    return text_inputs(batch_size, length, config)


def _fake(module: nn.Module, device: Device, dtype: torch.dtype, meter: FlopMeter) -> None:
    """Replace parameters and buffers by fake ones of the same shapes; what was one tensor stays one, and what was fake
    in this dtype before is taken again."""

    def fake(tensor: torch.Tensor) -> torch.Tensor:
        wanted = dtype if tensor.is_floating_point() else tensor.dtype
        alike = meter.fakes.setdefault(tensor, {})  # a tensor's hash is its identity, and its key keeps it alive
        if (wanted, device) not in alike:
            empty = torch.empty(tensor.shape, dtype=wanted, device=device)
            made = nn.Parameter(empty, requires_grad=False) if isinstance(tensor, nn.Parameter) else empty
            if not (isinstance(tensor, nn.Parameter) or tensor.is_floating_point() or tensor.is_complex()):
                meter.know(made, tensor)  # positions, and which of them are near each other
            alike[wanted, device] = made
            meter.fakes[made] = alike
        found = alike[wanted, device]
        if found.requires_grad != tensor.requires_grad:
            found.requires_grad_(tensor.requires_grad)
        return found

    for child in module.modules():
        for tensors in (child._parameters, child._buffers):
            for name, tensor in tensors.items():
                if tensor is not None:
                    tensors[name] = fake(tensor)  # type: ignore[assignment]


def _cast(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return tensor.to(dtype) if tensor.is_floating_point() else tensor


@contextmanager
def _checkpointed(module: nn.Module, saved: SavedTensors, meter: FlopMeter) -> Iterator[None]:
    """Blocks leave in ``saved`` what they were given; what they save themselves comes back in the backward, in turn."""

    def run(forward: Any, *given: Any) -> Any:
        saved.add([*given, *getattr(forward, "keywords", {}).values()])
        saved.inner = inner = SavedTensors(module, saved)
        before = meter.done[FORWARD]
        with inner:
            outputs = forward(*given)
        meter.done[AGAIN] += meter.done[FORWARD] - before
        saved.inner = None
        saved.recomputed, saved.largest = max(saved.recomputed, inner.num_bytes), max(saved.largest, inner.largest)
        return outputs

    recompute.enable(module, run)
    try:
        yield
    finally:
        recompute.disable(module)


@contextmanager
def _autocast(device: Device, dtype: torch.dtype) -> Iterator[None]:
    """``torch.autocast``, which refuses CUDA where there is none."""
    was_enabled, was_dtype = torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)
    torch.set_autocast_enabled(device, True)
    torch.set_autocast_dtype(device, dtype)
    torch.autocast_increment_nesting()
    try:
        yield
    finally:
        if torch.autocast_decrement_nesting() == 0:
            torch.clear_autocast_cache()
        torch.set_autocast_enabled(device, was_enabled)
        torch.set_autocast_dtype(device, was_dtype)


class _Fused(torch.autograd.Function):
    """Attention as CUDA's fused kernels do it, as far as memory goes (Dao et al., 2022): the scores are never stored.

    Saved are query, key, value, output, the mask in the query's dtype and the log-sum-exp of each row in fp32:
    ``_scaled_dot_product_efficient_attention`` and ``_flash_attention_forward`` in ATen's derivatives.yaml.
    """

    @staticmethod
    def forward(
        ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None
    ) -> torch.Tensor:
        batch, heads, length, _ = query.shape
        # laid out as the kernels do, so that what follows needs no copy
        output = query.new_empty(batch, length, heads, value.shape[-1]).transpose(1, 2)
        row_sums = query.new_empty(batch, heads, length, dtype=torch.float32)
        bias = None if mask is None else query.new_empty(mask.shape)
        ctx.save_for_backward(query, key, value, output, row_sums, bias)
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        raise AssertionError("only forward passes are counted")


@contextmanager
def _pretended(device: Device, meter: FlopMeter) -> Iterator[None]:
    """Libraries behave as on real tensors and on the device: transformers makes masks another way while it is traced,
    and asks a GPU what it can do."""
    kept = masking_utils.is_tracing, torch.cuda.get_device_capability
    masking_utils.is_tracing = lambda tensor=None: False
    if not torch.cuda.is_available():
        torch.cuda.get_device_capability = lambda device=None: CAPABILITY
    try:
        with _fused_attention(device, meter):
            yield
    finally:
        masking_utils.is_tracing, torch.cuda.get_device_capability = kept


@contextmanager
def _fused_attention(device: Device, meter: FlopMeter) -> Iterator[None]:
    """On ``cuda`` replace torch's attention, whose choice of a kernel asks the GPU. On the CPU torch chooses itself."""
    if device == "cpu":
        yield
        return
    original = functional.scaled_dot_product_attention

    def fused(
        query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attn_mask: torch.Tensor | None = None,
        dropout_p: float = 0.0, is_causal: bool = False, scale: float | None = None, enable_gqa: bool = False,
    ) -> torch.Tensor:  # fmt: skip
        if torch.is_autocast_enabled(device):
            query, key, value = (each.to(torch.get_autocast_dtype(device)) for each in (query, key, value))
        meter.attention(query, key, value)
        output: torch.Tensor = _Fused.apply(query, key, value, attn_mask)
        return output

    functional.scaled_dot_product_attention = fused
    try:
        yield
    finally:
        functional.scaled_dot_product_attention = original
