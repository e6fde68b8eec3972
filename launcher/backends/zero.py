"""ZeRO 1, 2 and 3 through Accelerate's DeepSpeed plugin, with the recipe's own optimizer as client.

Stage 1 shards the optimizer state over the ranks, stage 2 the gradients too, stage 3 the parameters too (Rajbhandari
et al., 2020). A new engine for each stage lives in the same process group as the last one.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext, redirect_stdout
from pathlib import Path
from typing import Any, cast

import deepspeed
import torch
import torch.distributed as dist
from accelerate import Accelerator, DeepSpeedPlugin, InitProcessGroupKwargs
from deepspeed.utils import (
    safe_get_full_fp32_param,
    safe_get_full_optimizer_state,
    safe_set_full_fp32_param,
    safe_set_local_fp32_param,
    safe_set_local_optimizer_state,
)
from torch import nn
from transformers.integrations.deepspeed import set_hf_deepspeed_config, unset_hf_deepspeed_config

from launcher.backends import zero_linear
from launcher.backends.engine import (
    Engine,
    Parts,
    StepResult,
    cast_inputs,
    forget_accelerate,
    moment_dtype,
    refuse_mixed_norms,
    state_tensors,
    storage_bytes,
)
from launcher.costs import memory
from launcher.models.parameter_names import named_parameters, parameter_of
from launcher.plan import StagePlan

TAG = "engine"
# DeepSpeed prints to stdout, which is the user's; what it says belongs in the rank's log.
deepspeed.utils.logger.handlers.clear()
deepspeed.utils.logger.propagate = True
deepspeed.utils.logger.setLevel(logging.WARNING)


def build(parts: Parts) -> Engine:
    """Build the module, under stage 3 sharded from the start, and its DeepSpeed engine.

    Raises: RuntimeError as `wrapped`.
    """
    built = ZeroEngine(*wrapped(parts, deepspeed_config(parts.stage)), parts)
    if parts.stage.settings.precision != "fp32":
        built.restore_masters(parts)
    return built


def wrapped(parts: Parts, config: dict[str, Any]) -> tuple[Accelerator, deepspeed.DeepSpeedEngine]:
    """The engine of a DeepSpeed configuration, and the accelerator that made it.

    Raises:
        RuntimeError: Accelerate built something else than the ZeRO stage that was asked for.
    """
    forget_accelerate()
    handlers = [InitProcessGroupKwargs(backend="gloo")] if parts.runtime.device.type == "cpu" else []
    with redirect_stdout(sys.stderr):  # it prints what it compiles
        return _wrapped(parts, config, handlers)


def _wrapped(
    parts: Parts, config: dict[str, Any], handlers: list[InitProcessGroupKwargs]
) -> tuple[Accelerator, deepspeed.DeepSpeedEngine]:
    runtime, stage = parts.runtime, parts.stage
    plugin = DeepSpeedPlugin(hf_ds_config=config, zero3_init_flag=False)
    accelerator = Accelerator(deepspeed_plugins=plugin, kwargs_handlers=handlers)
    sharding = deepspeed.zero.Init(config_dict_or_path=config) if stage.zero_stage == 3 else None
    # The plugin has told transformers, which would then shard whatever is built, in its own way, also on the meta
    # device. While training it must know: some models keep their ranks in step under ZeRO-3 only if they do.
    unset_hf_deepspeed_config()
    module = parts.load_module(sharding)
    if stage.zero_stage == 3:
        zero_linear.replace()
    refuse_mixed_norms(module, stage)
    set_hf_deepspeed_config(plugin.dschf)
    engine, _ = accelerator.prepare(module, parts.make_optimizer(module))
    is_zero = isinstance(engine, deepspeed.DeepSpeedEngine)
    if not is_zero or engine.zero_optimization_stage() != stage.zero_stage or engine.world_size != runtime.ranks:
        raise RuntimeError(f"asked for {stage.settings.sharding.strategy} over {runtime.ranks} ranks, got {engine!r}")
    return accelerator, engine


def deepspeed_config(stage: StagePlan, swaps_to: Path | None = None) -> dict[str, Any]:
    """The DeepSpeed configuration of a stage; every value that matters is said, since Accelerate would default it.

    ``swaps_to``: the folder of the node's own disk, under ``offload: nvme``.
    """
    settings, zero = stage.settings, stage.zero_stage
    on_cpu = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    offload = settings.sharding.offload != "none"
    optimization: dict[str, Any] = {"stage": zero, "contiguous_gradients": True, "overlap_comm": zero > 1}
    if offload:
        optimization["offload_optimizer"] = on_cpu
    if swaps_to:
        on_nvme = {"device": "nvme", "nvme_path": str(swaps_to), "buffer_count": memory.SWAP_BUFFERS}
        optimization |= {"offload_optimizer": on_nvme, "sub_group_size": memory.SWAP_SUB_GROUP_ELEMENTS}
    if zero == 3:
        optimization["stage3_gather_16bit_weights_on_model_save"] = True
        if offload:
            optimization["offload_param"] = on_cpu
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": stage.batch.micro_size,
        "gradient_accumulation_steps": stage.batch.accumulation,
        "gradient_clipping": settings.clip_grad_norm or 0.0,
        "zero_optimization": optimization,
        # Our own optimizer is the client; without these two DeepSpeed refuses it or Accelerate replaces it.
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 2**31,
    }
    if settings.precision == "bf16":
        config["bf16"] = {"enabled": True}
        if zero > 1:  # stage 1 with it is another optimizer of DeepSpeed's, which keeps its masters elsewhere
            config["data_types"] = {"grad_accum_dtype": "fp32"}
    if settings.precision == "fp16":
        config["fp16"] = {"enabled": True, "loss_scale": 0, "initial_scale_power": 16}
    return config


class ZeroEngine(Engine):
    """A DeepSpeed engine, spoken to in the loop's words."""

    def __init__(self, accelerator: Accelerator, engine: deepspeed.DeepSpeedEngine, parts: Parts) -> None:
        self.accelerator = accelerator
        self.engine = engine
        self.module = cast(nn.Module, engine.module)
        self.optimizer = engine.optimizer.optimizer
        self.scales_loss = parts.stage.settings.precision == "fp16"
        self.stage = parts.stage
        self.dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[
            parts.stage.settings.precision
        ]

    def restore_masters(self, parts: Parts) -> None:
        """Give the fp32 masters the exact value of the stage's start, which the low-precision module has rounded."""
        for name, parameter in named_parameters(self.module):
            if not parameter.requires_grad:
                continue
            value = parts.start_tensor(name).to(parts.runtime.device)
            if self.stage.zero_stage == 3:
                safe_set_local_fp32_param(parameter, self._shard(parameter, value))
            else:
                safe_set_full_fp32_param(parameter, value)

    def accumulate(self, last: bool) -> AbstractContextManager[None]:
        self.engine.set_gradient_accumulation_boundary(is_boundary=last)
        return nullcontext()

    def forward(self, inputs: dict[str, torch.Tensor]) -> Any:
        return self.engine(**cast_inputs(inputs, self.dtype))

    def backward(self, loss: torch.Tensor) -> None:
        self.engine.backward(loss, scale_wrt_gas=False)
        if not self.engine.is_gradient_accumulation_boundary():
            self.engine.step()

    def step(self) -> StepResult:
        self.engine.step()
        norm = self.engine.get_global_grad_norm()
        overflow = bool(getattr(self.engine.optimizer, "overflow", False))
        grad_norm = float("inf") if overflow or norm is None else float(norm)
        return StepResult(grad_norm=grad_norm, taken=not overflow)

    def loss_scale(self) -> float:
        return float(self.engine.optimizer.loss_scale) if self.scales_loss else 1.0

    def parameters(self) -> Iterator[tuple[str, torch.Tensor]]:
        for name, parameter in named_parameters(self.module):
            if parameter.requires_grad and (self.stage.zero_stage == 3 or self.dtype != torch.float32):
                yield name, safe_get_full_fp32_param(parameter).detach()
            elif self.stage.zero_stage == 3:
                with deepspeed.zero.GatheredParameters([parameter]):
                    yield name, parameter.detach().clone()
            else:
                yield name, parameter.detach()

    def optimizer_state(self, keys: tuple[str, ...]) -> Iterator[tuple[str, int, dict[str, torch.Tensor]]]:
        flats = {parameter: flat for members, flat in self._flat_groups() for parameter in members}
        for name, parameter in named_parameters(self.module):
            state = self.optimizer.state.get(flats[parameter], {}) if parameter.requires_grad else {}
            # A group none of whose parameters ever had a gradient has no state; then it has none on any rank.
            found = {key: self._whole_state(parameter, state[key], key) for key in keys if key in state}
            if found:
                yield name, int(state.get("step", 0)), found

    def _whole_state(self, parameter: nn.Parameter, flat_state: torch.Tensor, key: str) -> torch.Tensor:
        if self.stage.zero_stage == 3:
            return cast(torch.Tensor, safe_get_full_optimizer_state(parameter, key)).detach().float().cpu()
        whole = torch.zeros(parameter.numel(), dtype=torch.float32, device=parameter.device)
        mapping = cast(Any, parameter)._hp_mapping
        if mapping is not None:  # None: all of it belongs to other ranks
            inside, in_flat = mapping.lp_fragment_address, mapping.hp_fragment_address
            whole.narrow(0, inside.start, inside.numel).copy_(flat_state.narrow(0, in_flat.start, in_flat.numel))
        dist.all_reduce(whole)
        return whole.view(parameter.shape).cpu()

    def set_optimizer_state(self, name: str, steps: int, tensors: dict[str, torch.Tensor]) -> None:
        parameter = parameter_of(self.module, name)
        flat = next(flat for members, flat in self._flat_groups() if any(p is parameter for p in members))
        state = self.optimizer.state[flat]
        state.setdefault("step", torch.tensor(float(steps)))
        for key, value in tensors.items():
            state.setdefault(key, torch.zeros_like(flat, dtype=moment_dtype(self.stage)))
            if self.stage.zero_stage == 3:
                safe_set_local_optimizer_state(parameter, self._shard(parameter, value), key)
            elif (mapping := cast(Any, parameter)._hp_mapping) is not None:
                inside, in_flat = mapping.lp_fragment_address, mapping.hp_fragment_address
                part = value.flatten().narrow(0, inside.start, inside.numel)
                state[key].narrow(0, in_flat.start, in_flat.numel).copy_(part)

    def _flat_groups(self) -> list[tuple[list[nn.Parameter], torch.Tensor]]:
        """(parameters, this rank's flat fp32 partition of them), as DeepSpeed keys its optimizer state."""
        zero = self.engine.optimizer
        if self.stage.zero_stage == 3:
            return list(zip(zero.fp16_groups, zero.fp32_partitioned_groups_flat, strict=True))
        return list(zip(zero.bit16_groups, zero.single_partition_of_fp32_groups, strict=True))

    def _shard(self, parameter: nn.Parameter, value: torch.Tensor) -> torch.Tensor:
        """This rank's equal part of a whole tensor, the last one padded with zeros, as ZeRO-3 partitions it."""
        size = cast(Any, parameter).ds_tensor.ds_numel
        padded = torch.zeros(size * self.engine.world_size, dtype=torch.float32, device=value.device)
        padded[: value.numel()] = value.flatten()
        return padded.narrow(0, size * self.engine.global_rank, size)

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.engine.save_checkpoint(str(folder), tag=TAG, save_latest=False)

    def load(self, folder: Path) -> None:
        path, _ = self.engine.load_checkpoint(str(folder), tag=TAG)
        if path is None:
            raise RuntimeError(f"DeepSpeed found nothing to load in {folder}")

    def describe(self) -> dict[str, Any]:
        return {
            "engine": type(self.engine).__name__,
            "zero_stage": self.engine.zero_optimization_stage(),
            "offload": self.stage.settings.sharding.offload,
            "ranks": self.engine.world_size,
        }

    def held(self) -> dict[str, int]:
        zero, parameters = self.engine.optimizer, list(self.module.parameters())
        gradients: list[torch.Tensor | None] = [parameter.grad for parameter in parameters]
        if self.stage.zero_stage == 3:
            gradients.append(zero.grad_partitions_flat_buffer)
            shards: list[Any] = [cast(Any, parameter).ds_tensor for parameter in parameters]
        else:
            kept = [*zero.averaged_gradients.values(), *zero.all_grad_tensors.values()]
            gradients += [gradient for group in kept if group is not None for gradient in group]
            shards = parameters
        return {
            "parameters": storage_bytes(shards),
            "gradients": storage_bytes(gradients),
            "masters": storage_bytes(flat for _, flat in self._flat_groups()),
            "optimizer": storage_bytes(state_tensors(self.optimizer)),
        }

    def close(self) -> None:
        held = list(_tensors_in([vars(self.engine.optimizer), self.optimizer.state, *self._of_parameters()]))
        self.accelerator.free_memory(self.engine)
        self.engine.destroy()
        zero_linear.restore()
        del self.engine, self.module, self.optimizer
        release(held)
        super().close()

    def _of_parameters(self) -> Iterator[torch.Tensor | None]:
        for parameter in self.module.parameters():
            yield from (parameter, parameter.grad, getattr(parameter, "ds_tensor", None))


def _tensors_in(value: Any) -> Iterator[torch.Tensor]:
    """The tensors in nested lists, tuples and dicts."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        yield from _tensors_in([*value.keys(), *value.values()])
    elif isinstance(value, list | tuple | set):
        for entry in value:
            yield from _tensors_in(entry)


def release(tensors: Iterable[torch.Tensor]) -> None:
    """Give back the memory of tensors that others may still refer to.

    A stage 3 engine outlives its stage: autograd's nodes, in C++ and out of sight of Python's garbage collector, hold
    its modules and through them the whole engine. On a GPU the next stage would find its memory taken.
    """
    for tensor in tensors:
        storage = tensor.untyped_storage()
        if storage.resizable():
            storage.resize_(0)
        else:
            tensor.data = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
