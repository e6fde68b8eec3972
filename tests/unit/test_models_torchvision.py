"""torchvision's classifiers: weights from a file or a download, a head for the recipe's labels, dropout, image size."""

from __future__ import annotations

import argparse
import datetime
import os
from pathlib import Path
from typing import NoReturn
from urllib.error import URLError

import numpy as np
import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn

from launcher import models
from launcher.errors import EnvironmentProblem, UserError
from launcher.models import state_dict_files
from launcher.models.weights import load_weights, named_state, write_weights
from launcher.recipe import ImageClassification, Model

IMAGE = ImageClassification(kind="image-classification")
LABELS = ["cat", "dog"]
NAME = "torchvision:resnet18"


def bits(module: nn.Module) -> dict[str, bytes]:
    return {name: tensor.detach().numpy().tobytes() for name, tensor in named_state(module)}


@pytest.fixture(scope="module")
def trained() -> dict[str, torch.Tensor]:
    """Somebody's ResNet-18 for five classes, its running statistics and all."""
    with torch.random.fork_rng():
        torch.manual_seed(4)
        module = torchvision.models.resnet18(num_classes=5)
        module.train()(torch.randn(2, 3, 32, 32))
    return module.state_dict()


@pytest.mark.parametrize("wrapped", ["bare", "ddp", "nested", "safetensors", "folder"])
def test_a_state_dict_fills_all_but_a_head_of_another_shape(
    wrapped: str, trained: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    path = tmp_path / "weights.pt"
    if wrapped == "safetensors":
        path = tmp_path / "weights.safetensors"
        save_file(trained, path)
    elif wrapped == "folder":
        path = tmp_path / "weights"
        write_weights(trained, path)
    else:
        state = {f"module.{name}": tensor for name, tensor in trained.items()} if wrapped == "ddp" else trained
        torch.save({"state_dict": state, "epoch": 3} if wrapped == "nested" else state, path)
    module = models.materialise(Model(source=NAME, weights=str(path)), IMAGE, LABELS, 0, tmp_path)
    own = module.state_dict()
    assert all(torch.equal(own[name], trained[name]) for name in own if not name.startswith("fc."))
    assert module.fc.weight.shape == (2, 512)
    again = models.materialise(Model(source=NAME, weights=str(path)), IMAGE, LABELS, 0, tmp_path)
    assert bits(again) == bits(module)


def test_a_head_for_as_many_classes_is_kept(trained: dict[str, torch.Tensor], tmp_path: Path) -> None:
    torch.save(trained, tmp_path / "w.pt")
    labels = ["a", "b", "c", "d", "e"]
    module = models.materialise(Model(source=NAME, weights="w.pt"), IMAGE, labels, 0, tmp_path)
    assert torch.equal(module.fc.weight, trained["fc.weight"])
    anew = Model.model_validate({"source": NAME, "weights": "w.pt", "head": {"init": "zeros"}})
    assert not models.materialise(anew, IMAGE, labels, 0, tmp_path).fc.weight.any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("layer1.0.conv1.weight"), r"1 missing \(layer1.0.conv1.weight"),
        (lambda s: s.update(extra=torch.zeros(1)), r"1 not of this network \(extra"),
        (lambda s: s.update({"conv1.weight": torch.zeros(1)}), r"of another shape \(conv1.weight \(1,\)"),
    ],
)
def test_any_other_difference_is_an_error(
    change: object, message: str, trained: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    state = dict(trained)
    assert callable(change)
    change(state)
    torch.save(state, tmp_path / "w.pt")
    with pytest.raises(UserError, match=message):
        models.materialise(Model(source=NAME, weights="w.pt"), IMAGE, LABELS, 0, tmp_path)


@pytest.mark.parametrize("content", [b"not a checkpoint", None])
def test_a_file_that_holds_no_state_dict_is_a_users_mistake(content: bytes | None, tmp_path: Path) -> None:
    if content is None:
        torch.save([1, 2], tmp_path / "w.pt")
    else:
        (tmp_path / "w.pt").write_bytes(content)
    with pytest.raises(UserError, match=r"torch\.save"):
        models.materialise(Model(source=NAME, weights="w.pt"), IMAGE, LABELS, 0, tmp_path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"model\.weights: 'nothing\.pt' does not exist"):
        models.materialise(Model(source=NAME, weights="nothing.pt"), IMAGE, LABELS, 0, tmp_path)


def test_a_failed_download_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fail(*args: object, **kwargs: object) -> NoReturn:
        raise URLError("no network")

    monkeypatch.setattr(torch.hub, "download_url_to_file", fail)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(EnvironmentProblem, match=r"set model\.weights to the path of a state dict, or to random"):
        models.materialise(Model(source=NAME), IMAGE, LABELS, 0, tmp_path)


def test_a_download_fills_the_body_and_its_thousand_classes_go(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(6)
        served = torchvision.models.resnet18().state_dict()
    monkeypatch.setattr(torchvision.models._api.WeightsEnum, "get_state_dict", lambda self, *a, **k: served)
    module = models.materialise(Model(source=NAME), IMAGE, LABELS, 0, tmp_path)
    own = module.state_dict()
    assert all(torch.equal(own[name], served[name]) for name in own if not name.startswith("fc."))
    assert module.fc.weight.shape == (2, 512)


@pytest.mark.parametrize("name", ["resnet18", "convnext_tiny", "mobilenet_v3_small"])
def test_a_skeleton_filled_from_disk_is_the_model(name: str, tmp_path: Path) -> None:
    model = Model(source=f"torchvision:{name}", weights="random")
    task = ImageClassification(kind="image-classification", image_size=64)
    torch.manual_seed(8)
    before = torch.get_rng_state()
    module = models.materialise(model, task, LABELS, 3, tmp_path).eval()
    write_weights(named_state(module), tmp_path / "weights")
    skeleton = models.skeleton(model, task, LABELS, tmp_path)
    load_weights(skeleton, tmp_path / "weights")
    assert torch.equal(torch.get_rng_state(), before)
    assert bits(skeleton) == bits(module)
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(skeleton.eval()(images), module(images))


def test_dropout_overrides_modules_attention_and_stochastic_depth(tmp_path: Path) -> None:
    def dropouts(name: str, dropout: float) -> nn.Module:
        model = Model(source=f"torchvision:{name}", weights="random", dropout=dropout)
        return models.skeleton(model, IMAGE, LABELS, tmp_path)

    vit = dropouts("vit_b_32", 0.3)
    assert {child.p for child in vit.modules() if isinstance(child, nn.Dropout)} == {0.3}
    assert {child.dropout for child in vit.modules() if isinstance(child, nn.MultiheadAttention)} == {0.3}
    depths = [c.p for c in dropouts("convnext_tiny", 0.4).modules() if isinstance(c, torchvision.ops.StochasticDepth)]
    assert depths == sorted(depths)
    assert (depths[0], depths[-1]) == (0.0, 0.4)
    none = dropouts("convnext_tiny", 0.0)
    assert not any(c.p for c in none.modules() if isinstance(c, torchvision.ops.StochasticDepth))


def test_images_as_the_weights_want_them(tmp_path: Path) -> None:
    model = Model(source=NAME, weights="random")
    spec = models.processor(model, IMAGE, tmp_path)
    assert (spec.size, spec.crop, spec.input_name) == (256, (224, 224), "x")
    small = models.processor(model, ImageClassification(kind="image-classification", image_size=32), tmp_path)
    assert (small.size, small.crop) == (32, (32, 32))


WRAPPED = {
    "compiled": lambda state: {f"_orig_mod.{name}": tensor for name, tensor in state.items()},
    "compiled inside": lambda state: {name.replace("layer1.", "layer1._orig_mod."): t for name, t in state.items()},
    "nested": lambda state: {f"module._orig_mod.model.{name}": tensor for name, tensor in state.items()},
    "lightning": lambda state: {
        "state_dict": {f"model.{name}": tensor for name, tensor in state.items()}, "epoch": 3,
    },
    "reference script": lambda state: {"model": state, "args": argparse.Namespace(lr=0.1), "best": np.float64(0.5)},
    "model_state_dict": lambda state: {"model_state_dict": state, "optimizer_state_dict": {"state": {}}},
    "in one another": lambda state: {"model": {"state_dict": {f"net.{name}": t for name, t in state.items()}}},
    "with paths, times and arrays": lambda state: {
        "model": state, "out": Path("runs"), "when": datetime.datetime(2026, 1, 2), "losses": np.ones(3, np.float32),
        "generator": np.random.default_rng(0).bit_generator.state,
        "old generator": np.random.RandomState(0).get_state(),
    },
    "averaged": lambda state: {"n_averaged": torch.tensor(4)} | {f"module.{name}": t for name, t in state.items()},
}  # fmt: skip


@pytest.mark.parametrize("wrapped", WRAPPED)
def test_names_that_wrappers_give(wrapped: str, trained: dict[str, torch.Tensor], tmp_path: Path) -> None:
    torch.save(WRAPPED[wrapped](trained), tmp_path / "w.pt")
    read = state_dict_files.read(tmp_path / "w.pt")
    assert read.keys() == trained.keys()
    assert all(torch.equal(read[name], trained[name]) for name in trained)
    model = Model(source=NAME, weights="w.pt")
    assert models.is_head_new(model, IMAGE, LABELS, tmp_path, "ResNet")
    assert not models.is_head_new(model, IMAGE, list("abcde"), tmp_path, "ResNet")


def test_a_checkpoint_that_would_run_code_is_not_read(tmp_path: Path) -> None:
    torch.save({"model": {"fc": torch.zeros(1)}, "hook": os.getcwd}, tmp_path / "w.pt")
    with pytest.raises(UserError, match=r"cannot be read as a state dict .*torch\.save"):
        state_dict_files.read(tmp_path / "w.pt")
    torch.save(nn.Sequential(nn.ReLU()), tmp_path / "w.pt")
    with pytest.raises(UserError, match=r"it holds torch\.nn\.modules\.container\.Sequential, which is not read"):
        state_dict_files.read(tmp_path / "w.pt")
