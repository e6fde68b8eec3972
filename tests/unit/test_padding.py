"""A text's answer does not depend on the texts beside it: in training, in evaluation, and in plain transformers."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from pydantic import TypeAdapter
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import nn

from benchmarks import tiny_families
from launcher import export, tasks
from launcher import models as our_models
from launcher.data.packing import pad
from launcher.errors import UserError
from launcher.models import own_task, padding
from launcher.models.transformers_models import reads_ahead
from launcher.models.weights import load_weights, named_state, write_weights
from launcher.recipe import CausalLM, Model, Task, TextClassification
from launcher.recipe.data import Data

TEXT = TextClassification(kind="text-classification")
CAUSAL = CausalLM(kind="causal-lm")
LABELS = ["bad", "so", "good"]
WORDS = ["a", "fine", "day", "what", "terrible", "way", "to", "lose", "book", "no", "rain", "it"]
SPECIAL = ["<pad>", "<s>", "</s>", "<unk>", "<fill>"]
TEXTS = [
    "no",
    "a fine day </s>",  # ends with the token that pads where there is no other
    "what a terrible terrible way to lose a fine book",
    "it rain it",
    "fine <fill> day <fill>",
    "</s> </s>",
]
SIZES: dict[str, Any] = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32, "vocab_size": 17,
    "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
LAYERS: dict[str, Any] = {
    "d_model": 16, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 2, "decoder_attention_heads": 2,
    "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "max_position_embeddings": 40, "vocab_size": 17, "bos_token_id": 1,
    "eos_token_id": 2, "decoder_start_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
FAMILIES: dict[str, transformers.PreTrainedConfig] = {
    "gpt2": transformers.GPT2Config(
        n_embd=16, n_layer=2, n_head=2, vocab_size=17, n_positions=40, bos_token_id=1, eos_token_id=2
    ),
    "llama": transformers.LlamaConfig(**SIZES, num_key_value_heads=1),
    "mistral": transformers.MistralConfig(**SIZES, num_key_value_heads=1, sliding_window=4, head_dim=8),
    "opt": transformers.OPTConfig(**SIZES, ffn_dim=32, word_embed_proj_dim=16, max_position_embeddings=40),
    "bloom": transformers.BloomConfig(hidden_size=16, n_layer=2, n_head=2, vocab_size=17, eos_token_id=2),
    "gpt_neox": transformers.GPTNeoXConfig(**SIZES),
    "jamba": transformers.JambaConfig(
        **SIZES, num_key_value_heads=1, attn_layer_period=2, attn_layer_offset=1, expert_layer_period=2, num_experts=2,
        mamba_d_state=4, mamba_dt_rank=2, use_mamba_kernels=False,
    ),
    "bert": transformers.BertConfig(**SIZES, pad_token_id=0),
    "roberta": transformers.RobertaConfig(**SIZES, pad_token_id=0, max_position_embeddings=40),
    "modernbert": transformers.ModernBertConfig(
        **SIZES, pad_token_id=0, cls_token_id=1, sep_token_id=2, global_attn_every_n_layers=2, local_attention=4
    ),
    "xlnet": transformers.XLNetConfig(vocab_size=17, d_model=16, n_layer=2, n_head=2, d_inner=32, eos_token_id=2),
    "bart": transformers.BartConfig(**LAYERS),
    "t5": transformers.T5Config(
        vocab_size=17, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2, pad_token_id=0, eos_token_id=2,
        decoder_start_token_id=0,
    ),
}  # fmt: skip
WALKED = {
    "text-classification": [
        "albert", "big_bird", "biogpt", "distilbert", "electra", "falcon", "gemma2", "gpt_neo", "longformer", "mixtral",
        "mpnet", "mpt", "phi3", "squeezebert", "xlm",
    ],
    "causal-lm": ["bert", "bert-generation", "biogpt", "gpt_neo", "gpt_neox", "mpt", "xglm", "xlm"],
}  # fmt: skip
"""Architectures beside `FAMILIES` and those that are refused; ``make test-padding`` walks all that transformers has."""
FINDS_END = ("bart", "t5")
"""Their heads look for the end token, so it cannot pad, nor stand inside a text."""
REFUSED = {
    ("roberta", "<fill>"): "counts positions from pad_token_id 0",
    ("roberta", None): "counts positions from pad_token_id 0",
    ("bart", None): "finds a text's end by token 2, which pads too",
    ("t5", None): "finds a text's end by token 2, which pads too",
}


def word_tokenizer(pad: str | None, side: str, *, ends: bool = False) -> Any:
    """A token for each word; ``ends``: each text then ends with the end token."""
    vocabulary = {word: number for number, word in enumerate([*SPECIAL, *WORDS])}
    raw = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if ends:
        raw.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 2)])
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=raw, eos_token="</s>", unk_token="<unk>", pad_token=pad, padding_side=side
    )


def source(folder: Path, config: Any, tokenizer: Any, task: Task) -> Model:
    """A folder with pretrained weights, livelier than new ones."""
    config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    model = Model(source=str(folder), weights="random")
    module = our_models.materialise(model, task, LABELS if task is TEXT else None, 1, folder)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.dim() > 1:
                parameter.mul_(3)
    write_weights(named_state(module), folder / "weights")
    return model


def bound(model: Model, task: Task, folder: Path) -> tuple[tasks.BoundTask, Any]:
    data = TypeAdapter(Data).validate_python({"source": "csv", "files": "a.csv", "max_length": 32})
    labels = LABELS if task is TEXT else None
    processor = our_models.processor(model, task, folder)
    config = our_models.configuration(model, task, labels, folder)
    return tasks.bind(task, data, processor, labels, config), processor


def logits_of(module: nn.Module, inputs: Any) -> list[torch.Tensor]:
    """Of each row, without padding: [labels] or [tokens, vocabulary]."""
    with torch.no_grad():
        logits = module(**inputs).logits
    masks = inputs["attention_mask"].bool()
    return [row[mask] if logits.dim() == 3 else row for row, mask in zip(logits, masks, strict=True)]


def assert_alike(module: nn.Module, encode: Any, texts: list[str]) -> list[torch.Tensor]:
    """Each text alone, in the batch of all, and in the reversed batch; returns the logits of the first."""
    alone = [logits_of(module, encode([text]))[0] for text in texts]
    for order in (texts, texts[::-1]):
        together = dict(zip(order, logits_of(module, encode(order)), strict=True))
        for text, expected in zip(texts, alone, strict=True):
            torch.testing.assert_close(together[text], expected, atol=1e-5, rtol=1e-5)
    return alone


@pytest.mark.parametrize(
    ("side", "pad_token"), [("left", "<pad>"), ("right", "<pad>"), ("left", None), ("left", "<fill>")]
)
@pytest.mark.parametrize(
    ("task", "family"),
    [*((TEXT, family) for family in FAMILIES), *((CAUSAL, family) for family in ("gpt2", "llama", "opt", "jamba"))],
    ids=lambda one: one if isinstance(one, str) else one.kind,
)
def test_a_text_alone_and_beside_others(
    family: str, pad_token: str | None, side: str, task: Task, tmp_path: Path
) -> None:
    """None: the end token pads, of which texts have one too; ``<fill>``: config.json says another."""
    config, ends = FAMILIES[family], family in FINDS_END
    texts = [text for text in TEXTS if not (ends and "</s>" in text)]
    if task is CAUSAL:
        texts = [text for text in texts if "</s>" not in text]
    tokenizer = word_tokenizer(pad_token, side, ends=ends)
    model = source(tmp_path, config, tokenizer, task)
    labels = LABELS if task is TEXT else None
    if refused := REFUSED.get((family, pad_token)):
        with pytest.raises(UserError, match=refused):
            bound(model, task, tmp_path)
        return
    ours, processor = bound(model, task, tmp_path)
    module = our_models.skeleton(model, task, labels, tmp_path).eval()
    load_weights(module, tmp_path / "weights")

    def encoded(some: list[str]) -> dict[str, torch.Tensor]:
        rows = [{"text": text, "id": text} for text in some]
        return ours.collate(ours.encode_rows(rows, augment_seeds=None), [1.0] * len(rows)).model_inputs

    in_training = assert_alike(module, encoded, texts)
    export.export_model(model, task, labels, tmp_path, tmp_path / "weights", tmp_path / "model", processor, "card")
    auto = transformers.AutoModelForSequenceClassification if task is TEXT else transformers.AutoModelForCausalLM
    plain = auto.from_pretrained(tmp_path / "model").eval()
    own = transformers.AutoTokenizer.from_pretrained(tmp_path / "model")
    in_plain = assert_alike(plain, lambda some: own(some, padding=True, return_tensors="pt"), texts)
    for trained, used in zip(in_training, in_plain, strict=True):
        without_end = trained[: len(used)] if task is CAUSAL else trained
        torch.testing.assert_close(used, without_end, atol=1e-5, rtol=1e-5)
    assert plain.config.pad_token_id == own.pad_token_id
    assert not torch.allclose(in_plain[1][:1], in_plain[2][:1], atol=1e-3) or task is CAUSAL, "the test sees the texts"


def walked() -> list[tuple[str, str]]:
    """(task kind, model type)."""
    if os.environ.get("THAWLINE_WALK"):
        return [(kind, name) for kind in WALKED for name in tiny_families.names(kind)]
    return [*((kind, name) for kind, names in WALKED.items() for name in names), *padding.MIXES_PADDING]


@pytest.mark.parametrize(("kind", "model_type"), walked())
def test_the_tables_hold_for_each_architecture(kind: str, model_type: str) -> None:
    """A model whose answers padding moves, or that sees what it predicts, is refused; and no other is."""
    task = TEXT if kind == TEXT.kind else CAUSAL
    auto = transformers.AutoModelForSequenceClassification if task is TEXT else transformers.AutoModelForCausalLM
    try:
        config = tiny_families.config(kind, model_type)
        own_task.set_padding(config, 0)
        torch.manual_seed(0)
        module = auto.from_config(config, dtype=torch.float32).eval()
        rows = [[*torch.randint(10, 90, (n,)).tolist(), 2] for n in (5, 8, 9, 21, 24)]
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.mul_(3 if parameter.dim() > 1 else 1)
        alone = [logits_of(module, beside([row], kind, config))[0] for row in rows]
    except (Exception, SystemExit) as error:  # a library that is not there, or a configuration too small to be one
        pytest.skip(f"{type(error).__name__}: {error}")
    together = logits_of(module, beside(rows, kind, config))
    scale = max(float(row.abs().max()) for row in alone)
    moved = max(float((one - other).abs().max()) for one, other in zip(alone, together, strict=True)) / scale
    ahead = 0.0
    if task is CAUSAL:
        [changed] = logits_of(module, beside([[*rows[3][:-1], 7]], kind, config))
        ahead = float((changed[:-1] - alone[3][:-1]).abs().max()) / scale
    is_refused = (kind, model_type) in padding.MIXES_PADDING or (task is CAUSAL and reads_ahead(config))
    assert ((moved > 1e-4 or ahead > 1e-5) == is_refused) or (is_refused and model_type == "mra"), (moved, ahead)


def beside(rows: list[list[int]], kind: str, config: Any) -> dict[str, torch.Tensor]:
    """A batch of token ids, filled up where the model's batches are."""
    side, masks = padding.training_side(kind, config), [[1] * len(row) for row in rows]
    return {"input_ids": pad(rows, 0, side), "attention_mask": pad(masks, 0, side)}


