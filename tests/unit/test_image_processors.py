"""A walk over all image processors of transformers: a model is fed what its processor makes, or refused by name.

On the other side stands plain transformers: `AutoImageProcessor` from the folder, called as ``pipeline`` calls it.
"""

from __future__ import annotations

import inspect
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from pydantic import TypeAdapter
from transformers.image_utils import load_image
from transformers.models.auto.auto_factory import _get_model_class
from transformers.models.auto.image_processing_auto import (
    IMAGE_PROCESSOR_MAPPING_NAMES,
    get_image_processor_class_from_name,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES

from launcher import models
from launcher.errors import DataError, UserError
from launcher.models import activations
from launcher.recipe import ImageClassification, Model
from launcher.recipe.data import Data
from launcher.tasks import BoundTask, bind

MODEL_TYPES = sorted(MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES)


def processor_names(model_type: str) -> list[str]:
    """Classes of the image processors of a model type. Those for Pillow alone are left out where the same exists for
    tensors: it is what comes back when they have been saved."""
    backends = IMAGE_PROCESSOR_MAPPING_NAMES.get(model_type) or {}
    return [name for name in [backends.get("torchvision") or backends.get("pil")] if name]


PROCESSORS = {name: model_type for model_type in reversed(MODEL_TYPES) for name in processor_names(model_type)}
"""Class of each image processor of an image classifier -> a model type that has it."""
OTHERS = sorted({name for kind in IMAGE_PROCESSOR_MAPPING_NAMES for name in processor_names(kind)} - {*PROCESSORS})
"""Of models that do not classify images; a folder may hold one beside a model that does."""
NEEDS_TIMM = "TimmWrapperImageProcessor"
CLUSTERS = np.random.default_rng(3).uniform(-1, 1, (16, 3)).tolist()
SETTINGS: dict[str, dict[str, Any]] = {
    "as it is": {},
    "bytes": {"do_rescale": False, "do_normalize": False},
    "no normalisation": {"do_normalize": False},
    "no rescaling": {"do_rescale": False, "do_normalize": True, "image_mean": [120, 90, 100], "image_std": [60, 70, 9]},
    "from -1 to 1": {"rescale_factor": 1 / 127.5, "do_normalize": True, "image_mean": [1.0] * 3, "image_std": [1] * 3},
    "not square": {"size": {"height": 30, "width": 40}, "crop_size": {"height": 24, "width": 32}},
    "crop alone": {"do_resize": False, "do_center_crop": True, "crop_size": {"height": 40, "width": 24}},
    "shorter side and crop": {
        "size": {"shortest_edge": 40}, "do_center_crop": True, "crop_size": {"height": 32, "width": 32}, "resample": 0,
    },
    "shorter side": {"size": {"shortest_edge": 32}, "do_center_crop": False},
    "longer side at most": {"size": {"shortest_edge": 32, "longest_edge": 40}, "do_center_crop": False},
    "padded": {"do_pad": True, "pad_size": {"height": 260, "width": 250}},
    "no resizing": {"do_resize": False, "do_center_crop": False},
    "rgb": {"do_convert_rgb": True, "size": {"height": 20, "width": 20}},
}  # fmt: skip
OF_ITS_OWN: dict[str, dict[str, dict[str, Any]]] = {
    "ConvNextImageProcessor": {"crop_pct": {"size": {"shortest_edge": 48}, "crop_pct": 0.5}},
    "DonutImageProcessor": {
        "aligned": {"size": {"height": 40, "width": 20}, "do_align_long_axis": True},
        "no thumbnail": {"size": {"height": 40, "width": 40}, "do_thumbnail": False, "do_pad": False},
    },
    "EfficientNetImageProcessor": {
        "include_top": {"include_top": False, "size": {"height": 32, "width": 32}},
        "offset": {"rescale_offset": True, "rescale_factor": 1 / 127.5, "size": {"height": 32, "width": 32}},
    },
    "ImageGPTImageProcessor": {
        "colours": {"clusters": CLUSTERS, "size": {"height": 8, "width": 8}},
        "no colours": {"do_color_quantize": False, "size": {"height": 8, "width": 8}},
    },
    "LevitImageProcessor": {"small": {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}},
    "MobileViTImageProcessor": {"rgb order": {"do_flip_channel_order": False, "size": {"shortest_edge": 40}}},
    "PerceiverImageProcessor": {
        "crop first": {"size": {"height": 32, "width": 24}, "crop_size": {"height": 48, "width": 48}}
    },
    "PoolFormerImageProcessor": {"crop_pct": {"crop_pct": 0.5, "crop_size": {"height": 24, "width": 24}}},
    "PPLCNetImageProcessor": {
        "short": {"resize_short": 40, "size_divisor": 16, "crop_size": {"height": 32, "width": 32}}
    },
    "Siglip2ImageProcessor": {"patches": {"patch_size": 8, "max_num_patches": 20}},
    "TextNetImageProcessor": {
        "cropped": {"size": {"shortest_edge": 40}, "size_divisor": 16, "do_center_crop": True, "crop_size": 32}
    },
}
"""Settings that one class alone has."""


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """The images are small: threads would only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Photographs of several shapes and modes, one of them turned by its EXIF data, one tiny."""
    folder = tmp_path_factory.mktemp("images")
    draw = np.random.default_rng(0)

    def picture(width: int, height: int) -> Image.Image:
        y, x = np.mgrid[0:height, 0:width]
        smooth = np.stack([x * 255 / width, y * 255 / height, (x + y) % 200], -1)
        return Image.fromarray((smooth * 0.9 + draw.integers(0, 25, (height, width, 3))).astype(np.uint8))

    exif = Image.Exif()
    exif[0x0112] = 6
    picture(120, 90).save(folder / "lying.jpg")
    picture(120, 80).save(folder / "turned.jpg", exif=exif)
    picture(60, 100).convert("RGBA").save(folder / "clear.png")
    picture(90, 90).convert("L").save(folder / "grey.png")
    picture(7, 5).convert("P").save(folder / "tiny.png")
    return [str(path) for path in sorted(folder.iterdir())]


def folder_of(processor: Any, model_type: str, folder: Path) -> Model:
    """A model of the type's own default configuration beside the processor; no weights are needed."""
    transformers.AutoConfig.for_model(model_type).save_pretrained(folder)
    processor.save_pretrained(folder)
    return Model(source=str(folder))


def task_of(image_size: int | None = None) -> ImageClassification:
    return ImageClassification(kind="image-classification", image_size=image_size)


def bound(processor: Any) -> BoundTask:
    data = TypeAdapter(Data).validate_python({"source": "imagefolder", "files": "a"})
    return bind(task_of(), data, processor, ["cat", "dog"])


def ours(model: Model, files: list[str], image_size: int | None = None) -> dict[str, torch.Tensor]:
    """What the task feeds the model, in one batch."""
    task = bound(models.processor(model, task_of(image_size), Path()))
    encoded = task.encode_rows([{"image": path, "id": path} for path in files], augment_seeds=None)
    return task.collate(encoded, [1.0] * len(files)).model_inputs


def theirs(processor: Any, files: list[str]) -> list[dict[str, Any]]:
    """What ``pipeline`` feeds the model, one image at a time."""
    return [dict(processor(images=load_image(path), return_tensors="pt")) for path in files]


def why_refused(made: list[dict[str, Any]], model_type: str) -> str:
    """A reason that an observer of the processor's output would have to refuse it; empty: there is none."""
    config = transformers.AutoConfig.for_model(model_type)
    config.architectures = []
    model_class = _get_model_class(config, transformers.AutoModelForImageClassification._model_mapping)
    taken = inspect.signature(model_class.forward).parameters
    if unknown := [name for name in made[0] if name not in taken]:
        return f"makes {unknown}"
    if not all(isinstance(value, torch.Tensor) and value.shape[:1] == (1,) for each in made for value in each.values()):
        return "no rows"
    shapes = [{name: value.shape for name, value in each.items()} for each in made]
    return "different shapes" if any(each != shapes[0] for each in shapes) else ""


def assert_fed_as_by_transformers(processor: Any, model_type: str, files: list[str], folder: Path) -> bool:
    """True: the same to the last bit. False: refused, for a reason, by the processor's name."""
    model = folder_of(processor, model_type, folder / "source")
    name = type(transformers.AutoImageProcessor.from_pretrained(folder / "source")).__name__
    try:
        made = theirs(transformers.AutoImageProcessor.from_pretrained(folder / "source"), files)
    except Exception:
        with pytest.raises(UserError, match=f"image processor {name} (fails on|makes)"):
            ours(model, files)
        return False
    if why_refused(made, model_type):
        with pytest.raises(UserError, match=f"image processor {name} (fails on|makes)"):
            ours(model, files)
        return False
    inputs = ours(model, files)
    assert inputs.keys() == made[0].keys()
    for key, value in inputs.items():
        assert value.dtype is not torch.uint8
        assert torch.equal(value, torch.cat([each[key] for each in made]).to(value.dtype)), key
    # The export says what was trained.
    models.processor(model, task_of(), Path()).save_pretrained(folder / "model")
    exported = theirs(transformers.AutoImageProcessor.from_pretrained(folder / "model"), files)
    for key, value in inputs.items():
        assert torch.equal(value, torch.cat([each[key] for each in exported]).to(value.dtype)), key
    return True


@pytest.mark.parametrize("name", sorted(PROCESSORS))
def test_every_processor_of_an_image_classifier(name: str, files: list[str], tmp_path: Path) -> None:
    if name == NEEDS_TIMM:
        pytest.skip("timm is not a dependency, and its processor is made from a configuration of its own")
    own, fed = OF_ITS_OWN.get(name, {}), set()
    usual = {"size": {"height": 64, "width": 48}} if name == "DonutImageProcessor" else {}  # it makes 2560 x 1920
    for what, settings in (SETTINGS | own).items():
        processor = get_image_processor_class_from_name(name)(**usual | settings)
        if assert_fed_as_by_transformers(processor, PROCESSORS[name], files, tmp_path / what):
            fed.add(what)
    if name == "Gemma3ImageProcessor":  # of ShieldGemma, which classifies an image by a text
        assert not fed
        return
    assert own.keys() - {"no thumbnail", "no colours"} <= fed
    assert "as it is" in fed or name in ("ImageGPTImageProcessor", "TextNetImageProcessor")


@pytest.mark.parametrize("name", OTHERS)
def test_every_other_processor_beside_an_image_classifier(name: str, files: list[str], tmp_path: Path) -> None:
    assert_fed_as_by_transformers(get_image_processor_class_from_name(name)(), "vit", files, tmp_path)


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_every_image_classifier_takes_its_processor(model_type: str, tmp_path: Path) -> None:
    """The model's arguments and channels are those of its processor."""
    [name] = processor_names(model_type) or [None]
    if name in (None, NEEDS_TIMM, "Gemma3ImageProcessor"):
        return
    settings = SQUARE.get(name, {})
    model = folder_of(get_image_processor_class_from_name(name)(**settings), model_type, tmp_path)
    assert models.processor(model, task_of(), Path()).inputs


SQUARE: dict[str, dict[str, Any]] = {
    "DonutImageProcessor": {"size": {"height": 96, "width": 96}},
    "ImageGPTImageProcessor": {"clusters": CLUSTERS, "size": {"height": 8, "width": 8}},
    "TextNetImageProcessor": {"do_center_crop": True},
}
"""Where a class by itself makes no square images of a usual size."""


# --- task.image_size --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", sorted(PROCESSORS.keys() - {NEEDS_TIMM, "Gemma3ImageProcessor"}))
def test_another_size_shows_the_same_part_of_the_image(name: str, tmp_path: Path) -> None:
    side = 64
    processor = get_image_processor_class_from_name(name)(**SQUARE.get(name, {}))
    model = folder_of(processor, PROCESSORS[name], tmp_path / "source")
    if name in ("ImageGPTImageProcessor", "Siglip2ImageProcessor"):
        with pytest.raises(UserError, match=rf"task\.image_size: 64: image processor {name} then makes"):
            models.processor(model, task_of(side), Path())
        return
    own = models.processor(model, task_of(side), Path())
    assert own.inputs == {"pixel_values": ((3, side, side), torch.float32)}
    y, x = np.mgrid[0:300, 0:400]
    smooth = Image.fromarray(np.stack([x / 400 * 255, y / 300 * 255, (x + y) / 700 * 255], -1).astype(np.uint8))
    whole = processor(images=smooth, return_tensors="pt")["pixel_values"].float()
    expected = torch.nn.functional.interpolate(whole, (side, side), mode="area")[0]
    if name not in ("ConvNextImageProcessor", "TextNetImageProcessor"):  # below 384 it crops; it only crops
        step = float(expected.max() - expected.min()) / side
        assert (own.encode(smooth, "a")["pixel_values"] - expected).abs()[:, 2:-2, 2:-2].max() < 2 * step
    own.save_pretrained(tmp_path / "model")
    exported = transformers.AutoImageProcessor.from_pretrained(tmp_path / "model")
    made = exported(images=smooth, return_tensors="pt")["pixel_values"][0]
    assert torch.equal(made, own.encode(smooth, "a")["pixel_values"])


@pytest.mark.parametrize(
    "settings", [{"do_resize": False}, {"size": {"shortest_edge": 50}}, {"do_resize": False, "do_center_crop": True}]
)
def test_a_size_for_a_processor_that_has_none(settings: dict[str, Any], files: list[str], tmp_path: Path) -> None:
    """The shorter side becomes the size, and the middle of the longer one is seen."""
    model = folder_of(transformers.MobileNetV2ImageProcessor(**settings), "mobilenet_v2", tmp_path)
    plain = transformers.MobileNetV2ImageProcessor(
        size={"shortest_edge": 40}, crop_size={"height": 40, "width": 40}, do_resize=True, do_center_crop=True
    )
    if "size" in settings:
        model = folder_of(transformers.ViTImageProcessor(**settings), "vit", tmp_path)
        plain = transformers.ViTImageProcessor(
            size={"shortest_edge": 40}, crop_size={"height": 40, "width": 40}, do_center_crop=True
        )
    expected = torch.cat([each["pixel_values"] for each in theirs(plain, files)])
    assert torch.equal(ours(model, files, 40)["pixel_values"], expected)


def test_a_size_where_a_processor_cannot_crop(files: list[str], tmp_path: Path) -> None:
    model = folder_of(transformers.SegformerImageProcessor(do_resize=False), "segformer", tmp_path)
    plain = transformers.SegformerImageProcessor(size={"height": 40, "width": 40})
    expected = torch.cat([each["pixel_values"] for each in theirs(plain, files)])
    assert torch.equal(ours(model, files, 40)["pixel_values"], expected)


# --- what is refused, and how -----------------------------------------------------------------------------------------
def test_refusals_name_the_processor(tmp_path: Path) -> None:
    model = folder_of(transformers.TextNetImageProcessor(), "textnet", tmp_path / "a")
    with pytest.raises(
        UserError,
        match=r"image processor TextNetImageProcessor makes images of different shapes, pixel_values 3 x 640 x 864 and "
        r"pixel_values 3 x 864 x 640 .*, which make no batch; set task\.image_size",
    ):
        models.processor(model, task_of(), Path())
    model = folder_of(transformers.DetrImageProcessor(), "vit", tmp_path / "b")
    with pytest.raises(UserError, match="DetrImageProcessor makes pixel_mask, which the model does not take"):
        models.processor(model, task_of(), Path())
    model = folder_of(transformers.ImageGPTImageProcessor(), "imagegpt", tmp_path / "c")
    with pytest.raises(UserError, match="ImageGPTImageProcessor fails on an image: Clusters must be provided"):
        models.processor(model, task_of(), Path())


def test_an_image_that_the_processor_fails_on_is_named(tmp_path: Path) -> None:
    processor = transformers.PerceiverImageProcessor(
        size={"height": 8, "width": 8}, crop_size={"height": 80, "width": 80}
    )
    task = bound(models.processor(folder_of(processor, "perceiver", tmp_path), task_of(), Path()))
    Image.new("RGB", (9, 9)).save(tmp_path / "tiny.png")
    with pytest.raises(DataError, match=r"row 17: image processor PerceiverImageProcessor fails on 9 x 9 pixels: "):
        task.encode({"image": str(tmp_path / "tiny.png"), "id": "17"}, augment_seed=None)


# --- training ---------------------------------------------------------------------------------------------------------
def test_augmentation_comes_before_the_processor(files: list[str], tmp_path: Path) -> None:
    """What is trained on is the processor's own, of an image that is mirrored or not; evaluation is never augmented."""
    processor = transformers.MobileViTImageProcessor(size={"shortest_edge": 36}, crop_size={"height": 32, "width": 32})
    own = models.processor(folder_of(processor, "mobilevit", tmp_path), task_of(), Path())
    data = TypeAdapter(Data).validate_python({"source": "imagefolder", "files": "a"})
    task = bind(ImageClassification(kind="image-classification", augment="flip"), data, own, ["cat", "dog"])
    task = pickle.loads(pickle.dumps(task))  # as it travels to a worker process that is not forked
    row = {"image": files[0], "id": "a"}
    image = load_image(files[0])
    mirrored = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    plain, turned = (processor(images=each, return_tensors="pt")["pixel_values"] for each in (image, mirrored))
    assert not torch.equal(plain, turned)

    def fed(seed: int | None) -> torch.Tensor:
        [value] = task.collate([task.encode(row, augment_seed=seed)], [1.0]).model_inputs.values()
        return value

    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    seen = [fed(seed) for seed in range(12)]
    assert torch.equal(torch.rand(3), expected), "the loop's generator is not drawn from"
    assert all(torch.equal(each, plain) or torch.equal(each, turned) for each in seen)
    assert {torch.equal(each, plain) for each in seen} == {True, False}
    assert all(torch.equal(fed(seed), first) for seed, first in enumerate(seen))
    assert torch.equal(fed(None), plain)


def test_the_memory_estimate_takes_inputs_of_the_same_shapes(tmp_path: Path) -> None:
    own = models.processor(folder_of(transformers.Siglip2ImageProcessor(), "siglip2", tmp_path), task_of(), Path())
    inputs = activations.inputs_of(task_of(), own, 3, 0)
    expected = transformers.Siglip2ImageProcessor()(images=[Image.new("RGB", (50, 40))] * 3, return_tensors="pt")
    assert {key: (value.shape, value.dtype) for key, value in inputs.items()} == {
        key: (value.shape, value.dtype) for key, value in expected.items()
    }
