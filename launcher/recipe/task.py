"""The kinds of task, and the model that learns one.

Each kind says which columns it reads (what `data.columns` may rename) and which metrics `evaluate.best` may name.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from launcher.recipe.types import PositiveInt, Probability, Strict

TASKS_NOT_BUILT_YET = (
    "token-classification", "question-answering", "sft", "seq2seq", "masked-lm", "object-detection",
    "semantic-segmentation", "audio-classification", "speech-recognition", "autoencoder",
)  # fmt: skip

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
    """Transforms of the training images only; evaluation never augments. A transformers model's own processor comes
    after them."""
    image_size: PositiveInt | None = None
    """Side of the square image in pixels. A transformers processor keeps its way and shows the same part of the image;
    for torchvision the shorter side becomes this, and the middle of the longer one is seen. None: what the model's
    processor or the torchvision weights say."""


class CausalLM(Strict):
    """Predict the next token. Columns: text."""

    COLUMNS: ClassVar[tuple[str, ...]] = ("text",)
    METRICS: ClassVar[tuple[str, ...]] = ("loss", "perplexity")
    kind: Literal["causal-lm"]
    end_of_text: bool | Literal["auto"] = "auto"
    """Whether the tokenizer's end token is put after each text and trained, so that the model learns where to stop. It
    counts in ``data.max_length``; a text that is cut gets none. auto: yes, where the tokenizer has one."""


Task = Annotated[TextClassification | ImageClassification | CausalLM, Field(discriminator="kind")]


class Head(Strict):
    """The task's output layer."""

    init: Literal[
        "default", "normal", "xavier_uniform", "xavier_normal", "kaiming_uniform", "kaiming_normal", "zeros"
    ] = "default"
    """How a new head is initialised; ``default`` is the model library's own way. Biases become zero in the others."""


class Lora(Strict):
    """Low-rank adapters (Hu et al., 2021): beside each chosen linear layer W a trained product B A, so that the layer
    computes (W + alpha / rank · B A) x. B starts at zero, so the model starts unchanged; A starts from the seed."""

    rank: PositiveInt = 16
    """Rows of A and columns of B; an adapter of a layer from n to m features has rank · (n + m) parameters."""
    alpha: PositiveInt = 32
    """The product counts alpha / rank times."""
    dropout: Probability = 0.0
    """Probability with which an adapter's input is dropped while it trains; the layer's own input never is."""
    targets: Literal["auto"] | Annotated[list[str], Field(min_length=1)] = "auto"
    """Linear layers: the ends of their names (``q_proj``, ``attn.q_proj``), or globs over whole names
    (``*.layers.3?.*_proj``). auto: those that peft takes for the architecture, mostly query and value."""


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
    lora: Lora | None = None
    """Adapters beside the model's linear layers, which stages train as ``lora``; the export has them merged. null:
    none."""
