"""Images -> batches: the transforms of the model's own library, and augmentation as a function of its seed."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from pydantic import TypeAdapter
from torchvision.transforms import v2

from launcher.data import load
from launcher.errors import UserError
from launcher.models import image_spec
from launcher.models.image_spec import ImageSpec
from launcher.recipe import ImageClassification
from launcher.recipe.data import Data
from launcher.tasks import BoundTask, bind
from launcher.tasks.images import OPERATIONS, RANDAUGMENT_LEVEL, augmented

SMALL = ImageSpec(size=16, crop=(16, 16), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), input_name="x")


def bound(spec: ImageSpec = SMALL, augment: str = "none") -> BoundTask:
    task = ImageClassification.model_validate({"kind": "image-classification", "augment": augment})
    data = TypeAdapter(Data).validate_python({"source": "imagefolder", "files": "a"})
    return bind(task, data, spec, ["cat", "dog"])


def picture(width: int = 97, height: int = 64, mode: str = "RGB") -> Image.Image:
    """Smooth colours with some noise, so that every operation shows."""
    y, x = np.mgrid[0:height, 0:width]
    noise = np.random.default_rng(0).integers(0, 30, (height, width, 3))
    pixels = np.stack([x * 2, y * 3, x + y], -1) % 220 + noise
    return Image.fromarray(pixels.astype(np.uint8)).convert(mode)


def inputs_of(task: BoundTask, image: Any, seed: int | None = None) -> torch.Tensor:
    encoded = task.encode({"image": image, "id": "a"}, augment_seed=seed)
    [tensor] = task.collate([encoded], [1.0]).model_inputs.values()
    return tensor[0]


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "efficientnet_b1", "vit_b_16", "swin_t"])
def test_torchvision_transforms_to_the_bit(name: str) -> None:
    transforms = torchvision.models.get_model_weights(name).DEFAULT.transforms()
    spec = image_spec.from_torchvision(transforms)
    image = picture(300, 280)
    assert torch.equal(inputs_of(bound(spec), image), transforms(image))
    assert spec.input_name == "x"


def test_specs_survive_json() -> None:
    import json

    for spec in (SMALL, ImageSpec(size=(3, 4), crop=None, mean=(0.0,), std=(1.0,))):
        assert image_spec.from_dict(json.loads(json.dumps(spec.as_dict()))) == spec


def test_image_size_keeps_the_whole_shorter_side() -> None:
    spec = SMALL.with_size(32)
    assert inputs_of(bound(spec), picture(8, 8)).shape == (3, 32, 32)
    expected = v2.functional.pil_to_tensor(picture().resize((48, 32), Image.Resampling.BILINEAR))[:, :, 8:40]
    ours = (inputs_of(bound(spec), picture()) * 0.5 + 0.5) * 255
    torch.testing.assert_close(ours, expected.float(), atol=1.0, rtol=0)


def test_shapes_that_make_no_batch() -> None:
    for size in (16, None):
        with pytest.raises(UserError, match=r"set task\.image_size"):
            bound(ImageSpec(size=size, crop=None, mean=(0.5,) * 3, std=(0.5,) * 3))


# --- augmentation -----------------------------------------------------------------------------------------------------
TORCHVISION_NAMES = {
    "identity": "Identity", "shear_x": "ShearX", "shear_y": "ShearY", "translate_x": "TranslateX",
    "translate_y": "TranslateY", "rotate": "Rotate", "brightness": "Brightness", "color": "Color",
    "contrast": "Contrast", "sharpness": "Sharpness", "posterize": "Posterize", "solarize": "Solarize",
    "auto_contrast": "AutoContrast", "equalize": "Equalize",
}  # fmt: skip


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("name", TORCHVISION_NAMES)
def test_operations_are_torchvisions_at_magnitude_9(name: str, sign: float) -> None:
    theirs = v2.RandAugment(magnitude=9, num_magnitude_bins=31)
    image = picture()
    magnitudes, is_signed = theirs._AUGMENTATION_SPACE[TORCHVISION_NAMES[name]]
    table = magnitudes(31, image.height, image.width)
    magnitude = 0.0 if table is None else float(table[9]) * (sign if is_signed else 1.0)
    expected = theirs._apply_image_or_video_transform(
        image, TORCHVISION_NAMES[name], magnitude, interpolation=theirs.interpolation, fill=theirs._fill
    )
    assert OPERATIONS[name](image, sign * RANDAUGMENT_LEVEL).tobytes() == expected.tobytes()
    assert set(OPERATIONS) == set(TORCHVISION_NAMES)
    assert len(theirs._AUGMENTATION_SPACE) == len(OPERATIONS)


def test_flip_mirrors_half_of_the_images() -> None:
    image = picture()
    mirrored = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT).tobytes()
    results = [augmented(image, "flip", random.Random(seed)).tobytes() for seed in range(200)]
    assert set(results) == {image.tobytes(), mirrored}
    assert 70 < results.count(mirrored) < 130


@pytest.mark.parametrize("augment", ["flip", "randaugment"])
def test_augmentation_is_a_function_of_its_seed_and_training_only(augment: str) -> None:
    task, image = bound(augment=augment), picture()
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    seeded = [inputs_of(task, image, seed) for seed in range(8)]
    assert torch.equal(torch.rand(3), expected), "the loop's generator is not drawn from"
    assert all(torch.equal(inputs_of(task, image, seed), first) for seed, first in enumerate(seeded))
    assert len({tuple(tensor.flatten().tolist()) for tensor in seeded}) >= 2
    assert torch.equal(inputs_of(task, image, None), inputs_of(bound(), image, 5)), "evaluation, and augment: none"


def test_digits_from_a_folder(tmp_path: Path) -> None:
    from sklearn.datasets import load_digits

    digits = load_digits()
    for number, (pixels, label) in enumerate(zip(digits.images[:60], digits.target[:60], strict=True)):
        folder = tmp_path / "digits" / str(label)
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray((pixels * 15).astype(np.uint8)).save(folder / f"{number}.png")
    data = TypeAdapter(Data).validate_python({"source": "imagefolder", "files": "digits"})
    splits = load(data, ImageClassification(kind="image-classification"), tmp_path)
    task = bind(ImageClassification(kind="image-classification"), data, SMALL, splits.labels)
    rows = splits.train.take(range(9))
    batch = task.collate(task.encode_rows(rows, augment_seeds=None), [1.0] * 8 + [0.0])
    assert batch.model_inputs["x"].shape == (9, 3, 16, 16)
    assert (batch.size, batch.tokens) == (8.0, 0)
    assert [str(label) for label in batch.labels.tolist()] == [row.split("/")[0] for row in batch.ids]


def test_tasks_and_rows_travel_to_worker_processes() -> None:
    """Where processes are not forked, the loader pickles what it reads from."""
    import pickle

    task = pickle.loads(pickle.dumps(bound(augment="randaugment")))
    assert torch.equal(inputs_of(task, picture(), 5), inputs_of(bound(augment="randaugment"), picture(), 5))
