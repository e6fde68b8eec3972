"""Which parameters a pattern names, how deep each lies, and with which rates a stage trains them.

Owns the pattern language of ``stages[].train`` and ``learning_rates``, and a parameter's depth for ``layer_decay``.
Pure: it works on `ModelFacts` (names and shapes), never on a model, and imports no torch. `models.facts` makes the
facts; `plan` resolves stages with `groups`.

Patterns:
    all, head, backbone      ``backbone`` is all but the head and the adapters
    lora                     the adapters of ``model.lora``
    layers[5], layers[-2:]   the model's own blocks in depth order, counted as Python counts; without their adapters
    bert.pooler              a parameter or a module by name
    *.attention.*, layer[34].*   a glob over names; ``*`` crosses dots; it may stop at a module
    re:layer\\.[0-3]\\.       a regular expression, searched for anywhere in the name

A language model whose input and output embeddings are one tensor has that tensor as its head, under the name that
``named_parameters()`` gives it (``model.embed_tokens.weight``); ``backbone`` is then all but the embeddings.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from launcher.errors import Problem, RecipeError, UserError
from launcher.recipe import Stage

ALIASES = ("all", "head", "backbone", "lora")
LAYERS_PATTERN = re.compile(r"layers\[(?P<first>-?\d+)?(?P<slice>:)?(?P<last>-?\d+)?\]")


class PatternError(UserError):
    """A pattern matches no parameter."""

    def __init__(self, pattern: str, reason: str, near: Sequence[str] = ()) -> None:
        self.pattern = pattern
        self.near = list(near)
        hint = f"; near it: {', '.join(self.near)}" if self.near else ""
        super().__init__(f"pattern {pattern!r} {reason}{hint}")


@dataclass(frozen=True)
class ParameterFacts:
    """One parameter."""

    name: str
    """As `models.parameter_names` gives it; a tied one under its first name."""
    shape: tuple[int, ...]
    dtype: str
    """Without the ``torch.``: ``float32``."""
    decays: bool
    """Whether weight decay applies: not to biases, norms and other one-dimensional parameters."""
    is_adapter: bool = False
    """Whether it came with ``model.lora``."""

    @property
    def numel(self) -> int:
        """Elements."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class ModelFacts:
    """What can be known of a model without its weights."""

    parameters: tuple[ParameterFacts, ...]
    """Each once, in model order."""
    layers: tuple[tuple[str, ...], ...]
    """The model's own blocks in depth order; a block is a tuple of name prefixes that end with a dot."""
    head: tuple[str, ...]
    """Prefixes (``classifier.``) or full names of the task's output layer."""
    config: dict[str, Any] = field(default_factory=dict)
    """``architecture`` and the sizes that the memory model needs; JSON-able."""

    has_batch_norm: bool = False
    """Whether any module keeps running statistics of batches."""
    lora_targets: tuple[str, ...] | None = None
    """What ``model.lora.targets`` comes to: the ends of names, or whole ones. None: there are no adapters."""

    @property
    def architecture(self) -> str:
        """Name of the model's class, for messages."""
        return str(self.config.get("architecture", "this model"))


@dataclass(frozen=True)
class Group:
    """Trained parameters that share a learning rate and a weight decay."""

    pattern: str
    """Where the rate comes from: a ``learning_rates`` pattern, a depth (``head``, ``layers[5]``, ``embeddings``,
    ``other``) under ``layer_decay``, or the stage's ``train`` patterns."""
    names: tuple[str, ...]
    """In model order."""
    learning_rate: float
    """Peak of the schedule."""
    weight_decay: float
    num_elements: int


def select(patterns: Sequence[str], facts: ModelFacts) -> tuple[str, ...]:
    """Names of the parameters that any of ``patterns`` matches, in model order.

    Raises:
        PatternError: the first pattern that matches nothing, with near names.
    """
    chosen: set[str] = set()
    for pattern in patterns:
        chosen.update(_matches(pattern, facts))
    return tuple(parameter.name for parameter in facts.parameters if parameter.name in chosen)


