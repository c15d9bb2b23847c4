"""Made pictures: a few coloured shapes in one quarter, and a caption that says so by a rule.

The colours, shapes and words lie beside the configs of finetune_picture, in `made/shapes.yaml`.
"""

import random
from collections.abc import Iterator
from typing import Any

from PIL import Image, ImageDraw

from hfscale.tasks.sample_data import load_sample_data

ATTRIBUTES = ("count", "colour", "shape", "position")
SIDE = 32  # pixels
CELL = 8  # pixels of a side of the place that a shape has; a quarter has four
DRAWN_LARGER = 4  # then made smaller, so that edges are soft


def made_pictures(limits: dict[str, int], seed: int) -> Iterator[dict[str, Any]]:
    """Rows of `split`, `image` (RGB), `text`, and the words for each of ATTRIBUTES.

    All that is drawn at random depends on the seed and the split. Colours and shapes that belong
    together in `validation` (`held_out` of the sample data) are never together in `train`, where
    each of them is seen with others.

    Args:
        limits: rows of each split, `train` and `validation`.
    """
    words = load_sample_data("finetune_picture", "shapes")
    held_out = {tuple(pair) for pair in words["held_out"]}
    pairs = [(colour, shape) for colour in words["colours"] for shape in words["shapes"]]
    for split, limit in limits.items():
        drawn = random.Random(f"{seed} {split}")
        of_split = [pair for pair in pairs if (pair in held_out) == (split == "validation")]
        for _ in range(limit):
            yield {"split": split} | _draw_row(words, of_split, drawn)


def _draw_row(
    words: dict[str, Any], pairs: list[tuple[str, str]], drawn: random.Random
) -> dict[str, Any]:
    colour, shape = drawn.choice(pairs)
    number = drawn.randint(1, len(words["counts"]))
    count = words["counts"][number - 1]
    position = drawn.choice(list(words["positions"]))
    noun = shape if number == 1 else words["shapes"][shape]
    quarter = words["positions"][position]
    return {
        "image": _draw_shapes(shape, words["colours"][colour], number, quarter, drawn),
        "text": f"{count} {colour} {noun} at the {position}",
        "count": count,
        "colour": colour,
        "shape": noun,
        "position": position,
    }


def _draw_shapes(
    shape: str, colour: list[int], number: int, quarter: list[int], drawn: random.Random
) -> Image.Image:
    """Shapes of several sizes and shades, in different cells of the quarter, on a light ground."""
    side = SIDE * DRAWN_LARGER
    image = Image.new("RGB", (side, side), tuple(drawn.randint(225, 255) for _ in range(3)))
    pencil = ImageDraw.Draw(image)
    fill = tuple(min(255, max(0, part + drawn.randint(-20, 20))) for part in colour)
    cells = [(column, row) for column in range(2) for row in range(2)]
    for column, row in drawn.sample(cells, number):
        radius = drawn.uniform(2.6, 3.5)
        # In pixels from the picture's corner, a little off the middle of the cell.
        x = SIDE / 2 * quarter[0] + CELL * (column + 0.5) + drawn.uniform(-0.5, 0.5)
        y = SIDE / 2 * quarter[1] + CELL * (row + 0.5) + drawn.uniform(-0.5, 0.5)
        _draw_shape(pencil, shape, x * DRAWN_LARGER, y * DRAWN_LARGER, radius * DRAWN_LARGER, fill)
    return image.resize((SIDE, SIDE), Image.Resampling.BOX)


def _draw_shape(
    pencil: ImageDraw.ImageDraw, shape: str, x: float, y: float, radius: float, fill: tuple
) -> None:
    if shape == "circle":
        pencil.ellipse((x - radius, y - radius, x + radius, y + radius), fill)
    elif shape == "square":
        half = 0.9 * radius
        pencil.rectangle((x - half, y - half, x + half, y + half), fill)
    elif shape == "triangle":
        pencil.polygon([(x, y - radius), (x + radius, y + radius), (x - radius, y + radius)], fill)
    elif shape == "cross":
        half = radius / 3
        pencil.rectangle((x - radius, y - half, x + radius, y + half), fill)
        pencil.rectangle((x - half, y - radius, x + half, y + radius), fill)
    else:
        raise ValueError(f"no such shape: {shape}")
