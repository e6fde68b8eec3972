"""The model folder that a run leaves: loadable by its library without us, and by `load_export` with its processor.

transformers models: what ``from_pretrained`` reads, with tokenizer or image processor, and adapters merged into it.
torchvision models: ``model.safetensors`` and a ``config.json`` with the network's name, the labels and how it wants its
images. Both: a README.md. Written beside and renamed, so a folder of that name is whole. Called by `walk`; read by
`inference`.
"""

from __future__ import annotations

import inspect
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
import torchvision.models
import transformers
from torch import nn

from launcher import model_card, models
from launcher.errors import UserError
from launcher.models import (
    adapters,
    image_spec,
    own_task,
    torchvision_models,
    transformers_processors,
    transformers_source,
)
from launcher.models.image_spec import ImageSpec
from launcher.models.own_processor import own_processor
from launcher.models.weights import SHARD_BYTES, WeightsReader, load_weights, named_state, write_weights
from launcher.plan import RunPlan
from launcher.recipe import CausalLM, ImageClassification, Model, Task, TextClassification

CONFIG = "config.json"


class Chosen(Protocol):
    """The checkpoint that is exported, where one was chosen as best."""

    @property
    def checkpoint(self) -> str:
        """Its folder's name."""
        ...


@dataclass(frozen=True)
class Export:
    """A model folder, loaded."""

    module: nn.Module
    """In evaluation mode, on the CPU."""
    processor: Any
    """Tokenizer, `OwnProcessor` or `ImageSpec`, as `models.processor` gives it."""
    labels: list[str] | None
    """Label names in the order of their ids."""
    config: Any
    """transformers' configuration; None for torchvision."""


def export(
    plan: RunPlan,
    weights: Path,
    destination: Path,
    processor: Any,
    metrics: Mapping[str, float],
    best: Chosen | None = None,
    written: str | None = None,
) -> None:
    """Write the model folder from a stage's folder of weights, replacing one that is there. One rank calls this.

    ``written``: the recipe as its author wrote it, for the card; None: as it was resolved.
    """
    card = model_card.card(plan, metrics, best.checkpoint if best else None, written)
    recipe = plan.recipe
    export_model(
        plan.model, recipe.task, plan.labels, Path(plan.recipe_dir), weights, destination, processor, card,
        max_length=recipe.data.max_length,
    )  # fmt: skip


def export_model(
    model: Model,
    task: Task,
    labels: list[str] | None,
    recipe_dir: Path,
    weights: Path,
    destination: Path,
    processor: Any,
    card: str,
    dtype: torch.dtype = torch.float32,
    max_length: int | None = None,
) -> None:
    """As `export`, from the parts: ``card`` is the text of README.md, ``dtype`` that of the exported weights,
    ``max_length`` that of the texts in tokens; None: as the model's tokenizer says.

    The model is read from the disk while it is written: it may be larger than the memory.
    """
    temporary, changed = (destination.with_name(f".{what}-{destination.name}") for what in ("writing", "changed"))
    for folder in (temporary, changed):
        shutil.rmtree(folder, ignore_errors=True)
    temporary.mkdir(parents=True)
    plain = model.model_copy(update={"lora": None})
    try:
        if model != plain or dtype is not torch.float32:
            write_weights(_changed(model, task, labels, recipe_dir, weights, dtype), changed)
            weights = changed
        _write(plain, task, labels, recipe_dir, weights, temporary, processor, dtype, max_length)
    finally:
        shutil.rmtree(changed, ignore_errors=True)
    (temporary / "README.md").write_text(card, encoding="utf-8")
    _replace(temporary, destination)


