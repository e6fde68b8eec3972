"""The recipe: what a user writes in YAML, as frozen types with the unit and meaning of each field.

Owns the names and the allowed values of every key. Refuses unknown keys and wrong types. In the order to read them:

    types          the small types that fields are made of
    task           the kinds of task, and the model
    data           where rows come from
    optimizers     the rules of the step, and the schedules
    sharding       how it is spread over the ranks
    slurm          what `thawline submit` may ask for
    stages         what a stage is, and what it may set again
    recipe         the whole

    yaml_tree      YAML with the line of every key; merge: extends, ``--set``, stages over the recipe
    rules          what fields must be to one another
    problems       every error at once, with place, near names (`allowed`) and what to do
    reading        a file -> `Recipe`
    differences    two recipes of one run
    schema         JSON Schema, for editors
"""

from launcher.recipe.data import (
    SOURCES_NOT_BUILT_YET,
    Data,
    DataSettings,
    Files,
    HubData,
    ImageFolderData,
    Split,
    TableData,
)
from launcher.recipe.optimizers import (
    SCHEDULES_NOT_BUILT_YET,
    SGD,
    Adam,
    AdamW,
    Constant,
    Cosine,
    Exponential,
    Linear,
    Optimizer,
    Schedule,
)
from launcher.recipe.recipe import Recipe, Tracking, Wandb
from launcher.recipe.sharding import SHARDING_NOT_BUILT_YET, Sharding
from launcher.recipe.slurm import Slurm
from launcher.recipe.stages import Batch, Checkpoint, Evaluate, Stage, StageSettings
from launcher.recipe.task import (
    CLASSIFICATION_METRICS,
    TASKS_NOT_BUILT_YET,
    CausalLM,
    Head,
    ImageClassification,
    Lora,
    Model,
    Task,
    TextClassification,
)

__all__ = [
    "CLASSIFICATION_METRICS",
    "SCHEDULES_NOT_BUILT_YET",
    "SGD",
    "SHARDING_NOT_BUILT_YET",
    "SOURCES_NOT_BUILT_YET",
    "TASKS_NOT_BUILT_YET",
    "Adam",
    "AdamW",
    "Batch",
    "CausalLM",
    "Checkpoint",
    "Constant",
    "Cosine",
    "Data",
    "DataSettings",
    "Evaluate",
    "Exponential",
    "Files",
    "Head",
    "HubData",
    "ImageClassification",
    "ImageFolderData",
    "Linear",
    "Lora",
    "Model",
    "Optimizer",
    "Recipe",
    "Schedule",
    "Sharding",
    "Slurm",
    "Split",
    "Stage",
    "StageSettings",
    "TableData",
    "Task",
    "TextClassification",
    "Tracking",
    "Wandb",
]
