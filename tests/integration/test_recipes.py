"""Every shipped recipe runs through the real command to an export that loads, made smaller by ``--set`` alone.

Where the model or the data of a recipe lies on the hub, a stand-in of the same kind takes its place: scikit-learn's
digits for images, MiniLM for BERT, a random Llama of nine thin layers for the one of 8B parameters. What is learned is
checked where seconds suffice: the digits. Each recipe runs once.
"""

from __future__ import annotations

import csv
import gzip
import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from running import MINILM, ROOT, TWEETS, metrics, proof, thawline, thin_llama
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from launcher.file_locations import existing_path
from launcher.models.weights import read_weights

RECIPES = ROOT / "recipes"
FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
"""Where Debian's package dataset-fashion-mnist puts its four files."""


def run_recipe(name: str, folder: Path, changes: dict[str, Any], ranks: int = 1) -> Path:
    """Run a shipped recipe with ``--set KEY=VALUE`` for each change; the run's folder, after all proofs held."""
    run = folder / name
    overrides = [part for key, value in changes.items() for part in ("--set", f"{key}={json.dumps(value)}")]
    thawline("run", RECIPES / f"{name}.yaml", "--ranks", str(ranks), "--run-dir", run, *overrides)
    assert json.loads((run / "status.json").read_text())["state"] == "finished"
    for stage in plan(run)["stages"]:
        assert proof(run, f"{stage['index']:02d}-{stage['name']}")["holds"]
    train = [line for line in metrics(run) if line["split"] == "train"]
    assert train
    assert all(math.isfinite(line["loss"]) for line in train)
    return run


def plan(run: Path) -> dict[str, Any]:
    """The run's ``plan.json``."""
    content: dict[str, Any] = json.loads((run / "plan.json").read_text())
    return content


def best(run: Path, metric: str, choose: Any) -> float:
    """The metric that chose what was exported."""
    value: float = choose(line[metric] for line in metrics(run) if line["split"] == "validation")
    return value


def exported_network(run: Path) -> torch.nn.Module:
    """The exported torchvision network, loaded by torchvision alone, in evaluation mode."""
    config = json.loads((run / "model" / "config.json").read_text())
    network = torchvision.models.get_model(config["name"], num_classes=config["num_labels"], **config["arguments"])
    network.load_state_dict(load_file(run / "model" / "model.safetensors"))
    return network.eval()


def write_images(folder: Path, images: np.ndarray, labels: list[str]) -> Path:
    """``folder/LABEL/NNNN.png`` from grey levels of shape [rows, height, width]; returns the folder."""
    for row, (image, label) in enumerate(zip(images, labels, strict=True)):
        path = folder / label / f"{row:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    return folder


def image_folder(files: Path, **settings: Any) -> dict[str, Any]:
    """``data`` of a folder of images."""
    return {"source": "imagefolder", "files": str(files), "split": {"validation": 0.2, "stratify": "label"}} | settings


@pytest.fixture
def digits(tmp_path: Path) -> Path:
    """All of scikit-learn's digits, written by the script that the recipe names."""
    from importlib.util import module_from_spec, spec_from_file_location

    spec = spec_from_file_location("write_digits", ROOT / "tests" / "write_digits.py")
    assert spec is not None
    assert spec.loader is not None
    script = module_from_spec(spec)
    spec.loader.exec_module(script)
    script.write_digits(tmp_path / "digits")
    return tmp_path / "digits"


@pytest.fixture(autouse=True)
def _no_gigabytes_left(tmp_path: Path) -> Iterator[None]:
    """pytest keeps the folders of its last three runs; the checkpoints need not be among them."""
    yield
    for checkpoints in tmp_path.glob("*/checkpoints"):
        shutil.rmtree(checkpoints)


def test_every_shipped_recipe_is_run_here() -> None:
    text = Path(__file__).read_text()
    elsewhere = {"llama8b_lora"}  # by the ranks of test_lora.py
    assert {path.stem for path in RECIPES.glob("*.yaml") if f'run_recipe("{path.stem}", ' not in text} == elsewhere


# --- texts ------------------------------------------------------------------------------------------------------------
def test_quickstart(tmp_path: Path) -> None:
    """Four steps of it; the whole of it is a step of its own in CI."""
    changes = {"data.limit": 200, "stages.head.steps": 2, "stages.full.steps": 2, "data.max_length": 16}
    run = run_recipe("quickstart", tmp_path, changes)
    model = AutoModelForSequenceClassification.from_pretrained(run / "model")
    assert model.config.id2label == {0: "negative", 1: "neutral", 2: "positive"}
    log = thawline("logs", run).stdout
    assert " data: 180 train, 20 validation rows; 3 labels in train: negative 4" in log
    assert " first row (train, " in log
    assert "tokens, data.max_length: [CLS] " in log or " tokens: [CLS] " in log
    for line in (" head  step 2/2  loss ", " full  step 2/2  loss ", " validation: accuracy 0.", " model: "):
        assert line in log, log
    assert "{'" not in log, "words, and no dictionaries"


