"""The model of a recipe: its facts, its first weights, and empty copies of it to fill.

Owns the choice between transformers and torchvision and all that both share: nothing here depends on torch's global
generators or moves them. Called by `survey` (facts), `walk` (first weights) and for each stage (skeleton).
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import nn
from transformers.initialization import no_init_weights
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.modeling_utils import set_zero3_state

from launcher.errors import UserError
from launcher.models import (
    adapters,
    architecture,
    on_disk,
    torchvision_models,
    transformers_models,
    transformers_processors,
)
from launcher.models.head_init import init_head
from launcher.models.parameter_names import is_adapter
from launcher.plan.parameters import ModelFacts
from launcher.recipe import CausalLM, ImageClassification, Model, Task

DEFAULT_SEED = 0


@dataclass(frozen=True)
class _Blueprint:
    """What a model is built from; building draws from torch's global generator."""

    model: Model
    task: Task
    labels: list[str] | None
    config: Any
    """transformers' configuration; None for torchvision."""

    def build(self) -> nn.Module:
        if self.config is None:
            return torchvision_models.build(self.model, self.task, len(self.labels or []))
        module: nn.Module = transformers_models.build(self.config, self.model, self.task)
        return module

    def head_of(self, module: nn.Module) -> tuple[str, ...]:
        """Prefixes or names of the task's output layer.

        Raises:
            UserError: the model does not tell its head from its base.
        """
        if self.config is None:
            with _unseen_randomness(DEFAULT_SEED), init_empty_weights(include_buffers=False):
                other = torchvision_models.build(self.model, self.task, len(self.labels or []) + 1)
            return torchvision_models.head_of(self.model, module, other)
        head = architecture.transformers_head(module)
        if not head and self.labels is not None:
            head = architecture.head_by_labels(module, _empty(self.with_one_more_label(), with_buffers=False))
        if not head:
            raise UserError(
                f"model.source: {self.model.source!r}: {type(module).__name__} does not tell its head from its base; "
                "choose a model whose head can be told apart"
            )
        return head

    def with_one_more_label(self) -> _Blueprint:
        """Of a transformers classifier that differs where the number of labels matters."""
        labels = [*(self.labels or []), "one more"]
        config = copy.deepcopy(self.config)
        config.id2label = dict(enumerate(labels))
        config.label2id = {label: index for index, label in enumerate(labels)}
        return _Blueprint(self.model, self.task, labels, config)

    def adapt(self, module: nn.Module, targets: Sequence[str] = ()) -> None:
        """Put the recipe's adapters into a module that was built without.

        Args:
            targets: of ``auto``, what it comes to; the plan's model has them already.
        """
        if self.model.lora is not None:
            resolved = targets or adapters.targets_of(module, self.model.lora, ())
            with init_empty_weights() if any(p.is_meta for p in module.parameters()) else nullcontext():
                adapters.inject(module, self.model.lora, resolved)

    def layers_of(self, module: nn.Module, head: tuple[str, ...]) -> tuple[tuple[str, ...], ...]:
        if self.config is None:
            return architecture.torchvision_layers(module, head)
        return architecture.transformers_layers(module)


def facts(model: Model, task: Task, num_labels: int | None, recipe_dir: Path) -> ModelFacts:
    """Parameters, layers and head of the recipe's model, from its configuration alone.

    Raises:
        UserError: no such model, or one that cannot do the task or what ``model.head`` and ``model.dropout`` ask.
        EnvironmentProblem: the hub cannot be reached.
    """
    labels = [f"LABEL_{index}" for index in range(num_labels)] if num_labels is not None else None
    blueprint = _blueprint(model, task, labels, recipe_dir)
    module = _empty(blueprint, with_buffers=False)
    head = blueprint.head_of(module)
    if model.head.init != "default":
        _require_own_head(model, task, module)
    config = {"architecture": type(module).__name__, **_sizes(blueprint)}
    layers, targets = blueprint.layers_of(module, head), None
    if model.lora is not None:
        targets = adapters.targets_of(module, model.lora, head)
        blueprint.adapt(module, targets)
    return architecture.facts_of(module, layers, head, config, targets)


