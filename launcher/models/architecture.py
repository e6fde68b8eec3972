"""What a built model is made of: its blocks in depth order, its head, and the facts that plans are made from.

Owns the general rules by which blocks and heads are found in any transformers or torchvision model; there is no table
of models. Looks at names, classes and shapes only, so a model on the meta device will do. Called by `models`; the
pattern language over these facts is `plan.parameters`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from torch import nn

from launcher.models.parameter_names import is_adapter, plain
from launcher.plan.parameters import ModelFacts, ParameterFacts

MOSTLY = 0.8
"""A container with more than this share of a network's parameters is the network, and its children are the blocks."""

Block = tuple[str, ...]
"""Name prefixes, each ending with a dot."""


def facts_of(
    module: nn.Module, layers: Sequence[Block], head: Sequence[str], config: dict[str, Any],
    lora_targets: tuple[str, ...] | None = None,
) -> ModelFacts:  # fmt: skip
    """The facts of a built model, with its adapters; layers and head are those of the model without."""
    return ModelFacts(
        parameters=tuple(
            ParameterFacts(
                name=plain(name),
                shape=tuple(getattr(parameter, "ds_shape", parameter.shape)),
                dtype=str(parameter.dtype).removeprefix("torch."),
                decays=_decays(owner, name, parameter),
                is_adapter=is_adapter(name),
            )
            for owner, name, parameter in _owned_parameters(module)
        ),
        layers=tuple(tuple(block) for block in layers),
        head=tuple(head),
        config=config,
        has_batch_norm=any(isinstance(child, nn.modules.batchnorm._BatchNorm) for child in module.modules()),
        lora_targets=lora_targets,
    )


def transformers_head(model: Any) -> tuple[str, ...]:
    """What lies outside the base model; of a language model the output embeddings, under their first name if tied.

    Empty when the model does not say which part is its base, or when nothing is outside of it.
    """
    output = model.get_output_embeddings()
    if output is not None:
        own = {id(parameter) for parameter in output.parameters()}
        return tuple(name for name, parameter in model.named_parameters() if id(parameter) in own)
    base = model.base_model
    if base is model:
        return ()
    inside = {id(parameter) for parameter in base.parameters()}
    return _as_prefixes(model, [name for name, p in model.named_parameters() if id(p) not in inside])


def head_by_labels(module: nn.Module, other: nn.Module) -> tuple[str, ...]:
    """Modules with a parameter whose shape differs in ``other``, the same network built for another number of classes.

    So the head is what depends on the number of classes, wherever a network keeps it (``fc``, ``classifier.6``,
    ``heads.head``); more than one means auxiliary heads.
    """
    shapes = {name: parameter.shape for name, parameter in other.named_parameters()}
    depends = [name for name, parameter in module.named_parameters() if parameter.shape != shapes[name]]
    return tuple(dict.fromkeys(name.rpartition(".")[0] + "." for name in depends))


def names_under(module: nn.Module, head: Sequence[str]) -> list[str]:
    """The parameters of a head."""
    prefixes = tuple(part for part in head if part.endswith("."))
    return [name for name, _ in module.named_parameters() if name.startswith(prefixes) or name in head]


def transformers_layers(model: Any) -> tuple[Block, ...]:
    """The blocks of a transformers model, of an encoder-decoder those of both.

    They are the largest list of equal blocks, or the list of unlike ones (Zamba's, SwiftFormer's) where that is nearly
    all of the network, or where there is no other.
    """
    towers = [model]
    if getattr(model.config, "is_encoder_decoder", False):
        towers = [tower for tower in (model.get_encoder(), model.get_decoder()) if tower is not None]
    prefixes = {id(child): name + "." if name else "" for name, child in model.named_modules()}
    return tuple((prefixes[id(tower)] + block,) for tower in towers for block in _transformers_blocks(tower))


def _transformers_blocks(tower: nn.Module) -> list[str]:
    equal = _largest_list(tower, (nn.ModuleList,))
    unlike = _largest_list(tower, (nn.ModuleList,), is_equal=False)
    is_most = _numel(tower, unlike) > max(MOSTLY * _numel(tower, [""]), _numel(tower, equal))
    return unlike if is_most or not equal else equal