def test_bert_csv(tmp_path: Path) -> None:
    """A file with the columns text and label; MiniLM stands in for BERT."""
    tweets = existing_path(str(TWEETS["files"]), tmp_path, "test")
    with tweets.open(encoding="latin-1", newline="") as source, (tmp_path / "own.csv").open("w", newline="") as own:
        rows = [(row["text"], row["sentiment"]) for row in csv.DictReader(source)]
        csv.writer(own).writerows([("text", "label"), *rows[::600]])
    changes = {"model.source": MINILM, "data.files": str(tmp_path / "own.csv"), "data.max_length": 16}
    run = run_recipe("bert_csv", tmp_path, changes)
    stages = plan(run)["stages"]
    assert [stage["steps"] for stage in stages] == [2, 2, 4]
    assert len(stages[2]["groups"]) > len(stages[1]["groups"])  # layer_decay: a rate for each depth
    model = AutoModelForSequenceClassification.from_pretrained(run / "model")
    tokenizer = AutoTokenizer.from_pretrained(run / "model")
    assert model(**tokenizer("what a day", return_tensors="pt")).logits.shape == (1, model.config.num_labels)


# --- images -----------------------------------------------------------------------------------------------------------
def test_digits_resnet18(tmp_path: Path, digits: Path) -> None:
    """A third of the digits, once over for each stage: far above the 10% of a guess."""
    run = run_recipe("digits_resnet18", tmp_path, {"data": image_folder(digits, limit=600), "stages.full.epochs": 1})
    accuracy = best(run, "accuracy", max)
    assert accuracy > 0.5
    found = json.loads(thawline("evaluate", run).stdout)
    assert found["accuracy"] == pytest.approx(accuracy, abs=1e-6)
    image, folder, answers = min((digits / "4").iterdir()), tmp_path / "some", tmp_path / "answers.csv"
    (folder / "deep").mkdir(parents=True)
    for number, file in enumerate(sorted((digits / "4").iterdir())[:3]):
        shutil.copy(file, folder / ("deep" if number else "") / file.name)
    thawline("predict", run, image, folder, "-o", answers)
    with answers.open(newline="") as file:
        alone, *walked = csv.DictReader(file)
    assert [Path(row["id"]).name for row in walked] == sorted(
        (path.name for path in folder.rglob("*.png")), key=lambda name: str(next(folder.rglob(name)))
    )
    assert {row["label"] for row in walked} <= {str(digit) for digit in range(10)}
    again = next(row for row in walked if Path(row["id"]).name == image.name)
    assert float(again["score"]) == pytest.approx(float(alone["score"]), abs=1e-5)
    assert 0 < float(alone["score"]) <= 1


def test_fashion_mnist_resnet18(tmp_path: Path) -> None:
    """The real images, from Debian's package instead of the hub; two processes prepare the batches."""
    if not FASHION_MNIST.is_dir():
        pytest.skip(f"no {FASHION_MNIST}: apt-get install dataset-fashion-mnist")
    with gzip.open(FASHION_MNIST / "t10k-images-idx3-ubyte.gz") as file:
        images = np.frombuffer(file.read(16 + 240 * 28 * 28), np.uint8, offset=16).reshape(-1, 28, 28)
    with gzip.open(FASHION_MNIST / "t10k-labels-idx1-ubyte.gz") as file:
        labels = [str(label) for label in file.read()[8 : 8 + len(images)]]
    files = write_images(tmp_path / "fashion", images, labels)
    changes = {
        "data": image_folder(files, num_workers=2), "model.weights": "random", "task.image_size": 32,
        "batch.global_size": 32, "stages.head.epochs": 1, "stages.full.epochs": 1,
    }  # fmt: skip
    run = run_recipe("fashion_mnist_resnet18", tmp_path, changes)
    optimizers = [stage["settings"]["optimizer"] for stage in plan(run)["stages"]]
    assert [(one["kind"], one["momentum"], one["nesterov"]) for one in optimizers] == [("sgd", 0.9, True)] * 2
    assert exported_network(run)(torch.zeros(1, 3, 32, 32)).shape == (1, 10)


