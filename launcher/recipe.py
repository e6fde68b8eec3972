"""The recipe: what a user writes in YAML, as frozen types with the unit and meaning of each field.

Owns the names and the allowed values of every key. Refuses unknown keys and wrong types; it does not read files
(`recipe_io`), compare fields with one another (`rules`) or look at the model and the data (`survey`).
The keys a stage may set again are in `StageSettings`; a `Stage` holds them all, merged, so nobody looks them up twice.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from launcher.recipe_data import Data
from launcher.recipe_sharding import Sharding
from launcher.recipe_types import (
    Betas,
    Interval,
    Name,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Probability,
    Strict,
)
from launcher.slurm_options import Slurm

TASKS_NOT_BUILT_YET = (
    "token-classification", "question-answering", "sft", "seq2seq", "masked-lm", "object-detection",
    "semantic-segmentation", "audio-classification", "speech-recognition", "autoencoder",
)  # fmt: skip
SOURCES_NOT_BUILT_YET = ("audiofolder", "voc")
SCHEDULES_NOT_BUILT_YET = ("step", "polynomial", "plateau")

# --- the task ---------------------------------------------------------------------------------------------------------
# Each kind says which columns it reads (what `data.columns` may rename) and which metrics `evaluate.best` may name.
CLASSIFICATION_METRICS = ("accuracy", "f1", "precision", "recall", "loss")


class TextClassification(Strict):
    """One label for a text, or for a pair of texts. Columns: text, text_pair (optional), label."""

    COLUMNS: ClassVar[tuple[str, ...]] = ("text", "text_pair", "label")
    METRICS: ClassVar[tuple[str, ...]] = CLASSIFICATION_METRICS
    kind: Literal["text-classification"]
    labels: list[str] | None = None
    """Label names in the order of their ids. None: the distinct values of the training split, sorted."""


class ImageClassification(Strict):
    """One label for an image. Columns: image, label."""

    COLUMNS: ClassVar[tuple[str, ...]] = ("image", "label")
    METRICS: ClassVar[tuple[str, ...]] = CLASSIFICATION_METRICS
    kind: Literal["image-classification"]
    labels: list[str] | None = None
    """Label names in the order of their ids. None: the distinct values of the training split, sorted."""
    augment: Literal["none", "flip", "randaugment"] = "none"
    """Transforms of the training images only; evaluation never augments."""
    image_size: PositiveInt | None = None
    """Side of the square image in pixels. None: what the model's processor or the torchvision weights say."""


class CausalLM(Strict):
    """Predict the next token. Columns: text."""

    COLUMNS: ClassVar[tuple[str, ...]] = ("text",)
    METRICS: ClassVar[tuple[str, ...]] = ("loss", "perplexity")
    kind: Literal["causal-lm"]


Task = Annotated[TextClassification | ImageClassification | CausalLM, Field(discriminator="kind")]


# --- the model --------------------------------------------------------------------------------------------------------
class Head(Strict):
    """The task's output layer."""

    init: Literal[
        "default", "normal", "xavier_uniform", "xavier_normal", "kaiming_uniform", "kaiming_normal", "zeros"
    ] = "default"
    """How a new head is initialised; ``default`` is the model library's own way. Biases become zero in the others."""


class Model(Strict):
    """Which model, and the weights it starts from."""

    source: str = Field(min_length=1)
    """Hub id, folder, ``package:IMPORT/PATH`` inside an installed package, or ``torchvision:NAME``."""
    revision: str | None = None
    """Commit, branch or tag on the hub."""
    weights: str = "pretrained"
    """``pretrained``, ``random``, or for torchvision the path of a state dict."""
    gguf_file: str | None = None
    """Name of the GGUF file inside the model's folder, when the weights are in one."""
    head: Head = Head()
    dropout: Probability | None = None
    """Set: overrides every dropout probability of the model."""


