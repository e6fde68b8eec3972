"""The adapters of a run alone, in peft's own format: what ``PeftModel.from_pretrained(base, RUN/adapter)`` loads.

Owns ``adapter_model.safetensors`` and ``adapter_config.json``, and the question whether there can be such a folder: the
base must be one that others can load, so a run that trained any of it has none. The task's head goes with the adapters.
Written beside and renamed, as `export` does. Called by `walk`.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from launcher import models
from launcher.models import adapters, transformers_source
from launcher.models.parameter_names import is_adapter
from launcher.models.weights import WeightsReader
from launcher.plan import RunPlan
from launcher.plan.parameters import select

WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model."
"""What peft puts before every name."""
TASK_TYPES = {"text-classification": "SEQ_CLS", "causal-lm": "CAUSAL_LM", "image-classification": None}
"""Task kind -> peft's word for it; of the last it has none."""


def write(plan: RunPlan, weights: Path, destination: Path) -> str | None:
    """Write the folder from a stage's folder of weights, replacing one that is there. One rank calls this.

    Returns:
        Why there is none, in words; None: there is one.
    """
    recipe, recipe_dir = plan.recipe, Path(plan.recipe_dir)
    num_labels = len(plan.labels) if plan.labels is not None else None
    facts = models.facts(plan.model, recipe.task, num_labels, recipe_dir)
    base: Any = models.outline(plan.model.model_copy(update={"lora": None}), recipe.task, plan.labels, recipe_dir)
    head = select(["head"], facts)
    trained = {name for stage in plan.stages for name in stage.trained_names}
    # A classifier's head may have started new, and then it is nowhere else though no stage trained it.
    keeps_head = plan.labels is not None or not trained.isdisjoint(head)
    if why := _no_base(plan, trained - set(head), keeps_head and _is_tied(base)):
        return why
    plain = plan.model.model_copy(update={"lora": None})
    new = set(models.starts_anew(plain, recipe.task, plan.labels, recipe_dir, destination.parent))
    if missing := sorted(new - set(head if keeps_head else ())):
        return f"the base's files have no values for {len(missing)} of its tensors, {missing[0]} first: they were drawn"
    names = [one.name for one in facts.parameters if one.is_adapter or (keeps_head and one.name in head)]
    temporary = destination.with_name(f".writing-{destination.name}")
    for stale in (temporary, destination):
        shutil.rmtree(stale, ignore_errors=True)
    temporary.mkdir()
    with WeightsReader(weights) as reader:
        save_file({PREFIX + name: reader.tensor(name) for name in names}, temporary / WEIGHTS, {"format": "pt"})
    _configuration(plan, base, facts.head if keeps_head else ()).save_pretrained(temporary)
    os.replace(temporary, destination)
    return None


def _no_base(plan: RunPlan, trained_of_base: set[str], shares_head: bool) -> str | None:
    """Why nobody could load the model that the adapters belong to."""
    own = sorted(name for name in trained_of_base if not is_adapter(name))
    if plan.recipe.model.weights != "pretrained":
        return f"the base has {plan.recipe.model.weights} weights, which are nowhere else"
    if own:
        return f"the run trained {len(own)} tensors of the base too, {own[0]} first, and that base is nowhere else"
    return "the run trained the output layer, which is the base's input embeddings too" if shares_head else None


def _is_tied(base: Any) -> bool:
    output, inputs = base.get_output_embeddings(), base.get_input_embeddings()
    return output is not None and output.weight is inputs.weight


def _configuration(plan: RunPlan, base: Any, head: tuple[str, ...]) -> Any:
    model, lora = plan.model, plan.model.lora
    assert lora is not None, "only a recipe with model.lora has adapters"
    config = adapters.configuration(base, lora, plan.lora_targets or ())
    config.init_lora_weights, config.inference_mode = True, True
    config.task_type = TASK_TYPES[plan.recipe.task.kind]
    config.base_model_name_or_path = transformers_source.locate(model, Path(plan.recipe_dir))
    config.revision = model.revision
    # Prefixes of modules, or full names of parameters: see `ModelFacts.head`.
    config.modules_to_save = [name.rpartition(".")[0] for name in head] or None
    return config