def test_resnet50_cifar10(tmp_path: Path, digits: Path) -> None:
    """The head learns by SGD with momentum, and moves no running statistics of the frozen network; all of it does."""
    changes = {
        "data": image_folder(digits, limit=100), "model.weights": "random", "task.image_size": 32,
        "batch.global_size": 16, "stages.head.epochs": 1, "stages.full.epochs": 1, "checkpoint.keep": 9,
    }  # fmt: skip
    run = run_recipe("resnet50_cifar10", tmp_path, changes)
    head, full = plan(run)["stages"]
    optimizer = head["settings"]["optimizer"]
    assert (optimizer["kind"], optimizer["momentum"], optimizer["learning_rate"]) == ("sgd", 0.9, 1e-2)
    assert full["settings"]["optimizer"]["learning_rate"] == 1e-3
    start, after_head, after_full = (
        read_weights(run / "checkpoints" / name / "model")
        for name in ("00-head-step-00000000", "00-head-step-00000005", "01-full-step-00000005")
    )
    statistics = [name for name in start if "running_" in name or name.endswith("num_batches_tracked")]
    assert len(statistics) == 3 * 53
    for name in statistics:
        assert torch.equal(start[name], after_head[name]), name
        assert not torch.equal(after_head[name], after_full[name]), name
    exported = exported_network(run).state_dict()
    chosen = [all(torch.equal(exported[name], state[name]) for name in start) for state in (after_head, after_full)]
    assert sum(chosen) == 1


def test_resnet50_stanford_dogs(tmp_path: Path, digits: Path) -> None:
    changes = {
        "data": image_folder(digits, limit=60), "model.weights": "random", "task.image_size": 32,
        "batch.global_size": 16, **{f"stages.{stage}.epochs": 1 for stage in ("head", "top", "full")},
    }  # fmt: skip
    run = run_recipe("resnet50_stanford_dogs", tmp_path, changes)
    assert plan(run)["recipe"]["task"]["augment"] == "randaugment"
    head, top, full = ({name for group in stage["groups"] for name in group["names"]} for stage in plan(run)["stages"])
    assert head == {"fc.weight", "fc.bias"}
    assert {name.split(".")[0] for name in top - head} == {"layer4"}
    assert full == {name for name, _ in exported_network(run).named_parameters()}


# --- language models --------------------------------------------------------------------------------------------------
def test_llama8b_zero3_and_its_offload_variant(tmp_path: Path) -> None:
    """Real ZeRO-3 engines on two ranks, and with offload on one: the same losses up to rounding."""
    changes = {
        "model": {"source": str(thin_llama(tmp_path / "llama")), "weights": "random"}, "precision": "fp32",
        "data": TWEETS | {"columns": {"text": "text"}, "split": {"validation": 0.1}, "limit": 60, "max_length": 12},
        "batch.global_size": 4, "tracking.log_every": 1,
        **{f"stages.{stage}.steps": 2 for stage in ("head", "top", "full")},
    }  # fmt: skip
    plain = run_recipe("llama8b_zero3", tmp_path, changes, ranks=2)
    offloaded = run_recipe("llama8b_zero3_offload", tmp_path, changes)
    for run, offload, ranks in ((plain, "none", 2), (offloaded, "cpu", 1)):
        for stage in ("00-head", "01-top", "02-full"):
            engine = proof(run, stage)["engine"]
            assert (engine["engine"], engine["zero_stage"]) == ("DeepSpeedEngine", 3)
            assert (engine["offload"], engine["ranks"]) == (offload, ranks)
        frozen = {p["name"] for p in proof(run, "01-top")["parameters"] if not p["trained"]}
        assert {name for name in frozen if "layers." in name} == {name for name in frozen if "layers.0." in name}
        assert {"model.embed_tokens.weight", "model.layers.0.mlp.up_proj.weight"} <= frozen
        model = AutoModelForCausalLM.from_pretrained(run / "model")
        assert model.lm_head.weight.shape == (30522, 16)
    losses = [[line["loss"] for line in metrics(run)] for run in (plain, offloaded)]
    assert len(losses[0]) == 6 + 3
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


def test_smollm2_causal(tmp_path: Path) -> None:
    """The real SmolLM2, from the GGUF file of its package."""
    changes = {
        "data.limit": 40, "data.max_length": 12, "batch.global_size": 4, "tracking.log_every": 1,
        "stages.top.steps": 1, "stages.full.steps": 1,
    }  # fmt: skip
    run = run_recipe("smollm2_causal", tmp_path, changes)
    loss = best(run, "loss", min)
    found = json.loads(thawline("evaluate", run).stdout)
    assert found["loss"] == pytest.approx(loss, rel=1e-5)
    assert found["perplexity"] == pytest.approx(math.exp(loss), rel=1e-4)
    assert 1 < found["perplexity"] < 49152  # the size of its vocabulary is that of a guess