# --- what a stage may set again ---------------------------------------------------------------------------------------
class Batch(Strict):
    """global_size = micro_size x accumulation x ranks."""

    global_size: PositiveInt = 32
    """Samples in one optimizer step, over all ranks."""
    micro_size: PositiveInt | Literal["auto"] = "auto"
    """Samples a rank takes through the model at once. auto: of the divisors of global_size / ranks up to 32 the fastest
    that fits the memory by the plan, mostly the largest; a stage whose step runs out of memory all the same goes on
    with the next smaller one."""


class AdamW(Strict):
    """AdamW with decoupled weight decay (Loshchilov and Hutter, 2019), through `thawline_kernels`."""

    kind: Literal["adamw"] = "adamw"
    learning_rate: PositiveFloat = 2.0e-5
    """Peak of the schedule."""
    weight_decay: NonNegativeFloat = 0.01
    """Not applied to biases and norms."""
    betas: Betas = (0.9, 0.999)
    """Decay of the running means of the gradient and of its square, each step."""
    epsilon: PositiveFloat = 1.0e-8
    """Added to the root of the mean square."""
    implementation: Literal["auto", "fused", "torch"] = "auto"
    """auto: the compiled step where it can be had, else the reference, and says so; fused: compiled or an error."""
    master: Literal["none", "split16", "fp32"] = "none"
    """How ddp keeps the full value of weights whose module is in bf16, as ZeRO's is. split16: the 16 bits that bf16
    lacks, 14 bytes for each element that trains, gradient included; fp32: a whole copy, 16 bytes; none: the module
    itself stays in fp32 and computes in bf16 under autocast, 16 bytes and what autocast casts. Exports hold the full
    value. ZeRO keeps its own masters."""
    state_dtype: Literal["fp32", "bf16"] = "fp32"
    """Of the two running means. bf16 takes 4 bytes an element less, and the second is rounded stochastically."""


class Adam(Strict):
    """Adam (Kingma and Ba, 2015); weight decay, if any, is L2 in the gradient."""

    kind: Literal["adam"]
    learning_rate: PositiveFloat = 1.0e-3
    """Peak of the schedule."""
    weight_decay: NonNegativeFloat = 0.0
    """Not applied to biases and norms."""
    betas: Betas = (0.9, 0.999)
    """Decay of the running means of the gradient and of its square, each step."""
    epsilon: PositiveFloat = 1.0e-8
    """Added to the root of the mean square."""


class SGD(Strict):
    """Stochastic gradient descent; weight decay is L2 in the gradient."""

    kind: Literal["sgd"]
    learning_rate: PositiveFloat = 1.0e-2
    """Peak of the schedule."""
    weight_decay: NonNegativeFloat = 0.0
    """Not applied to biases and norms."""
    momentum: Probability = 0.0
    """Share of the last step's direction that is kept."""
    nesterov: bool = False
    """Look ahead along the momentum (needs momentum above 0)."""


Optimizer = Annotated[AdamW | Adam | SGD, Field(discriminator="kind")]


class Constant(Strict):
    """Warm-up, then the full rate."""

    kind: Literal["constant"]
    warmup: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Share of the stage's optimizer steps."""


class Linear(Strict):
    """Warm-up, then a straight line to ``end`` x the rate."""

    kind: Literal["linear"] = "linear"
    warmup: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Share of the stage's optimizer steps."""
    end: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Factor of the learning rate after the last step."""


class Cosine(Strict):
    """Warm-up, then half a cosine down to ``end`` x the rate (Loshchilov and Hutter, 2017, eq. 5)."""

    kind: Literal["cosine"]
    warmup: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Share of the stage's optimizer steps."""
    end: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Factor of the learning rate after the last step."""


class Exponential(Strict):
    """Warm-up, then the rate falls by the same factor each step, down to ``end`` x the rate after the last."""

    kind: Literal["exponential"]
    warmup: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Share of the stage's optimizer steps."""
    end: Annotated[float, Field(gt=0, le=1)] = 0.1
    """Factor of the learning rate after the last step."""


Schedule = Annotated[Constant | Linear | Cosine | Exponential, Field(discriminator="kind")]