def configuration(model: Model, task: Task, labels: list[str] | None, recipe_dir: Path) -> Any:
    """transformers' configuration with the task's labels; None for torchvision."""
    return _blueprint(model, task, labels, recipe_dir).config


def processor(model: Model, task: Task, recipe_dir: Path) -> Any:
    """What turns rows into inputs: a tokenizer with a padding token, a transformers model's own image processor
    (`OwnProcessor`), or a torchvision model's `ImageSpec`.

    Raises:
        UserError: the model has none.
        EnvironmentProblem: the hub cannot be reached.
    """
    if _is_torchvision(model):
        return torchvision_models.image_spec_of(model, task)
    if isinstance(task, ImageClassification):
        return transformers_processors.image_processor(model, task, recipe_dir)
    return transformers_processors.tokenizer(model, task, recipe_dir)


def materialise(
    model: Model, task: Task, labels: list[str] | None, seed: int, recipe_dir: Path, *, scratch: Path | None = None
) -> nn.Module:
    """The whole model in fp32 on the CPU with its first weights: a function of the arguments alone.

    With ``scratch``, a folder, most of it is on disk: a model that is larger than the memory can be written on from
    there. Pretrained weights may then have the narrower dtype of their safetensors files, from which they are mapped,
    and large random ones are mapped from files in the folder; their values are the same.

    A new head gets the library's own initialisation, or ``model.head.init``. A head that came with the weights is kept
    when its labels are the task's or have no names, unless ``model.head.init`` asks for another than the default.

    Raises:
        UserError: see `facts`; or the weights do not fit.
        EnvironmentProblem: the hub or torchvision's server cannot be reached.
    """
    assert not is_deepspeed_zero3_enabled(), "the first weights are made whole, before any ZeRO-3 engine"
    blueprint = _blueprint(model, task, labels, recipe_dir)
    with _unseen_randomness(seed):
        if model.weights == "random":
            with on_disk.memory_in(scratch) if scratch else nullcontext():
                module = blueprint.build()
            head = blueprint.head_of(module)
        elif blueprint.config is None:
            module = blueprint.build()
            head = blueprint.head_of(module)
            torchvision_models.load_start(module, model, head, labels or [], recipe_dir)
        else:
            module, head, _ = transformers_models.load_start(
                blueprint.config, model, task, recipe_dir, blueprint.head_of, stay_on_disk=scratch is not None
            )
            _require_same_ties(module, _empty(blueprint), model)
    if blueprint.config is not None:
        transformers_models.set_padding(module, task, model, recipe_dir)
    if model.head.init != "default":
        _require_own_head(model, task, module)
        on_disk.widen(module, architecture.names_under(module, head))
        init_head(module, head, model.head.init, seed)
    with _unseen_randomness(seed):
        blueprint.adapt(module)
    on_disk.widen(module, [name for name, _ in module.named_parameters() if is_adapter(name)])
    adapters.initialise(module, seed)
    return module


def starts_anew(model: Model, task: Task, labels: list[str] | None, recipe_dir: Path, scratch: Path) -> list[str]:
    """Parameters of a pretrained transformers model whose first values are not its source's; see `materialise`."""
    module = materialise(model, task, labels, DEFAULT_SEED, recipe_dir, scratch=scratch)
    return [name for name, parameter in module.named_parameters() if transformers_models.is_new(parameter)]


def skeleton(
    model: Model,
    task: Task,
    labels: list[str] | None,
    recipe_dir: Path,
    sharding: AbstractContextManager[Any] | None = None,
) -> nn.Module:
    """The same model without its weights, to be filled by `weights.load_weights`; its buffers are right.

    Parameters are on the meta device; under ``sharding`` (a ``deepspeed.zero.Init``) each rank holds its part of them,
    uninitialised. All ranks must call this alike.
    """
    blueprint = _blueprint(model, task, labels, recipe_dir)
    module = _empty(blueprint)
    if sharding is None:
        with _unseen_randomness(DEFAULT_SEED):
            blueprint.adapt(module)
    else:
        plain = module
        with _unseen_randomness(DEFAULT_SEED), no_init_weights(), set_zero3_state(), sharding:
            module = blueprint.build()
            blueprint.adapt(module)
        _tie(module)
        _copy_buffers(plain, module)
    if blueprint.config is not None:
        transformers_models.set_padding(module, task, model, recipe_dir)
    return module


