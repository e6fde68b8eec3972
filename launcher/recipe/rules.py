"""What the types of a recipe cannot say: how its keys must fit one another.

One small named rule each; a rule takes a valid `Recipe` and yields problems with dotted paths (stages by name), to
which `recipe.reading` adds file and line. Nothing here looks at the model, the data or the machine. A key that was
written and that nothing would read is a problem too: no key is ever ignored.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator

from launcher.errors import Problem
from launcher.recipe import CausalLM, ImageClassification, Recipe, lora_rules, table_rules
from launcher.recipe import slurm as slurm_options
from launcher.recipe.allowed import joined
from launcher.recipe.data import HubData, ImageFolderData, TableData
from launcher.recipe.places import stages, where_of

Rule = Callable[[Recipe], Iterator[Problem]]


def check(recipe: Recipe) -> list[Problem]:
    """All problems of all rules."""
    return [problem for rule in RULES for problem in rule(recipe)]


def stage_names_are_unique(recipe: Recipe) -> Iterator[Problem]:
    names = [stage.name for stage in recipe.stages]
    for index, name in enumerate(names):
        if name in names[:index]:
            first = names.index(name)
            yield Problem(f"stages.{index}.name", f"{name!r} is already the name of stage {first}; choose another")


def exactly_one_of_epochs_and_steps(recipe: Recipe) -> Iterator[Problem]:
    for where, stage in stages(recipe):
        if stage.epochs is not None and stage.steps is not None:
            both = f"both steps: {stage.steps} and epochs: {stage.epochs} are set"
            yield Problem(f"{where}.steps", f"{both}; keep one and take the other out, or set it to null")
        if stage.epochs is None and stage.steps is None:
            yield Problem(where, "says neither epochs nor steps; add one of them, such as epochs: 1")


def micro_size_divides_global_size(recipe: Recipe) -> Iterator[Problem]:
    for where, stage in stages(recipe):
        micro, whole = stage.batch.micro_size, stage.batch.global_size
        if micro != "auto" and whole % micro:
            divisors = [size for size in range(1, whole + 1) if whole % size == 0]
            near = min(divisors, key=lambda size: abs(size - micro))
            message = f"{micro} does not divide batch.global_size {whole}; did you mean {near}? or write auto"
            yield Problem(f"{where}.batch.micro_size", message)


def nesterov_needs_momentum(recipe: Recipe) -> Iterator[Problem]:
    for where, stage in stages(recipe):
        if stage.optimizer.kind == "sgd" and stage.optimizer.nesterov and stage.optimizer.momentum == 0:
            message = "true needs a momentum above 0, which is 0; set optimizer.momentum, such as 0.9"
            yield Problem(f"{where}.optimizer.nesterov", message)


def offload_needs_zero(recipe: Recipe) -> Iterator[Problem]:
    for where, stage in stages(recipe):
        strategy = stage.sharding.strategy
        if stage.sharding.offload != "none" and strategy in ("auto", "ddp"):
            asked = "auto, which chooses itself" if strategy == "auto" else strategy
            message = f"{stage.sharding.offload!r} needs zero1, zero2 or zero3, but sharding.strategy is {asked}"
            yield Problem(f"{where}.sharding.offload", f"{message}; name one of them, or take offload out")


def nvme_needs_zero3(recipe: Recipe) -> Iterator[Problem]:
    for where, stage in stages(recipe):  # DeepSpeed swaps under ZeRO-3 alone, and fp32 tensors
        path, is_swapped = stage.sharding.nvme_path, stage.sharding.offload == "nvme"
        if path is not None and not is_swapped:
            message = f"{path!r} is for offload: nvme; write that, or take it out"
            yield Problem(f"{where}.sharding.nvme_path", message)
        if is_swapped and stage.sharding.strategy in ("zero1", "zero2"):
            message = f"'nvme' needs zero3, but strategy is {stage.sharding.strategy}; write zero3, or offload: cpu"
            yield Problem(f"{where}.sharding.offload", message)
        if is_swapped and getattr(stage.optimizer, "state_dtype", "fp32") != "fp32":
            message = "'bf16' cannot be swapped to files, which hold fp32; write fp32, or sharding.offload: cpu"
            yield Problem(f"{where}.optimizer.state_dtype", message)
        if path is not None and is_swapped and not path.startswith(("/", "$")):
            message = f"{path!r} is not absolute; name a folder such as /scratch or $SLURM_TMPDIR, or take it out"
            yield Problem(f"{where}.sharding.nvme_path", message)


def master_needs_bf16_under_ddp(recipe: Recipe) -> Iterator[Problem]:
    """ZeRO hands the optimizer fp32 partitions, which are the masters; a module in fp32 is its own."""
    for where, stage in stages(recipe):
        if stage.optimizer.kind != "adamw" or stage.optimizer.master == "none":
            continue
        message = f"{stage.optimizer.master!r} is for precision: bf16 under sharding.strategy: ddp, but"
        for key, value, wanted in (
            ("precision", stage.precision, "bf16"),
            ("sharding.strategy", stage.sharding.strategy, "ddp"),
        ):
            if value != wanted:
                asked = f"{value}, which chooses itself" if value == "auto" else value
                message = f"{message} {key} is {asked}; write {key}: {wanted}, or take master out"
                yield Problem(f"{where}.optimizer.master", message)
                break


def first_stage_carries_nothing(recipe: Recipe) -> Iterator[Problem]:
    if recipe.stages[0].optimizer_state == "carry":
        where = f"{where_of(recipe, 0)}.optimizer_state"
        yield Problem(where, "'carry' in the first stage, before which there is no state; take it out")


def carry_needs_the_same_optimizer(recipe: Recipe) -> Iterator[Problem]:
    for index, stage in enumerate(recipe.stages[1:], start=1):
        last = recipe.stages[index - 1]
        if stage.optimizer_state == "carry" and stage.optimizer.kind != last.optimizer.kind:
            kinds = f"{last.name} trains with {last.optimizer.kind}, {stage.name} with {stage.optimizer.kind}"
            message = f"'carry' takes over the state of the same kind of optimizer, but {kinds}; write reset"
            yield Problem(f"{where_of(recipe, index)}.optimizer_state", message)


# --- what the task takes ----------------------------------------------------------------------------------------------
def columns_are_of_the_task(recipe: Recipe) -> Iterator[Problem]:
    for column in recipe.data.columns:
        if column not in recipe.task.COLUMNS:
            message = f"{recipe.task.kind} has no column {column!r}{_did_you_mean(column, recipe.task.COLUMNS)}"
            yield Problem(f"data.columns.{column}", f"{message}; it takes {joined(recipe.task.COLUMNS)}")


def labels_are_at_least_two_and_distinct(recipe: Recipe) -> Iterator[Problem]:
    labels = None if isinstance(recipe.task, CausalLM) else recipe.task.labels
    if labels is None:
        return
    if len(labels) < 2:
        yield Problem("task.labels", f"{labels} is too few; name at least 2 labels, or take the key out")
    for index, label in enumerate(labels):
        if label in labels[:index]:
            yield Problem(f"task.labels.{index}", f"label {label!r} is already number {labels.index(label)}; keep one")


def best_is_a_metric_of_the_task(recipe: Recipe) -> Iterator[Problem]:
    metrics = recipe.task.METRICS
    for where, stage in stages(recipe):
        best = stage.evaluate.best
        if best is not None and best not in metrics:
            message = f"{best!r} is not a metric of {recipe.task.kind}{_did_you_mean(best, metrics)}"
            yield Problem(f"{where}.evaluate.best", f"{message}; it takes {joined(metrics)}")


def best_is_the_same_everywhere(recipe: Recipe) -> Iterator[Problem]:
    """One model is exported, so one metric chooses it."""
    named = [(where, stage.evaluate.best) for where, stage in stages(recipe) if stage.evaluate.best is not None]
    for where, best in named[1:]:
        if best != named[0][1]:
            message = f"{best!r} differs from {named[0][1]!r} of {named[0][0]}; one metric chooses what is exported"
            yield Problem(f"{where}.evaluate.best", f"{message}, so name it at the top")


def best_needs_an_evaluation(recipe: Recipe) -> Iterator[Problem]:
    named = [(where, stage.evaluate.best) for where, stage in stages(recipe) if stage.evaluate.best]
    if not named:
        return
    where, best = named[0]
    if all(stage.evaluate.every == "never" for stage in recipe.stages):
        message = f"{best!r} cannot choose: evaluate.every is never in every stage; write 1ep, or take best out"
        yield Problem(f"{where}.evaluate.best", message)
    elif (last := recipe.stages[-1].evaluate).best and last.every == "never":
        message = "'never' in the last stage, so evaluate.best can never choose its weights; write end, or best: null"
        yield Problem(f"{where_of(recipe, -1)}.evaluate.every", f"{message} to export its last ones")
    if _has_no_validation(recipe):
        message = f"{best!r} needs validation rows, but data.split.validation is 0 and data.files names none"
        yield Problem(f"{where}.evaluate.best", f"{message}; give it a share such as 0.1, or take best out")


def head_init_needs_a_new_head(recipe: Recipe) -> Iterator[Problem]:
    if isinstance(recipe.task, CausalLM) and recipe.model.head.init != "default":
        message = f"{recipe.model.head.init!r} is for a new head, but causal-lm keeps the model's own; take it out"
        yield Problem("model.head.init", message)


def sources_fit_the_task(recipe: Recipe) -> Iterator[Problem]:
    """Images come from folders, the hub or tables with a column of paths; text does not come from image folders."""
    is_image = isinstance(recipe.task, ImageClassification)
    if isinstance(recipe.data, ImageFolderData) and not is_image:
        message = f"imagefolder holds images, but task.kind is {recipe.task.kind}; use csv, json, parquet, text or hub"
        yield Problem("data.source", message)
    if recipe.data.source == "text" and not isinstance(recipe.task, CausalLM):
        message = f"text files hold no labels, but {recipe.task.kind} needs them; use csv, json or parquet"
        yield Problem("data.source", message)


def files_name_train(recipe: Recipe) -> Iterator[Problem]:
    files = None if isinstance(recipe.data, HubData) else recipe.data.files
    if isinstance(files, dict) and "train" not in files:
        yield Problem("data.files", f"names {joined(tuple(files))} but no train; add train: PATH")


def torchvision_is_for_images(recipe: Recipe) -> Iterator[Problem]:
    if _is_torchvision(recipe) and not isinstance(recipe.task, ImageClassification):
        message = f"{recipe.model.source!r} classifies images, but task.kind is {recipe.task.kind}"
        yield Problem("model.source", f"{message}; name a hub id or a folder, or set task.kind: image-classification")


# --- keys that nothing would read -------------------------------------------------------------------------------------
def model_keys_are_of_the_source(recipe: Recipe) -> Iterator[Problem]:
    model = recipe.model
    is_hub_id = not _is_torchvision(recipe) and not model.source.startswith(("package:", ".", "/", "~"))
    if model.revision is not None and not is_hub_id:
        message = f"{model.revision!r} is for models of the hub, but model.source is {model.source!r}; take it out"
        yield Problem("model.revision", message)
    if model.gguf_file is not None and _is_torchvision(recipe):
        message = f"{model.gguf_file!r} is not for torchvision models, which have no GGUF files; take it out"
        yield Problem("model.gguf_file", message)
    if model.weights not in ("pretrained", "random") and not _is_torchvision(recipe):
        near = _did_you_mean(model.weights, ("pretrained", "random"))
        message = f"{model.weights!r} is not allowed{near}; it takes pretrained or random; only torchvision models"
        yield Problem("model.weights", f"{message} take a path here, others take theirs in model.source")


def data_keys_are_read_by_the_task(recipe: Recipe) -> Iterator[Problem]:
    data, written = recipe.data, recipe.data.model_fields_set
    if "max_length" in written and isinstance(recipe.task, ImageClassification):
        yield Problem("data.max_length", f"{data.max_length} is in tokens, and images have none; take it out")


def split_keys_are_read(recipe: Recipe) -> Iterator[Problem]:
    """A split is only made where the data names no validation rows, and stratified only where it is made."""
    split, written = recipe.data.split, recipe.data.split.model_fields_set
    if _names_validation(recipe):
        for key in sorted({"validation", "stratify"} & written):
            value = getattr(split, key)
            if value:
                message = f"{value!r} is for data without validation rows, but yours names them; take one out"
                yield Problem(f"data.split.{key}", message)
    elif split.stratify is not None and split.validation == 0:
        message = f"{split.stratify!r} has nothing to split: data.split.validation is 0; give a share such as 0.1"
        yield Problem("data.split.stratify", f"{message}, or take stratify out")


def evaluate_micro_size_is_read(recipe: Recipe) -> Iterator[Problem]:
    for where, stage in stages(recipe):
        size = stage.evaluate.micro_size
        if size is not None and all(one.evaluate.every == "never" for one in recipe.stages):
            yield Problem(f"{where}.evaluate.micro_size", f"{size} is never used: evaluate.every is never; take it out")


def slurm_options_agree(recipe: Recipe) -> Iterator[Problem]:
    places = [("slurm", recipe.slurm)] + [
        (f"stages.{stage.name}.slurm", stage.slurm) for stage in recipe.stages if stage.slurm != recipe.slurm
    ]
    for place, options in places:
        yield from (Problem(f"{place}.{key}", message) for key, message in slurm_options.conflicts(options))


RULES: tuple[Rule, ...] = (
    stage_names_are_unique,
    exactly_one_of_epochs_and_steps,
    micro_size_divides_global_size,
    nesterov_needs_momentum,
    offload_needs_zero,
    nvme_needs_zero3,
    master_needs_bf16_under_ddp,
    first_stage_carries_nothing,
    carry_needs_the_same_optimizer,
    columns_are_of_the_task,
    labels_are_at_least_two_and_distinct,
    best_is_a_metric_of_the_task,
    best_is_the_same_everywhere,
    best_needs_an_evaluation,
    head_init_needs_a_new_head,
    sources_fit_the_task,
    files_name_train,
    torchvision_is_for_images,
    *lora_rules.RULES,
    *table_rules.RULES,
    model_keys_are_of_the_source,
    data_keys_are_read_by_the_task,
    split_keys_are_read,
    evaluate_micro_size_is_read,
    slurm_options_agree,
)


# --- shared by the rules ----------------------------------------------------------------------------------------------
def _is_torchvision(recipe: Recipe) -> bool:
    return recipe.model.source.startswith("torchvision:")


def _names_validation(recipe: Recipe) -> bool:
    data = recipe.data
    if isinstance(data, HubData):
        return "validation" in data.splits
    return isinstance(data.files, dict) and "validation" in data.files


def _has_no_validation(recipe: Recipe) -> bool:
    """Known without a look at the data: a folder of images or the hub may bring their own."""
    is_table = isinstance(recipe.data, TableData)
    return is_table and recipe.data.split.validation == 0 and not _names_validation(recipe)


def _did_you_mean(word: str, words: tuple[str, ...]) -> str:
    near = difflib.get_close_matches(word.lower(), words, n=1)
    return f"; did you mean {near[0]!r}?" if near else ""
