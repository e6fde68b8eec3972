"""A picture of a plan's memory: for each stage a stacked bar for every strategy, against the line of what a rank has.

Owns the drawing; what is drawn `search.at_each_strategy` has found. With Pillow, which thawline needs anyway. Decides
nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from launcher.costs.peak import GIB, MemoryPlan
from launcher.errors import UserError
from launcher.plan.run_plan import RunPlan

COLOURS = {
    "parameters": "#4c72b0", "gradients": "#dd8452", "masters": "#55a868", "optimizer": "#c44e52",
    "activations": "#8172b3", "logits": "#937860", "buffers": "#da8bc3", "margin": "#bbbbbb",
}  # fmt: skip
"""Category of the peak -> its colour, in the order of the stack."""
ROW, BAR, TEXT, GAP = 30, 20, 15, 12
"""Pixels: of a row, of the bar in it, of letters, between things."""
LEFT, WIDTH, RIGHT = 300, 760, 190
"""Pixels: labels, the longest bar, and what stands behind it."""

Bars = Mapping[str, Mapping[str, MemoryPlan]]
"""Stage -> strategy -> its memory."""


def draw(plan: RunPlan, bars: Bars, there: int | None, path: Path) -> None:
    """Write a PNG.

    Args:
        bars: what `search.at_each_strategy` found.
        there: bytes of a rank's memory; None: not known, and there is no line.

    Raises:
        UserError: the path is no place for a PNG, or there is nothing to draw.
    """
    rows = [(stage, strategy, memory) for stage, found in bars.items() for strategy, memory in found.items()]
    if not rows:
        raise UserError(f"--plot {path}: no stage's memory is estimated")
    if path.suffix.lower() != ".png" or not path.parent.is_dir():
        raise UserError(f"--plot {path}: give the name of a .png file in a folder that is there")
    image = Image.new("RGB", (LEFT + WIDTH + RIGHT, 4 * ROW + ROW * (len(rows) + len(bars)) + GAP), "white")
    canvas, font = ImageDraw.Draw(image), ImageFont.load_default(TEXT)
    canvas.text((GAP, GAP), f"{plan.recipe.name} on {plan.cluster}: GiB a rank at the peak", "black", font)
    _legend(canvas, font)
    top = 3 * ROW
    pixels = WIDTH / max(there or 0, *(memory.peak_bytes for _, _, memory in rows))
    y, last = top, ""
    for stage, strategy, memory in rows:
        if stage != last:
            canvas.text((GAP, y + GAP // 2), stage, "black", font)
            y, last = y + ROW, stage
        canvas.text((2 * GAP, y + 2), strategy, "black", font)
        x = _stack(canvas, memory, y, pixels)
        canvas.text((x + GAP // 2, y + 2), f"{memory.peak_bytes / GIB:.1f} in the {memory.peak_at}", "black", font)
        y += ROW
    if there is not None:
        x = LEFT + round(there * pixels)
        canvas.line((x, top, x, y), "black", 2)
        canvas.text((x, y + 2), f"{there / GIB:.1f} there", "black", font, anchor="ra")
    image.save(path)


def _stack(canvas: ImageDraw.ImageDraw, memory: MemoryPlan, y: int, pixels: float) -> int:
    """Draw a bar; where it ends."""
    parts, total, x = memory.moments[memory.peak_at], 0, LEFT
    for name, colour in COLOURS.items():
        total += parts.get(name, 0)
        end = LEFT + round(total * pixels)
        if end > x:
            canvas.rectangle((x, y, end - 1, y + BAR), colour)
        x = end
    return x


def _legend(canvas: ImageDraw.ImageDraw, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> None:
    x = GAP
    for name, colour in COLOURS.items():
        canvas.rectangle((x, ROW + GAP, x + TEXT, ROW + GAP + TEXT), colour)
        canvas.text((x + TEXT + GAP // 2, ROW + GAP - 2), name, "black", font)
        x += TEXT + 2 * GAP + round(canvas.textlength(name, font))