def torchvision_layers(module: nn.Module, head: Sequence[str]) -> tuple[Block, ...]:
    """The blocks of a torchvision classifier, from the input to the head.

    ResNets: ``conv1`` with ``bn1``, then ``layer1`` to ``layer4``. Networks with ``features``: its children. Networks
    with a list of equal blocks (ViT, MaxViT): those blocks. Others: the top-level children, or those of the one that is
    nearly all of the network.
    """
    children = dict(module.named_children())
    if {"conv1", "bn1", "layer1", "layer4"} <= children.keys():
        stages = [name for name in children if name.startswith("layer")]
        return (("conv1.", "bn1."), *((name + ".",) for name in stages))
    if "features" in children:
        return _children_with_parameters(children["features"], "features.")
    repeated = _largest_list(module, (nn.ModuleList, nn.Sequential))
    if _numel(module, repeated) > _numel(module, [""]) / 2:
        return tuple((block,) for block in repeated)
    return _nested_children(module, "", head)


def torchvision_residual_blocks(module: nn.Module) -> tuple[str, ...]:
    """Names of the blocks that gradient checkpointing computes again: of ResNets those inside ``layer1`` to ``layer4``,
    of a network that is mostly a list of equal blocks those blocks. Empty for others."""
    children = dict(module.named_children())
    if {"conv1", "bn1", "layer1", "layer4"} <= children.keys():
        stages = [name for name in children if name.startswith("layer")]
        return tuple(f"{stage}.{name}" for stage in stages for name, _ in children[stage].named_children())
    repeated = _largest_list(module, (nn.ModuleList, nn.Sequential))
    is_most = _numel(module, repeated) > _numel(module, [""]) / 2
    return tuple(block.removesuffix(".") for block in repeated) if is_most else ()


def _nested_children(module: nn.Module, prefix: str, head: Sequence[str]) -> tuple[Block, ...]:
    total = _numel(module, [""])
    blocks: list[Block] = []
    for name, child in module.named_children():
        path = f"{prefix}{name}."
        if any(part.startswith(path) for part in head) or not _numel(child, [""]):
            continue
        is_most = _numel(child, [""]) > MOSTLY * total
        blocks += _children_with_parameters(child, path) if is_most and list(child.children()) else [(path,)]
    return tuple(blocks)


def _children_with_parameters(module: nn.Module, prefix: str) -> tuple[Block, ...]:
    return tuple((f"{prefix}{name}.",) for name, child in module.named_children() if _numel(child, [""]))


def _largest_list(module: nn.Module, kinds: tuple[type[nn.Module], ...], *, is_equal: bool = True) -> list[str]:
    """Prefixes of the members of the container that holds the most parameters; the outermost wins.

    ``is_equal``: of blocks of one class; else of any, and members without parameters are no blocks.
    """
    largest: tuple[int, list[str]] = (0, [])
    for name, container in module.named_modules():
        members = list(container.named_children())
        if not is_equal:
            members = [(member, child) for member, child in members if next(child.parameters(), None) is not None]
        if not isinstance(container, kinds) or not members:
            continue
        if is_equal and len({type(member) for _, member in members}) > 1:
            continue
        size = sum(parameter.numel() for parameter in container.parameters())
        if size > largest[0]:
            prefix = name + "." if name else ""
            largest = (size, [f"{prefix}{member}." for member, _ in members])
    return largest[1]


def _numel(module: nn.Module, prefixes: Sequence[str]) -> int:
    return sum(p.numel() for name, p in module.named_parameters() if name.startswith(tuple(prefixes)))


def _as_prefixes(module: nn.Module, names: Sequence[str]) -> tuple[str, ...]:
    """Top-level modules (``classifier.``) that hold ``names`` and nothing else, or the names themselves."""
    chosen = set(names)
    prefixes: dict[str, None] = {}
    for name in names:
        top = name.partition(".")[0] + "."
        below = [other for other, _ in module.named_parameters() if other.startswith(top)]
        prefixes[top if "." in name and chosen.issuperset(below) else name] = None
    return tuple(prefixes)


def _owned_parameters(module: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Parameter]]:
    """(the module that holds it, full name, parameter), each once, in the order of ``named_parameters()``."""
    modules = dict(module.named_modules(remove_duplicate=False))
    for name, parameter in module.named_parameters():
        yield modules[name.rpartition(".")[0]], name, parameter


def _decays(owner: nn.Module, name: str, parameter: nn.Parameter) -> bool:
    num_axes = len(getattr(parameter, "ds_shape", parameter.shape))
    return num_axes > 1 and not name.endswith("bias") and "norm" not in type(owner).__name__.lower()
