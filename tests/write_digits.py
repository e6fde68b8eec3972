"""Writes scikit-learn's 1,797 handwritten digits as a folder of images, one folder a label.

python tests/write_digits.py data/digits [ROWS]
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits


def write_digits(folder: Path, num_rows: int | None = None) -> int:
    """Writes ``folder/LABEL/NNNN.png``, 8 x 8 grey levels, of the first rows; returns how many."""
    digits = load_digits()
    pixels = np.rint(digits.images[:num_rows] * (255 / 16)).astype(np.uint8)  # the data has 17 grey levels
    for row, (image, label) in enumerate(zip(pixels, digits.target[:num_rows], strict=True)):
        path = folder / str(label) / f"{row:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    return len(pixels)


if __name__ == "__main__":
    count = write_digits(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else None)
    print(f"{count} digits in {sys.argv[1]}")