class Evaluate(Strict):
    """When the validation split is measured, and which measure chooses what is exported."""

    every: Interval | Literal["end", "never"] = "1ep"
    """``end``: once, after the stage's last step."""
    best: str | None = None
    """A metric of the task; the best evaluation of the run is exported. None: the last weights are."""
    micro_size: PositiveInt | None = None
    """Samples a rank evaluates at once. None: twice the training micro size, and half as many each time that memory
    runs out in an evaluation."""


class Checkpoint(Strict):
    """When a resumable checkpoint is written; one is always written at a stage's end."""

    every: Interval | Literal["auto"] = "auto"
    """auto: each epoch."""
    keep: PositiveInt = 2
    """The newest that are kept; the best one is kept besides."""


class StageSettings(Strict):
    """The keys that stand at the top of a recipe and can be set again in one stage."""

    batch: Batch = Batch()
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """auto: bf16 on GPUs that have it, else fp32."""
    seed: NonNegativeInt = 0
    """Of the order of the rows, of augmentation and dropout, and of new weights."""
    optimizer: Optimizer = AdamW()
    """The rule of the step, with its peak learning rate."""
    schedule: Schedule = Linear()
    """The learning rate's way over the stage's optimizer steps."""
    clip_grad_norm: PositiveFloat | None = None
    """Largest global L2 norm of the gradient; None: no clipping."""
    evaluate: Evaluate = Evaluate()
    checkpoint: Checkpoint = Checkpoint()
    sharding: Sharding = Sharding()
    slurm: Slurm = Slurm()
    """What `thawline submit` asks SLURM for. It changes nothing in the training, so a run may go on under another. One
    stage's own needs ``--split-stages``, which makes each stage a job of its own."""
    gradient_checkpointing: bool | Literal["auto"] = "auto"
    """Compute activations of the blocks that train a second time, in the backward, instead of keeping them: less memory
    for about a third more computation, and the same bits. auto: only where no faster way fits the GPUs."""


class Stage(StageSettings):
    """One part of the training: what thaws, for how long, and how."""

    name: Name
    """Unique in the recipe; names the stage in folders, logs and ``--set``."""
    train: list[str] = Field(min_length=1)
    """``head``, ``backbone``, ``all``, ``layers[-2:]``, or globs and ``re:`` patterns over parameter names."""
    epochs: PositiveInt | None = None
    """Passes over the training split; exactly one of epochs and steps."""
    steps: PositiveInt | None = None
    """Optimizer steps."""
    learning_rates: dict[str, PositiveFloat] = {}
    """Pattern -> learning rate of the parameters it names, instead of the optimizer's; the last that matches holds."""
    layer_decay: Annotated[float, Field(gt=0, le=1)] | None = None
    """The learning rate is multiplied by this for each layer of depth below the head, frozen or not."""
    optimizer_state: Literal["reset", "carry"] = "reset"
    """carry: go on with the last stage's optimizer state for the parameters that trained in both, by name."""
    batch_norm: Literal["auto", "frozen", "train"] = "auto"
    """Running statistics. auto: frozen where the module's parameters are all frozen, updated elsewhere."""


class Wandb(Strict):
    """Weights & Biases."""

    project: str = Field(min_length=1)
    """The project that the run appears in."""
    mode: Literal["auto", "online", "offline", "disabled"] = "auto"
    """auto: online when a key is set, offline otherwise."""
    entity: str | None = None
    """The team or user it belongs to. None: the key's own."""
    group: str | None = None
    """A name that several runs share, to show them together."""
    tags: list[str] = []
    """Words to find the run by."""


class Tracking(Strict):
    """Where the curves go besides ``metrics.jsonl``."""

    wandb: Wandb | None = None
    """Weights & Biases. None: not used."""
    log_every: PositiveInt = 10
    """Optimizer steps between two lines of training metrics."""


class Recipe(StageSettings):
    """A whole recipe, merged and checked. The ``StageSettings`` here are the defaults its stages were merged over."""

    name: Name
    """Names the run and its default folder, ``runs/NAME``."""
    task: Task
    """What is learned; its kind says which columns it reads and which metrics it has."""
    model: Model
    data: Data
    """Where the rows come from."""
    stages: list[Stage] = Field(min_length=1)
    """In the order they run."""
    tracking: Tracking = Tracking()