def groups(stage: Stage, facts: ModelFacts) -> tuple[Group, ...]:
    """Split a stage's trained parameters by learning rate and weight decay, in model order.

    Under ``layer_decay`` the learning rate of a parameter is multiplied by ``layer_decay ** depth`` (see `depths`),
    also where ``learning_rates`` has replaced the optimizer's.

    Raises:
        RecipeError: with every pattern of the stage that matches nothing, and every ``learning_rates`` pattern that
            names frozen parameters only.
    """
    base_rates, problems = _base_rates(stage, facts)
    if stage.layer_decay is not None and not facts.layers:
        message = f"{stage.layer_decay} needs layers, and {facts.architecture} has no blocks that can be told apart"
        problems.append(Problem(f"stages.{stage.name}.layer_decay", message))
    if problems:
        raise RecipeError(problems)
    depth_of = depths(facts) if stage.layer_decay is not None else {}
    members: dict[tuple[str, float, float], list[ParameterFacts]] = {}
    for parameter in facts.parameters:
        if parameter.name not in base_rates:
            continue
        label, rate = base_rates[parameter.name]
        if stage.layer_decay is not None:
            depth_label, depth = depth_of[parameter.name]
            label, rate = label or depth_label, rate * stage.layer_decay**depth
        label = label or ", ".join(stage.train)
        weight_decay = stage.optimizer.weight_decay if parameter.decays else 0.0
        members.setdefault((label, rate, weight_decay), []).append(parameter)
    return tuple(
        Group(
            pattern=label,
            names=tuple(parameter.name for parameter in chosen),
            learning_rate=rate,
            weight_decay=weight_decay,
            num_elements=sum(parameter.numel for parameter in chosen),
        )
        for (label, rate, weight_decay), chosen in members.items()
    )


def depths(facts: ModelFacts) -> dict[str, tuple[str, int]]:
    """Label and depth below the head of each parameter.

    The head has depth 0, the last block 1, the first block L, and what comes before it (embeddings, positions) L + 1.
    What follows the last block without being the head (final norm, pooler) feeds the head directly: depth 0, ``other``.
    What lies between two blocks has the depth of the next one. A tied embedding is the head.
    """
    num_layers = len(facts.layers)
    heads = set(_under(facts.head, facts))
    layer_of = {name: index for index, block in enumerate(facts.layers) for name in _under(block, facts)}
    result: dict[str, tuple[str, int]] = {}
    next_layer = num_layers
    for parameter in reversed(facts.parameters):
        name = parameter.name
        if name in heads:
            result[name] = ("head", 0)
        elif name in layer_of:
            next_layer = layer_of[name]
            result[name] = (f"layers[{next_layer}]", num_layers - next_layer)
        elif next_layer == 0 and num_layers:
            result[name] = ("embeddings", num_layers + 1)
        else:
            result[name] = ("other", num_layers - next_layer)
    return result


def _base_rates(stage: Stage, facts: ModelFacts) -> tuple[dict[str, tuple[str | None, float]], list[Problem]]:
    """For each trained parameter the ``learning_rates`` pattern that holds (None: the optimizer's) and its rate."""
    problems: list[Problem] = []
    rates: dict[str, tuple[str | None, float]] = {}
    for pattern in stage.train:
        try:
            rates.update(dict.fromkeys(_matches(pattern, facts), (None, stage.optimizer.learning_rate)))
        except PatternError as error:
            problems.append(Problem(f"stages.{stage.name}.train", str(error)))
    for pattern, rate in stage.learning_rates.items():
        path = f"stages.{stage.name}.learning_rates"
        try:
            trained = [name for name in _matches(pattern, facts) if name in rates]
        except PatternError as error:
            problems.append(Problem(path, str(error)))
            continue
        if not trained and not problems:
            names = ", ".join(stage.train)
            problems.append(
                Problem(path, f"pattern {pattern!r} names frozen parameters only; this stage trains {names}")
            )
        rates.update(dict.fromkeys(trained, (pattern, rate)))
    return rates, problems