def _write(
    model: Model, task: Task, labels: list[str] | None, recipe_dir: Path, weights: Path, folder: Path, processor: Any,
    dtype: torch.dtype, max_length: int | None,
) -> None:  # fmt: skip
    """The library's own files. The module ends here: on NFS a file that is still mapped cannot be deleted."""
    module = models.skeleton(model, task, labels, recipe_dir).to(dtype).eval()
    load_weights(module, weights, mapped=True)
    if model.source.startswith(torchvision_models.PREFIX):
        write_weights(named_state(module), folder)
        config = _torchvision_config(model, task, labels or [], processor)
        (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n")
    else:
        _write_transformers(module, model, task, recipe_dir, processor, folder, max_length)


def load_export(folder: Path) -> Export:
    """Load a model folder.

    Raises:
        UserError: it is not one that `export` wrote.
    """
    if not (folder / CONFIG).is_file():
        raise UserError(f"{folder} holds no {CONFIG}, so it is no exported model; is the run finished?")
    config = json.loads((folder / CONFIG).read_text())
    if config.get("library") == "torchvision":
        return _load_torchvision(folder, config)
    return _load_transformers(folder)


def _write_transformers(
    module: Any, model: Model, task: Task, recipe_dir: Path, processor: Any, folder: Path, max_length: int | None
) -> None:
    own_task.finish(module, model.source, processor)
    if isinstance(task, ImageClassification):
        processor.save_pretrained(folder)
    else:
        limit = max_length if isinstance(task, TextClassification) else None
        transformers_processors.exported_tokenizer(processor, limit).save_pretrained(folder)
    if isinstance(task, CausalLM) and module.can_generate():
        found = transformers_source.generation_config(model, recipe_dir)
        ends = task.end_of_text is not False
        module.generation_config = own_task.generation(module, found, processor, ends=ends)
    with transformers_source.quiet():
        module.save_pretrained(folder, max_shard_size=SHARD_BYTES)


def _torchvision_config(model: Model, task: Task, labels: list[str], spec: ImageSpec) -> dict[str, Any]:
    name = torchvision_models.network_name(model, task)
    return {
        "library": "torchvision",
        "name": name,
        "arguments": torchvision_models.size_arguments(name, task),
        "task": task.kind,
        "num_labels": len(labels),
        "id2label": {str(index): label for index, label in enumerate(labels)},
        "image": spec.as_dict(),
    }


def _load_torchvision(folder: Path, config: dict[str, Any]) -> Export:
    labels = [config["id2label"][str(index)] for index in range(config["num_labels"])]
    arguments = {key: tuple(v) if isinstance(v, list) else v for key, v in config["arguments"].items()}
    with torch.random.fork_rng(devices=[]):
        module = torchvision.models.get_model(config["name"], weights=None, num_classes=len(labels), **arguments)
    load_weights(module, folder)
    return Export(module.eval(), image_spec.from_dict(config["image"]), labels, None)


def _load_transformers(folder: Path) -> Export:
    config = transformers.AutoConfig.from_pretrained(folder)
    model_class = getattr(transformers, config.architectures[0])
    with transformers_source.quiet():
        module = model_class.from_pretrained(folder, config=config, dtype=torch.float32).eval()
    if "ForImageClassification" in config.architectures[0]:
        processor: Any = own_processor(
            transformers.AutoImageProcessor.from_pretrained(folder), inspect.signature(module.forward).parameters
        )
    else:
        processor = transformers.AutoTokenizer.from_pretrained(folder)
    has_labels = "Classification" in config.architectures[0]  # Perceiver's go on: ForImageClassificationLearned
    labels = [config.id2label[index] for index in sorted(config.id2label)] if has_labels else None
    return Export(module, processor, labels, config)


def _changed(
    model: Model, task: Task, labels: list[str] | None, recipe_dir: Path, weights: Path, dtype: torch.dtype
) -> Iterator[tuple[str, torch.Tensor]]:
    """The weights with adapters merged, in fp32 as they were trained, and then in ``dtype``; one at a time."""
    with WeightsReader(weights) as reader:
        state: Iterable[tuple[str, torch.Tensor]] = ((name, reader.mapped(name)) for name in sorted(reader.names))
        if model.lora is not None:
            module = models.skeleton(model, task, labels, recipe_dir)
            load_weights(module, weights, mapped=True)
            state = adapters.merged_state(module)
        for name, tensor in state:
            yield name, tensor.to(dtype) if tensor.is_floating_point() else tensor


def _replace(temporary: Path, destination: Path) -> None:
    old = destination.with_name(f".old-{destination.name}")
    shutil.rmtree(old, ignore_errors=True)
    if destination.exists():
        os.replace(destination, old)
    os.replace(temporary, destination)
    shutil.rmtree(old, ignore_errors=True)
