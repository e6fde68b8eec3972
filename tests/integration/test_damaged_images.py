"""A run whose images are damaged: before it is planned, while it trains, and after they were repaired."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image
from running import ROOT, metrics, recipe, thawline

BREAKS_DURING_THE_RUN = """
import sys
from pathlib import Path
from launcher import session, worker
recipe, run, image = sys.argv[1:]
session.open_run(Path(recipe), run_dir=Path(run))
content = Path(image).read_bytes()
Path(image).write_bytes(content[: len(content) // 2])
sys.exit(worker.main([recipe, "--run-dir", run]))
"""
"""A run that is planned and begins, and meanwhile an image breaks; one process, for torch is imported once then."""


def tiny_vit(folder: Path) -> Path:
    """A folder with the configuration of a vision transformer of one thin layer, and its image processor's."""
    folder.mkdir()
    config = {
        "model_type": "vit", "architectures": ["ViTForImageClassification"], "hidden_size": 16, "num_hidden_layers": 1,
        "num_attention_heads": 2, "intermediate_size": 16, "image_size": 16, "patch_size": 8,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    processor = {"image_processor_type": "ViTImageProcessor", "size": {"height": 16, "width": 16}}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return folder


def cut(path: Path) -> bytes:
    """Leave half of a file; the whole of it is returned."""
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    return content


def test_damaged_images_from_the_plan_to_a_resume(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    images = [
        tmp_path / "pets" / split / label / f"{n}.png" for split in ("train", "VAL") for label in "ab" for n in range(8)
    ]
    for path in images:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw.integers(0, 255, (16, 16, 3), np.uint8)).save(path)
    file = recipe(
        tmp_path, [{"name": "all", "train": ["all"], "epochs": 1}], task={"kind": "image-classification"},
        model={"source": str(tiny_vit(tmp_path / "vit")), "weights": "random"},
        data={"source": "imagefolder", "files": str(tmp_path / "pets"), "on_bad_row": "skip"},
    )  # fmt: skip
    run = tmp_path / "run"
    for path in (images[3], images[20]):
        cut(path)
    # Without the key the command names both at once, before any rank starts, and leaves no run behind.
    refused = thawline("run", file, "--run-dir", run, "--set", "data.on_bad_row=error", check=False)
    assert refused.returncode == 2
    assert "images that cannot be read in 2 of 32 rows:" in refused.stderr
    assert f"{images[3]}" in refused.stderr
    assert f"{images[20]}" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert not run.exists()
    # With it they are left out, and listed. One breaks when the run is planned already: it stops there.
    whole = images[6].read_bytes()
    command = [sys.executable, "-c", BREAKS_DURING_THE_RUN, file, run, images[6]]
    stopped = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert stopped.returncode == 2, stopped.stderr
    assert f"image of row a/6.png cannot be read ({images[6]})" in stopped.stderr
    skipped = [json.loads(line) for line in (run / "skipped.jsonl").read_text().splitlines()]
    assert [(row["split"], row["row"]) for row in skipped] == [("train", "a/3.png"), ("validation", "a/4.png")]
    assert all("truncated" in row["why"] for row in skipped)
    # The next start says so before there is anything to do.
    refused = thawline("resume", run, check=False)
    assert refused.returncode == 2
    assert "1 images cannot be read, and could when the run was planned:\n  train, row a/6.png: " in refused.stderr
    assert "restore them under the same names, then thawline resume" in refused.stderr
    # Repaired, with another time of change: the run goes on. What was left out stays so, repaired or not.
    images[6].write_bytes(whole)
    Image.new("RGB", (16, 16)).save(images[3])
    thawline("resume", run)
    last = metrics(run)[-1]
    assert last["split"] == "validation"
    plan = json.loads((run / "plan.json").read_text())
    assert (plan["data"]["train_rows"], plan["data"]["validation_rows"]) == (15, 15)