def _matches(pattern: str, facts: ModelFacts) -> list[str]:
    names = [parameter.name for parameter in facts.parameters]
    if pattern in ALIASES:
        heads = set(_under(facts.head, facts))
        base = {name: "head" if name in heads else "backbone" for name in names}
        part_of = base | {parameter.name: "lora" for parameter in facts.parameters if parameter.is_adapter}
        found = [name for name in names if pattern in ("all", part_of[name])]
    elif pattern == "layers" or pattern.startswith("layers["):
        found = _layers(pattern, facts)
    elif pattern.startswith("re:"):
        found = _searched(pattern, names)
    else:
        below = pattern.removesuffix(".") + ".*"
        found = [name for name in names if fnmatchcase(name, pattern) or fnmatchcase(name, below)]
    if not found:
        reason = f"matches no parameter of {facts.architecture}"
        raise PatternError(pattern, reason, _near(pattern, facts))
    return found


def _layers(pattern: str, facts: ModelFacts) -> list[str]:
    """Names in the blocks of ``layers[i]`` or ``layers[a:b]``; empty when the slice is."""
    count = len(facts.layers)
    if not count:
        raise PatternError(
            pattern, f"needs layers, and {facts.architecture} has no blocks that can be told apart; use a glob", ALIASES
        )
    parsed = LAYERS_PATTERN.fullmatch(pattern)
    if parsed is None or (parsed["slice"] is None and parsed["first"] is None):
        raise PatternError(pattern, "is not a layer or a slice of layers", ["layers[0]", "layers[-2:]", "layers[:4]"])
    first = None if parsed["first"] is None else int(parsed["first"])
    if parsed["slice"]:
        chosen = facts.layers[first : None if parsed["last"] is None else int(parsed["last"])]
    else:
        assert first is not None
        chosen = facts.layers[first:][:1] if -count <= first < count else ()
    if not chosen:
        reason = f"names no layer: {facts.architecture} has {count}, layers[0] to layers[{count - 1}]"
        raise PatternError(pattern, reason)
    own = {parameter.name for parameter in facts.parameters if not parameter.is_adapter}
    return [name for block in chosen for name in _under(block, facts) if name in own]


def _searched(pattern: str, names: Sequence[str]) -> list[str]:
    if pattern == "re:":
        raise PatternError(pattern, "is empty and would name every parameter; write all for that", ["all"])
    try:
        expression = re.compile(pattern.removeprefix("re:"))
    except re.error as error:
        raise PatternError(pattern, f"is not a regular expression: {error}") from error
    return [name for name in names if expression.search(name)]


def _under(prefixes: Sequence[str], facts: ModelFacts) -> list[str]:
    """Names that are one of ``prefixes`` or, where a prefix ends with a dot, lie under it; in model order."""
    modules = tuple(prefix for prefix in prefixes if prefix.endswith("."))
    return [p.name for p in facts.parameters if p.name in prefixes or p.name.startswith(modules)]


def _near(pattern: str, facts: ModelFacts) -> list[str]:
    """Up to four names that the writer of ``pattern`` may have meant."""
    modules: dict[str, None] = {}
    for parameter in facts.parameters:
        parts = parameter.name.split(".")
        modules.update(dict.fromkeys(".".join(parts[:end]) for end in range(1, len(parts) + 1)))
    candidates = [*ALIASES, *modules]
    wanted = pattern.removeprefix("re:").rstrip("*.").lstrip("*.")
    inside = [name for name in candidates if wanted and wanted in name][:2]
    close = difflib.get_close_matches(wanted, candidates, n=3, cutoff=0.5)
    last = wanted.rsplit(".", 1)[-1]
    ends = {name.rsplit(".", 1)[-1]: name for name in reversed(candidates)}
    by_end = [ends[end] for end in difflib.get_close_matches(last, list(ends), n=2, cutoff=0.6)]
    return list(dict.fromkeys([*inside, *close, *by_end]))[:4]
