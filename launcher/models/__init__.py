"""Models: what they are made of, built without weights or with, and what a forward of one keeps.

loading                  a recipe's model -> its facts, an empty module, one with weights
architecture             the blocks in depth order, the head, what is tied
transformers_source, transformers_models, transformers_processors, torchvision_models
                         the two libraries that models come from
padding                  which side of a batch is filled up, and which models cannot be batched
own_task                 what a configuration says of the task, and nothing of the source's
own_processor, image_spec
                         how an image becomes a tensor: by transformers' own processor, or as torchvision's weights say
weights                  safetensors, whole or sharded, into a module and out of it
on_disk                  a whole model in little memory: the first weights are mapped from their files
new_head                 whether a head comes with its weights
head_init, dropout       what a recipe may ask of either
recompute                gradient checkpointing; alike_blocks: blocks that cost the same
activations, flops       bytes kept and operations done in a forward, counted on fake tensors
"""

from launcher.models.loading import (
    DEFAULT_SEED,
    configuration,
    facts,
    materialise,
    outline,
    processor,
    skeleton,
    starts_anew,
)
from launcher.models.new_head import is_head_new

__all__ = [
    "DEFAULT_SEED",
    "configuration",
    "facts",
    "is_head_new",
    "materialise",
    "outline",
    "processor",
    "skeleton",
    "starts_anew",
]
