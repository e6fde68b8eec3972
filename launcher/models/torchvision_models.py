"""torchvision's classifiers: built for any number of classes, with downloaded, given or random weights.

Owns ``torchvision:NAME``. Weights come through torchvision's own download or from a file; a head for other classes is
dropped with a message, any other difference is an error. Called by `models`.
"""

from __future__ import annotations

import difflib
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torchvision.models
from torch import nn

from launcher.errors import EnvironmentProblem, UserError
from launcher.file_locations import existing_path
from launcher.models import architecture, image_spec, state_dict_files
from launcher.models.dropout import override_modules, require_dropout
from launcher.models.image_spec import ImageSpec
from launcher.recipe import ImageClassification, Model, Task

log = logging.getLogger(__name__)
PREFIX = "torchvision:"
IMAGE_SIZE_KEYS = {"vit_": "image_size", "maxvit_": "input_size"}
"""Networks whose parameters depend on the image's size -> the builder's argument."""


def network_name(model: Model, task: Task) -> str:
    """The NAME of ``torchvision:NAME``.

    Raises:
        UserError: no such classifier, or a task that is not image classification.
    """
    name = model.source.removeprefix(PREFIX)
    known = torchvision.models.list_models(module=torchvision.models)
    if name not in known:
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
        hint = f"did you mean {' or '.join(near)}?" if near else f"it has {', '.join(known)}"
        raise UserError(f"model.source: {model.source!r}: torchvision has no classifier {name!r}; {hint}")
    if not isinstance(task, ImageClassification):
        raise UserError(
            f"model.source: {model.source!r} classifies images, and task.kind is {task.kind}; "
            "choose a transformers model, or task.kind: image-classification"
        )
    return name


def build(model: Model, task: Task, num_classes: int) -> nn.Module:
    """The network with torchvision's own initialisation, drawn from torch's global generator.

    Raises:
        UserError: see `network_name`; or the network has no dropout and ``model.dropout`` is set.
    """
    name = network_name(model, task)
    module: nn.Module = torchvision.models.get_model(
        name, weights=None, num_classes=num_classes, **size_arguments(name, task)
    )
    if model.dropout is not None:
        require_dropout(override_modules(module, model.dropout), model.source, model.dropout)
    return module


def head_of(model: Model, module: nn.Module, other: nn.Module) -> tuple[str, ...]:
    """Prefix of the head of ``module``; ``other`` is the same network for another number of classes.

    Raises:
        UserError: the network has auxiliary heads.
    """
    head = architecture.head_by_labels(module, other)
    if len(head) != 1:
        raise UserError(
            f"model.source: {model.source!r} has auxiliary heads ({', '.join(head)}), which are not supported; "
            "choose another network, such as torchvision:resnet50"
        )
    return head


def load_start(module: nn.Module, model: Model, head: tuple[str, ...], labels: list[str], recipe_dir: Path) -> bool:
    """Load ``model.weights`` (not ``random``) into a built network; whether the head is new.

    Raises:
        EnvironmentProblem: the download failed.
        UserError: the file does not hold weights of this network.
    """
    if model.weights == "pretrained":
        state, where, classes = *_download(model), _categories(model)
    else:
        path = existing_path(model.weights, recipe_dir, "model.weights")
        state, where, classes = state_dict_files.read(path), str(path), labels
    own = module.state_dict()
    is_head_new = classes != labels or any(
        name in own and tensor.shape != own[name].shape for name, tensor in state.items() if name.startswith(head)
    )
    if is_head_new:
        state = {name: tensor for name, tensor in state.items() if not name.startswith(head)}
        log.info("%s: the head (%s) is for other classes; it starts anew", where, ", ".join(head))
    else:
        log.info("%s: the head (%s) is kept: it has the same classes", where, ", ".join(head))
    _check_fits(state, own, head if is_head_new else (), where, model)
    module.load_state_dict(state, strict=False)
    return is_head_new


def is_head_new(model: Model, task: Task, labels: list[str], recipe_dir: Path) -> bool:
    """Whether `load_start` would drop the head of ``model.weights``, without a download.

    Raises:
        UserError: the file cannot be read.
    """
    if model.weights == "pretrained":
        return _categories(model) != labels
    given = state_dict_files.read(existing_path(model.weights, recipe_dir, "model.weights"))
    own = build(model, task, len(labels)).state_dict()
    return any(name in own and tensor.shape != own[name].shape for name, tensor in given.items())


def image_spec_of(model: Model, task: Task) -> ImageSpec:
    """How the network's weights want their images; ``task.image_size`` overrides the size."""
    weights = torchvision.models.get_model_weights(network_name(model, task)).DEFAULT
    spec = image_spec.from_torchvision(weights.transforms())
    side = task.image_size if isinstance(task, ImageClassification) else None
    return spec.with_size(side) if side else spec


def size_arguments(name: str, task: Task) -> dict[str, Any]:
    """Arguments of the builder that follow from ``task.image_size``; most networks take any size."""
    side = task.image_size if isinstance(task, ImageClassification) else None
    if side is None:
        return {}
    key = next((key for prefix, key in IMAGE_SIZE_KEYS.items() if name.startswith(prefix)), None)
    if key is None:
        return {}
    return {key: side if key == "image_size" else (side, side)}


def _download(model: Model) -> tuple[dict[str, torch.Tensor], str]:
    name = model.source.removeprefix(PREFIX)
    try:
        pretrained = torchvision.models.get_model(name, weights="DEFAULT", progress=False)
    except Exception as error:  # torch.load raises what a damaged file makes it raise
        raise _failed_download(name, error) from error
    return pretrained.state_dict(), model.source


def _failed_download(name: str, error: Exception) -> EnvironmentProblem:
    """torch checks what it downloads against the hash in the file's name, but not what lies in its cache."""
    url = torchvision.models.get_model_weights(name).DEFAULT.url
    kept = Path(torch.hub.get_dir()) / "checkpoints" / Path(url).name
    what = f"model.weights: pretrained: the weights of {name}"
    if kept.exists():
        said = str(error).splitlines()[0] if str(error) else type(error).__name__
        return EnvironmentProblem(f"{what}: {kept} is damaged ({said}); delete it, and it is downloaded again")
    instead = f"put the file there as {kept}, or set model.weights to the path of a state dict, or to random"
    if "invalid hash value" in str(error):
        return EnvironmentProblem(
            f"{what}: what came from {url} is not that file ({error}), and was not kept: the download was cut short "
            f"or a proxy answered in its place; try again, or {instead}"
        )
    return EnvironmentProblem(f"{what} could not be downloaded from {url}: {error}; {instead}")


def _categories(model: Model) -> list[str]:
    return list(torchvision.models.get_model_weights(model.source.removeprefix(PREFIX)).DEFAULT.meta["categories"])


def _check_fits(
    state: Mapping[str, torch.Tensor],
    own: Mapping[str, torch.Tensor],
    head: tuple[str, ...],
    where: str,
    model: Model,
) -> None:
    expected = [name for name in own if not (head and name.startswith(head))]
    missing = [name for name in expected if name not in state and not name.endswith("num_batches_tracked")]
    unexpected = [name for name in state if name not in own]
    shapes = [f"{n} {tuple(t.shape)}" for n, t in state.items() if n in own and t.shape != own[n].shape]
    parts = (("missing", missing), ("not of this network", unexpected), ("of another shape", shapes))
    found = "; ".join(f"{len(names)} {what} ({', '.join(names[:3])} …)" for what, names in parts if names)
    if found:
        raise UserError(f"model.weights: {where} does not fit {model.source}: {found}; give weights of this network")