def outline(model: Model, task: Task, labels: list[str] | None, recipe_dir: Path) -> nn.Module:
    """As `skeleton`, sooner, and the values of its buffers mean nothing: for who looks at shapes alone."""
    blueprint = _blueprint(model, task, labels, recipe_dir)
    module = _empty(blueprint, with_buffers=False)
    blueprint.adapt(module)
    if blueprint.config is not None:
        transformers_models.set_any_padding(module)
    return module


def _blueprint(model: Model, task: Task, labels: list[str] | None, recipe_dir: Path) -> _Blueprint:
    if _is_torchvision(model):
        torchvision_models.network_name(model, task)
        if model.lora is not None:
            raise UserError("model.lora: adapters are for models of transformers; take it out")
        return _Blueprint(model, task, labels, None)
    return _Blueprint(model, task, labels, transformers_models.configuration(model, task, labels, recipe_dir))


def _empty(blueprint: _Blueprint, *, with_buffers: bool = True) -> nn.Module:
    """Parameters on the meta device, buffers as the library computes them.

    ``set_zero3_state``: an Accelerate plugin, of an earlier stage even, makes transformers believe that ZeRO-3 is on,
    and it would open a ``zero.Init`` of its own.
    """
    values = nullcontext() if with_buffers else no_init_weights()
    with _unseen_randomness(DEFAULT_SEED), set_zero3_state(), init_empty_weights(include_buffers=False), values:
        module = blueprint.build()
    _tie(module)
    return module


def _tie(module: Any) -> None:
    """Make tied parameters one object again; building on the meta device or sharded parts them."""
    if hasattr(module, "tie_weights"):
        module.tie_weights()


def _copy_buffers(source: nn.Module, target: nn.Module) -> None:
    """``zero.Init`` builds buffers in the engine's precision, so rotary frequencies would be rounded."""
    for name, buffer in source.named_buffers(remove_duplicate=False):
        owner, _, attribute = name.rpartition(".")
        holder = target.get_submodule(owner)
        device = holder.get_buffer(attribute).device
        holder._buffers[attribute] = buffer.to(device, copy=True)


def _require_same_ties(module: nn.Module, skeleton: nn.Module, model: Model) -> None:
    """transformers parts tied weights whose values differ; later stages could not tell that from the configuration.

    Raises:
        UserError: it has done so.
    """
    planned = {name for name, _ in skeleton.named_parameters()}
    loaded = {name for name, _ in module.named_parameters()}
    if planned != loaded:
        raise UserError(
            f"model.source: {model.source}: its configuration ties weights that differ in its files "
            f"({', '.join(sorted(planned ^ loaded)[:3])}); set tie_word_embeddings to false in its config.json"
        )


def _require_own_head(model: Model, task: Task, module: Any) -> None:
    """Refuse to initialise a head that is the input embeddings.

    Raises:
        UserError: it is.
    """
    if not isinstance(task, CausalLM):
        return
    output, inputs = module.get_output_embeddings(), module.get_input_embeddings()
    if output is None or output.weight is inputs.weight:
        raise UserError(
            f"model.head.init: {model.head.init!r}: the output layer of {model.source} is its input embeddings "
            "(tied weights), so it cannot be new; remove the key"
        )


def _sizes(blueprint: _Blueprint) -> dict[str, Any]:
    """The configuration in plain JSON types, for the memory model."""
    if blueprint.config is None:
        return {"library": "torchvision", "name": blueprint.model.source.removeprefix(torchvision_models.PREFIX)}
    plain: dict[str, Any] = json.loads(blueprint.config.to_json_string(use_diff=False))
    return {"library": "transformers", **plain}


def _is_torchvision(model: Model) -> bool:
    return model.source.startswith(torchvision_models.PREFIX)


@contextmanager
def _unseen_randomness(seed: int) -> Iterator[None]:
    """Draw from torch's CPU generator as if it had just been seeded, and put it back afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would move the GPUs' generators too
        yield