@pytest.mark.parametrize(
    ("config", "longest"),
    [
        (transformers.BigBirdConfig(block_size=16, num_random_blocks=3), 176),
        (transformers.BigBirdConfig(attention_type="original_full"), None),
        (
            transformers.LlamaConfig(
                max_position_embeddings=4096,
                rope_parameters={
                    "rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0, "original_max_position_embeddings": 1024,
                },
            ),
            1024,
        ),
        (transformers.LlamaConfig(max_position_embeddings=4096), None),
    ],
)  # fmt: skip
def test_texts_beyond_which_a_neighbour_counts_are_refused(config: Any, longest: int | None) -> None:
    assert not list(padding.refusals("text-classification", config, 0, longest or 4096))
    if longest is not None:
        [refused] = padding.refusals("text-classification", config, 0, longest + 1)
        assert f"data.max_length {longest + 1}" in refused
        assert f"set it to {longest} or less" in refused


@pytest.mark.parametrize(
    ("model_type", "own", "exported"),
    [("llama", "left", "left"), ("llama", "right", "right"), ("gpt2", "left", "right")],
)
def test_a_language_models_tokenizer_keeps_its_side_where_padding_is_not_counted(
    model_type: str, own: padding.Side, exported: str
) -> None:
    """Batches are generated with padding on the left; GPT-2's plain forward would give them other positions."""
    config = FAMILIES[model_type]
    assert padding.exported_side("causal-lm", config, own) == exported
    assert padding.exported_side("text-classification", config, own) == "right"
