"""Predict each next token of a text."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional

from launcher.data.packing import Batch
from launcher.errors import UserError
from launcher.recipe import CausalLM
from launcher.recipe.data import Data
from launcher.tasks.bound import Features, Metrics, Row
from launcher.tasks.mean_loss import MeanLoss
from launcher.tasks.tokens import Tokens, as_weights, num_tokens

NO_TARGET = -100
"""Label where there is nothing to predict: padding, and rows of weight 0."""


class BoundCausalLM:
    """Rows have ``text``; logits are [B, T, vocabulary], labels the input's own tokens, shifted by the loss."""

    auto_class: ClassVar[str] = "AutoModelForCausalLM"
    best_direction: ClassVar[Mapping[str, Literal["max", "min"]]] = {"loss": "min", "perplexity": "min"}

    def __init__(self, task: CausalLM, data: Data, processor: Any, labels: None, config: Any) -> None:
        if data.max_length < 2:
            raise UserError(
                f"data.max_length {data.max_length}: one token has no next one to predict; set it to 2 or more"
            )
        self._tokens = Tokens(task.kind, processor, data.max_length, config)
        self._end = end_token(task, processor)
        text_config = config.get_text_config() if config is not None else None
        self._vocabulary: int | None = getattr(text_config, "vocab_size", None)

    @property
    def random_loss(self) -> float | None:
        """ln(vocabulary)."""
        return math.log(self._vocabulary) if self._vocabulary else None

    def notes(self) -> list[str]:
        """Which token ends each text."""
        if self._end is not None:
            return [f"each text ends with {self._end[0]!r}, counted in data.max_length; a text cut at its end does not"]
        return ["no end token is added to the texts, so the model learns no end (task.end_of_text)"]

    def encode_rows(self, rows: Sequence[Row], *, augment_seeds: Sequence[int] | None) -> list[Features]:
        """Token ids, and the end token; texts have no augmentation."""
        encoded = self._tokens.encode_whole([row["text"] for row in rows], self._end[1] if self._end else None)
        return [{**features, "id": row["id"]} for features, row in zip(encoded, rows, strict=True)]

    def encode(self, row: Row, *, augment_seed: int | None) -> Features:
        """One row -> features."""
        return self.encode_rows([row], augment_seeds=None)[0]

    def collate(self, rows: list[Features], weights: list[float]) -> Batch:
        """Pad to the longest; the padding token may be a real one (often the end of text), so the mask decides."""
        inputs = self._tokens.inputs(rows)
        counted = as_weights(weights)
        is_target = inputs["attention_mask"].bool() & (counted > 0)[:, None]
        labels = inputs["input_ids"].where(is_target, NO_TARGET)
        size = float((labels[:, 1:] != NO_TARGET).sum())
        return Batch(inputs, labels, counted, [row["id"] for row in rows], size, num_tokens(inputs, counted))

    def loss(self, logits: Tensor, batch: Batch) -> Tensor:
        """Cross entropy of each next token in float32, summed over the tokens that count."""
        return token_losses(logits, batch.labels).sum()

    def metrics(self, device: torch.device) -> Metrics:
        """Mean loss over all predicted tokens, and its exponential."""
        return PerplexityMetrics(self, device)

    def decode(self, logits: Tensor, batch: Batch) -> list[dict[str, Any]]:
        """How well the model foresees each text: mean loss a token, and perplexity."""
        sums = token_losses(logits, batch.labels).sum(-1)
        counts = (batch.labels[:, 1:] != NO_TARGET).sum(-1)
        means = (sums / counts.clamp(min=1)).tolist()
        return [
            {"id": row, "loss": mean, "perplexity": perplexity(mean)}
            for row, weight, mean in zip(batch.ids, batch.weights, means, strict=True)
            if weight
        ]


def end_token(task: CausalLM, tokenizer: Any) -> tuple[str, int] | None:
    """What ends each text, as a token and its id; None: nothing.

    Raises:
        UserError: the recipe asks for an end token, and the tokenizer has none.
    """
    if task.end_of_text is False or (task.end_of_text == "auto" and tokenizer.eos_token_id is None):
        return None
    if tokenizer.eos_token_id is None:
        raise UserError(
            "task.end_of_text: true: the tokenizer has no end token; set eos_token in the model's "
            "tokenizer_config.json, or end_of_text: false"
        )
    return str(tokenizer.eos_token), int(tokenizer.eos_token_id)


def token_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """float32 [B, T]: at t the loss of predicting token t + 1; 0 where there is nothing to predict."""
    # The labels are shifted, not the logits: a slice of the largest tensor of the step would be a copy of it.
    targets = functional.pad(labels[:, 1:], (0, 1), value=NO_TARGET)
    flat = logits.view(-1, logits.shape[-1]).float()
    return functional.cross_entropy(flat, targets.reshape(-1), ignore_index=NO_TARGET, reduction="none").view_as(labels)


def perplexity(mean_loss: float) -> float:
    """exp(mean loss a token); infinite beyond what a float holds."""
    return math.exp(mean_loss) if mean_loss < 700 else math.inf


class PerplexityMetrics:
    """Mean loss a predicted token, and its exponential."""

    def __init__(self, task: BoundCausalLM, device: torch.device) -> None:
        self._loss = MeanLoss(task, device)

    def update(self, logits: Tensor, batch: Batch) -> None:
        """Count one batch. Every rank calls this for every batch, those without a counting row too."""
        self._loss.update(logits, batch)

    def compute(self) -> dict[str, float]:
        """Each measure over the batches of all ranks."""
        loss = self._loss.compute()
        return {"loss": loss, "perplexity": perplexity(loss)}
