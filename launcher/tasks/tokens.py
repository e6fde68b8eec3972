"""Texts -> token ids, and their batches."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from launcher.data.packing import pad
from launcher.errors import DataError, UserError
from launcher.models import padding


class Tokens:
    """A tokenizer cut to a length, of its own: settings made here never reach the exported one.

    Args:
        kind: of the task.
        config: of the model; None: it has none to check against.
    """

    def __init__(self, kind: str, tokenizer: Any, max_length: int, config: Any) -> None:
        if tokenizer.pad_token_id is None:
            raise UserError(
                f"{type(tokenizer).__name__} has no padding token; set pad_token in the model's tokenizer_config.json"
            )
        check_length(tokenizer, max_length, config)
        check_room(tokenizer, max_length, pair=False)
        for refusal in padding.refusals(kind, config, int(tokenizer.pad_token_id), max_length):
            raise UserError(refusal)
        self._tokenizer = copy.deepcopy(tokenizer)
        self._max_length = max_length
        text_config = config.get_text_config() if config is not None else None
        self._num_embeddings: int | None = getattr(text_config, "vocab_size", None)
        self._check_ids([[int(tokenizer.pad_token_id)]])
        self.side = padding.training_side(kind, config)
        self._fill = {
            "input_ids": int(tokenizer.pad_token_id),
            "token_type_ids": int(getattr(tokenizer, "pad_token_type_id", 0)),
            "attention_mask": 0,
        }

    def encode(self, texts: Sequence[str], pairs: Sequence[str] | None = None) -> list[dict[str, list[int]]]:
        """Model inputs of each text, or pair of texts, cut to the length.

        Raises:
            DataError: the length has no room for a pair.
            UserError: a token for which the model has no embedding.
        """
        if pairs is not None:
            check_room(self._tokenizer, self._max_length, pair=True)
        encoded = self._tokenizer(
            list(texts),
            list(pairs) if pairs is not None else None,
            truncation=True,
            max_length=self._max_length,
            return_attention_mask=True,
        )
        self._check_ids(encoded["input_ids"])
        return _rows(encoded)

    def encode_whole(self, texts: Sequence[str], end: int | None) -> list[dict[str, list[int]]]:
        """Model inputs of each text with one token ``end`` after it, unless its end is cut.

        A text longer than the length is cut where the tokenizer cuts: at its end, so that no end is learned where there
        is none; or at its beginning, behind the tokenizer's own first tokens.

        Raises:
            UserError: a token for which the model has no embedding.
        """
        # Not cut by the tokenizer, which would put its own last tokens behind the cut.
        encoded = self._tokenizer(list(texts), truncation=False, return_attention_mask=True, verbose=False)
        rows = _rows(encoded)
        is_cut_left = self._tokenizer.truncation_side == "left"
        first = _num_before(self._tokenizer) if is_cut_left else self._max_length
        for row in rows:
            ids = row["input_ids"]
            while end is not None and ids[-2:] == [end, end]:  # the text's own, and the tokenizer's
                for values in row.values():
                    values.pop()
            if end is not None and ids[-1:] != [end] and (is_cut_left or len(ids) < self._max_length):
                for name, values in row.items():
                    last = {"input_ids": end, "attention_mask": 1}
                    values.append(last.get(name, values[-1] if values else 0))
            excess = max(0, len(ids) - self._max_length)
            for values in row.values():
                del values[first : first + excess]
        self._check_ids([row["input_ids"] for row in rows])
        return rows

    def _check_ids(self, rows: Sequence[Sequence[int]]) -> None:
        """On a GPU such an id is an assertion of the device's, which names nothing."""
        largest = max((max(ids, default=0) for ids in rows), default=0)
        if self._num_embeddings is not None and largest >= self._num_embeddings:
            token = self._tokenizer.convert_ids_to_tokens(largest)
            raise UserError(
                f"the tokenizer gives token {largest} ({token!r}), and the model has embeddings for 0 to "
                f"{self._num_embeddings - 1}: they are not of the same model, or tokens were added; "
                "put the model's own tokenizer beside its config.json"
            )

    def inputs(self, encoded: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        """Model inputs of a batch, each [B, longest]."""
        names = [name for name in encoded[0] if name in self._fill]
        return {name: pad([row[name] for row in encoded], self._fill[name], self.side) for name in names}


def _rows(encoded: Any) -> list[dict[str, list[int]]]:
    return [{name: encoded[name][row] for name in encoded} for row in range(len(encoded["input_ids"]))]


def _num_before(tokenizer: Any) -> int:
    """Tokens that the tokenizer puts before each text."""
    whole, text = tokenizer("a")["input_ids"], tokenizer("a", add_special_tokens=False)["input_ids"]
    return next((at for at in range(len(whole)) if whole[at : at + len(text)] == text), 0)


def check_room(tokenizer: Any, max_length: int, *, pair: bool) -> None:
    """Refuse a length that the tokenizer's own tokens fill: it would cut whole texts, or nothing at all.

    Raises:
        DataError: with the least that will do.
    """
    own = int(tokenizer.num_special_tokens_to_add(pair=pair))
    least = own + (2 if pair else 1)
    if max_length < least:
        what = "two texts" if pair else "a text"
        raise DataError(
            f"data.max_length {max_length}: the tokenizer adds {own} tokens of its own to {what}, which leaves no room "
            f"for {'both' if pair else 'it'}; set it to {least} or more"
        )


def check_length(tokenizer: Any, max_length: int, config: Any) -> None:
    """Refuse texts longer than the model has positions for, before one is met in the middle of a run.

    Raises:
        DataError: with the longest that fits.
    """
    positions, limit = getattr(config, "max_position_embeddings", None), tokenizer.model_max_length
    if not positions and max_length > limit > 0:
        raise DataError(
            f"data.max_length {max_length}: the model's tokenizer has model_max_length {limit}; set it to {limit} or "
            "less, or, where the model takes longer texts, change that in its tokenizer_config.json"
        )
    if not positions or positions <= 0:  # XLNet says -1: its positions are relative, so there is no longest text
        return
    if config is not None and getattr(config, "model_type", None) in padding.POSITIONS_FROM_PADDING:
        positions -= (config.pad_token_id or 0) + 1
    if max_length > positions:
        raise DataError(
            f"data.max_length {max_length}: the model has {positions} positions; set it to {positions} or less"
        )


def num_tokens(inputs: dict[str, Tensor], weights: Tensor) -> int:
    """Tokens that are not padding, of the rows that count."""
    return int((inputs["attention_mask"].sum(-1) * (weights > 0)).sum())


def as_weights(weights: Sequence[float]) -> Tensor:
    """[B] float32."""
    return torch.tensor(weights, dtype=torch.float32)
