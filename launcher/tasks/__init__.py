"""What each kind of task does with a row: features, loss, metrics, an answer.

One file a kind; `TASKS` is the list of kinds. A task knows nothing of ranks, files or optimizers. The words:

    bound                 what every task offers (the protocols)
    tokens, images        rows -> features, shared by the kinds
    classification        loss, metrics and answers of the two kinds that choose a label
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from launcher.data.packing import Batch
from launcher.recipe import Task
from launcher.recipe.data import Data
from launcher.tasks.bound import BoundTask, Metrics
from launcher.tasks.causal_lm import BoundCausalLM
from launcher.tasks.image_classification import BoundImageClassification
from launcher.tasks.text_classification import BoundTextClassification

__all__ = ["TASKS", "Batch", "BoundTask", "Metrics", "bind"]

TASKS: Mapping[str, Callable[..., BoundTask]] = {
    "text-classification": BoundTextClassification,
    "image-classification": BoundImageClassification,
    "causal-lm": BoundCausalLM,
}


def bind(task: Task, data: Data, processor: Any, labels: list[str] | None, config: Any = None) -> BoundTask:
    """A task with its model's processor and its labels.

    Args:
        processor: what `models.processor` gives: a tokenizer, an `OwnProcessor` or an `ImageSpec`.
        labels: names in the order of their ids; None for tasks without labels.
        config: the transformers configuration, where there is one: tells how many positions the model has.

    Raises:
        UserError: the processor or the recipe's sizes do not fit the task.
    """
    return TASKS[task.kind](task, data, processor, labels, config)
