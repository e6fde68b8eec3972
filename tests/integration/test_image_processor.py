"""A model whose processor flips colours, from the real command to ``transformers.pipeline``: the same pixels."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import transformers
import yaml
from PIL import Image
from running import thawline

from launcher import inference
from launcher.run_dir import RunDir

SIDE = 32
LABELS = ("blue", "red")


def write_images(folder: Path) -> list[Path]:
    """Photographs that differ in one thing: which of red and blue is strong. Some are turned by their EXIF data."""
    draw = np.random.default_rng(0)
    paths = []
    for number in range(64):
        label = LABELS[number % 2]
        height, width = (60, 44) if number % 3 else (40, 70)
        levels = draw.integers(0, 90, (height, width, 3)) + draw.integers(0, 60)
        levels[..., 0 if label == "red" else 2] += 90
        exif = Image.Exif()
        exif[0x0112] = 1 + number % 8
        path = folder / label / f"{number:02d}.{'jpg' if number % 4 else 'png'}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(levels.astype(np.uint8)).save(path, exif=exif)
        paths.append(path)
    return paths


def write_model(folder: Path) -> None:
    transformers.MobileViTConfig(
        image_size=SIDE, hidden_sizes=[8, 8, 8], neck_hidden_sizes=[4, 4, 4, 8, 8, 8, 8], num_attention_heads=2,
        expand_ratio=2.0, hidden_dropout_prob=0.0, classifier_dropout_prob=0.0, initializer_range=0.3,
    ).save_pretrained(folder)  # fmt: skip
    processor = transformers.MobileViTImageProcessor(size={"shortest_edge": 72}, crop_size={"height": 64, "width": 64})
    processor.save_pretrained(folder)


def test_colours_arrive_as_the_processor_makes_them(tmp_path: Path) -> None:
    paths = write_images(tmp_path / "images")
    write_model(tmp_path / "mobilevit")
    recipe = {
        "name": "colours",
        "task": {"kind": "image-classification", "image_size": SIDE, "augment": "flip"},
        "model": {"source": "mobilevit", "weights": "random"},
        "data": {"source": "imagefolder", "files": "images", "split": {"validation": 0.25, "stratify": "label"}},
        "batch": {"global_size": 8, "micro_size": 8},
        "optimizer": {"kind": "adamw", "learning_rate": 0.02},
        "schedule": {"kind": "linear"},
        "evaluate": {"every": "end"},
        "stages": [{"name": "all", "train": ["all"], "epochs": 16}],
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    thawline("run", tmp_path / "recipe.yaml", "--ranks", "1", "--run-dir", tmp_path / "run")

    run = RunDir(tmp_path / "run")
    settings = json.loads((run.model / "preprocessor_config.json").read_text())
    assert settings["do_flip_channel_order"] is True
    assert settings["crop_size"] == {"height": SIDE, "width": SIDE}
    assert settings["size"] == {"shortest_edge": 36}
    classify = transformers.pipeline("image-classification", str(run.model), device="cpu")
    answers = {str(path): classify(str(path)) for path in paths}
    predicted = {answer["id"]: answer for answer, _ in inference.predict(run, list(answers)).answers}
    for path, answer in answers.items():
        assert predicted[path]["label"] == answer[0]["label"]
        assert predicted[path]["scores"] == pytest.approx({each["label"]: each["score"] for each in answer}, abs=1e-5)
    right = [answer[0]["label"] == Path(path).parent.name for path, answer in answers.items()]
    assert np.mean(right) > 0.95
    for split in ("train", "validation"):
        found = inference.evaluate(run, split)
        assert found["accuracy"] > 0.95
    # with the colours the other way round, it would be wrong
    first = Image.open(paths[1]).convert("RGB")
    assert classify(first)[0]["label"] != classify(Image.merge("RGB", first.split()[::-1]))[0]["label"]
