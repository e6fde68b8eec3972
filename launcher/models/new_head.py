"""Whether a model's head comes with its weights or starts anew, as far as can be known without the weights.

`loading.materialise` knows better, once it has read them, and says it in the log. Called by `survey`, to warn of a head
that starts at random and that no stage trains.
"""

from __future__ import annotations

from pathlib import Path

from launcher.models import torchvision_models, transformers_models
from launcher.models.transformers_source import original_configuration
from launcher.recipe import CausalLM, Model, Task


def is_head_new(model: Model, task: Task, labels: list[str] | None, recipe_dir: Path, architecture: str) -> bool:
    """Whether the head has first values of its own.

    Args:
        architecture: name of the class of the task's model.

    Raises:
        UserError: a file of ``model.weights`` that cannot be read.
    """
    if model.weights == "random" or model.head.init != "default":
        return True
    if model.source.startswith(torchvision_models.PREFIX):
        return torchvision_models.is_head_new(model, task, labels or [], recipe_dir)
    config = original_configuration(model, recipe_dir)
    saved = config.architectures or []
    if isinstance(task, CausalLM):  # a tied head is the embeddings, which come along
        bare = bool(saved) and all(name.endswith("Model") and not name.endswith("LMHeadModel") for name in saved)
        return bare and not getattr(config.get_text_config(), "tie_word_embeddings", True)
    wanted = transformers_models.configuration(model, task, labels, recipe_dir)
    return architecture not in saved or not transformers_models.same_labels(config, wanted)
