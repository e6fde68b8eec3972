"""Texts that a model cannot take, against the tokenizers and the models that fail on them."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BartConfig, BartForSequenceClassification, PreTrainedTokenizerFast

from launcher.data.rows import Rows
from launcher.tasks.text_check import bad_texts

SPECIAL = ["<s>", "<pad>", "</s>", "<unk>"]
TEXTS = [
    "a plain text", "", " ", "\t\n", "\u00a0\u3000", "\u200b\u200d\ufeff", "\x00\x01\x7f", "\u0301\u0300", "\u00ad",
    "\u3164", "\u2800", ".", "?!", "☃", "😀", "\U00010348", "é", "漢字", "\u202ea", "\ue000", "\uffff", "\u2028 \u2029",
    "</s>", "an end </s> inside", "ends with </s>", "< /s>", "<pad> <s>", "</s", "long " * 40 + "</s>", "\u200b" * 50,
    "a" * 300, " " * 300,
]  # fmt: skip


def wrapped(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )


def bytes_tokenizer() -> PreTrainedTokenizerFast:
    """As BART's and GPT-2's, without merges: whatever is in a text gives a token."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={token: place for place, token in enumerate(SPECIAL + alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return wrapped(tokenizer)


def words_tokenizer() -> PreTrainedTokenizerFast:
    """As BERT's: control characters and accents go, what is not known becomes one token."""
    vocabulary = {token: place for place, token in enumerate([*SPECIAL, "a", "plain", "text", "."])}
    tokenizer = Tokenizer(models.WordPiece(vocab=vocabulary, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return wrapped(tokenizer)


def letters_tokenizer() -> PreTrainedTokenizerFast:
    """Drops what it does not know."""
    vocabulary = {token: place for place, token in enumerate([*SPECIAL, *"abcdefghijklmnopqrstuvwxyz"])}
    return wrapped(Tokenizer(models.BPE(vocab=vocabulary, merges=[])))


def rows_of(texts: list[str], pairs: list[str] | None = None) -> Rows:
    columns: dict[str, Any] = {"text": texts} | ({"text_pair": pairs} if pairs else {})
    return Rows(pa.table(columns | {"id": [f"row {place}" for place in range(len(texts))]}))


@pytest.mark.parametrize("make", [bytes_tokenizer, words_tokenizer, letters_tokenizer])
def test_texts_without_a_token_are_those_that_the_tokenizer_gives_none_for(make: Any) -> None:
    tokenizer = make()
    texts = TEXTS * 3
    empty = [place for place, text in enumerate(texts) if not tokenizer(text, add_special_tokens=False)["input_ids"]]
    assert empty
    found = bad_texts({"train": rows_of(texts)}, tokenizer, BartConfig(), 64, is_classified=False)
    assert [row.index for row in found] == empty
    assert [row.row for row in found] == [f"row {place}" for place in empty]
    assert "gives no token" in found[0].why
    assert found[0].split == "train"


def test_texts_with_an_end_token_are_those_on_which_bart_fails() -> None:
    tokenizer = bytes_tokenizer()
    config = BartConfig(
        vocab_size=len(tokenizer), d_model=8, encoder_layers=1, decoder_layers=1, encoder_attention_heads=1,
        decoder_attention_heads=1, encoder_ffn_dim=8, decoder_ffn_dim=8, max_position_embeddings=64,
        bos_token_id=0, pad_token_id=1, eos_token_id=2, decoder_start_token_id=2, num_labels=2,
    )  # fmt: skip
    model = BartForSequenceClassification(config).eval()
    failed = []
    for place, text in enumerate(TEXTS):
        batch = tokenizer(["plain", text], padding=True, truncation=True, max_length=64, return_tensors="pt")
        batch.pop("token_type_ids", None)
        try:
            with torch.no_grad():
                model(**batch)
        except (ValueError, RuntimeError):
            failed.append(place)
    assert [TEXTS[place] for place in failed] == ["</s>", "an end </s> inside", "ends with </s>"], "the last is cut off"
    splits = {"train": rows_of(["plain"]), "test": rows_of(TEXTS)}
    found = bad_texts(splits, tokenizer, config, 64, is_classified=True)
    assert [(row.split, row.index) for row in found if "end token '</s>'" in row.why] == [("test", n) for n in failed]
    assert not [row for row in bad_texts(splits, tokenizer, config, 64, is_classified=False) if "end" in row.why]


def test_the_second_text_of_a_pair_counts_too() -> None:
    found = bad_texts(
        {"train": rows_of(["a", "b", "c"], ["d", "\u200b", "e"])},
        words_tokenizer(),
        BartConfig(),
        8,
        is_classified=True,
    )
    assert [(row.index, row.why) for row in found] == [(1, "text_pair '\\u200b' gives no token")]


def test_the_tokenizer_that_is_exported_keeps_its_settings() -> None:
    tokenizer = words_tokenizer()
    before = tokenizer.backend_tokenizer.to_str()
    bad_texts({"train": rows_of(TEXTS)}, tokenizer, BartConfig(), 8, is_classified=True)
    assert tokenizer.backend_tokenizer.to_str() == before
