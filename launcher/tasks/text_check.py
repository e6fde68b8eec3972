"""Texts that a model cannot take, found before training.

Owns two faults: a text of which the tokenizer makes no token (blanks, control characters), so that the model sees
nothing or fails; and, for an encoder-decoder that classifies, an end token inside a text: such a model reads its answer
at the last end token and refuses a batch whose rows have other numbers of them. Only texts that may have a fault are
tokenised, which takes seconds for millions of rows: those without a letter, digit, sign or symbol, very short ones, and
those that spell the end token; all of them where the tokenizer drops what it does not know. Called by `survey`.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from launcher.data.rows import Rows
from launcher.plan.data_facts import SkippedRow
from launcher.recipe.yaml_tree import shortened

WHAT = "texts that the model cannot take"
VISIBLE = r"[\pL\pN\pP\pS]"
SHORT = 4
"""Characters of a text that is tokenised whatever it holds."""
UNKNOWN = "\u16a0\u2603\U00010348"
"""Characters that few tokenizers know: a rune, a snowman, a Gothic letter."""
AT_ONCE = 1000


def bad_texts(
    splits: Mapping[str, Rows], tokenizer: Any, config: Any, max_length: int, *, is_classified: bool
) -> list[SkippedRow]:
    """The rows whose ``text`` or ``text_pair`` has a fault, in the order of splits and rows."""
    end = config.eos_token_id if is_classified and getattr(config, "is_encoder_decoder", False) else None
    check = _Check(tokenizer, end, max_length)
    found: list[SkippedRow] = []
    for split, rows in splits.items():
        bad: dict[int, str] = {}
        for column in ("text", "text_pair"):
            if column in rows.columns:
                bad |= check.faults(rows.table[column].cast(pa.large_string()), column)
        found += [
            SkippedRow(split=split, index=index, row=rows.name(index), why=why) for index, why in sorted(bad.items())
        ]
    return found


def bad_values(
    rows: Sequence[Mapping[str, Any]], tokenizer: Any, config: Any, max_length: int, *, is_classified: bool
) -> dict[int, str]:
    """Place -> what is wrong, of rows that are in no split: the inputs of a prediction."""
    if not rows:
        return {}
    columns = {name: [row[name] for row in rows] for name in ("text", "text_pair") if name in rows[0]}
    table = Rows(pa.table({**columns, "id": [str(row["id"]) for row in rows]}))
    found = bad_texts({"": table}, tokenizer, config, max_length, is_classified=is_classified)
    return {row.index: row.why for row in found if row.index is not None}


class _Check:
    def __init__(self, tokenizer: Any, end: int | None, max_length: int) -> None:
        self._tokenizer = copy.deepcopy(tokenizer)  # a call with another length changes it
        self._max_length = max(1, max_length - tokenizer.num_special_tokens_to_add(pair=False))
        self._drops_unknown = not self._ids([UNKNOWN])[0]
        self._end = end

    def faults(self, texts: pa.ChunkedArray, column: str) -> dict[int, str]:
        """Row -> what is wrong with its text."""
        empty = pc.invert(pc.match_substring_regex(texts, VISIBLE))
        doubtful = pc.or_(empty, pc.less_equal(pc.utf8_length(texts), SHORT))
        if self._end is not None:
            spelled = self._tokenizer.convert_ids_to_tokens(self._end)
            doubtful = pc.or_(doubtful, pc.match_substring(texts, spelled))
        if self._drops_unknown:
            doubtful = pa.chunked_array([pa.array(np.ones(len(texts), bool))])
        places = np.flatnonzero(doubtful.to_numpy())
        found: dict[int, str] = {}
        for begin in range(0, len(places), AT_ONCE):
            some = places[begin : begin + AT_ONCE]
            held = texts.take(pa.array(some)).to_pylist()
            for place, text, ids in zip(some.tolist(), held, self._ids(held), strict=True):
                if not ids:
                    found[place] = f"{column} {shortened(repr(text))} gives no token"
                elif self._end in ids:
                    end = self._tokenizer.convert_ids_to_tokens(self._end)
                    found[place] = f"{column} {shortened(repr(text))} holds the end token {end!r}, which ends each text"
        return found

    def _ids(self, texts: list[str]) -> list[list[int]]:
        encoded: list[list[int]] = self._tokenizer(
            texts, add_special_tokens=False, truncation=True, max_length=self._max_length
        )["input_ids"]
        return encoded
