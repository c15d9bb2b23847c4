"""Pictures as people keep them: what becomes of each kind, what is refused, what is held out."""

import io
import json
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset, Features, Value
from datasets import Image as ImageFeature
from PIL import Image, ImageDraw
from transformers import ViTImageProcessorPil

from hfscale.pictures.examples import LEAST_EXAMPLES, load_examples, resized
from hfscale.pictures.made import made_pictures
from hfscale.pictures.reading import open_picture, to_rgb
from hfscale.pictures.rows import PictureCollator
from hfscale.process import InputError
from hfscale.tasks.sample_data import load_sample_data
from recipes.finetune_picture import FinetunePictureArguments

PROCESSOR = ViTImageProcessorPil(size={"height": 8, "width": 8})


def picture(number: int, size: tuple[int, int] = (12, 10)) -> Image.Image:
    """Different for each number."""
    image = Image.new("RGB", size, (number * 9 % 256, 80, 200 - number))
    ImageDraw.Draw(image).rectangle((number % 5, 1, 8, 7), (255, number, 0))
    return image


def write_folder(folder: Path, captions: list[str], kind: str = "jsonl") -> Path:
    """In the imagefolder layout, with a picture for each caption."""
    folder.mkdir(parents=True)
    rows = [{"file_name": f"{i}.png", "text": text} for i, text in enumerate(captions)]
    for i in range(len(captions)):
        picture(i).save(folder / f"{i}.png")
    lines = [json.dumps(row) for row in rows]
    if kind == "csv":
        lines = ["file_name,text", *(f"{row['file_name']},{row['text']}" for row in rows)]
    (folder / f"metadata.{kind}").write_text("\n".join(lines) + "\n")
    return folder


def load(source: Path | str, **values):
    args = FinetunePictureArguments(source=str(source), **values)
    return load_examples(args, PROCESSOR, 0)


def names(count: int) -> list[str]:
    return [f"picture number {i}" for i in range(count)]


# ---- what becomes of a picture


def test_grey_has_three_equal_colours_and_transparent_lies_on_white():
    grey = Image.fromarray(np.arange(60, dtype=np.uint8).reshape(6, 10))
    assert (np.asarray(to_rgb(grey)) == np.asarray(grey)[..., None]).all()
    numbers = np.random.default_rng(0).integers(0, 256, (6, 10, 4), dtype=np.uint8)
    found = np.asarray(to_rgb(Image.fromarray(numbers, "RGBA"))).astype(float)
    alpha = numbers[..., 3:] / 255
    expected = numbers[..., :3] * alpha + 255 * (1 - alpha)
    assert np.abs(found - expected).max() <= 1  # rounded to whole numbers
    palette = Image.new("P", (4, 4), 0)
    palette.putpalette([10, 20, 30])
    palette.info["transparency"] = 0
    assert np.asarray(to_rgb(palette)).tolist() == np.full((4, 4, 3), 255).tolist()


def test_pictures_of_any_size_become_what_the_processor_makes_of_them():
    """So the saved processor, used alone, gives the numbers that the model was trained on."""
    pictures = [picture(3), picture(4, (40, 9)), picture(5, (8, 8))]
    rows = [
        {"picture": resized(each, PROCESSOR).tobytes(), "decoder_input_ids": ids, "labels": ids}
        for each, ids in zip(pictures, ([1, 2], [1, 2, 3], [1]), strict=True)
    ]
    batch = PictureCollator(PROCESSOR, eos_token_id=9)(rows)
    alone = torch.cat([PROCESSOR(each, return_tensors="pt").pixel_values for each in pictures])
    assert batch["pixel_values"].shape == (3, 3, 8, 8)
    assert torch.allclose(batch["pixel_values"], alone, atol=1e-6)
    assert batch["decoder_input_ids"].tolist() == [[1, 2, 9], [1, 2, 3], [1, 9, 9]]
    assert batch["labels"].tolist() == [[1, 2, -100], [1, 2, 3], [1, -100, -100]]


def test_a_photo_is_turned_as_its_camera_noted(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    picture(1).save(tmp_path / "a.png", exif=exif)
    assert open_picture("here", tmp_path / "a.png").size == (10, 12)


# ---- what is refused


def png_that_says(width: int, height: int) -> bytes:
    """The head of a picture without its pixels."""
    parts = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)), (b"IEND", b"")]
    chunks = [
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in parts
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def whole_png() -> bytes:
    file = io.BytesIO()
    picture(0, (60, 60)).save(file, "png")
    return file.getvalue()


def png_of_16_bits() -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.full((4, 4), 40_000, np.uint16)).save(file, "png")
    return file.getvalue()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"no picture", "cannot be read as a picture .*mend or remove it"),
        (b"", "cannot be read as a picture .*mend or remove it"),
        (whole_png()[:120], "cannot be read as a picture .*mend or remove it"),
        (png_that_says(10_000, 10_000), "10,000 x 10,000 pixels is more than the 50,000,000"),
        (png_that_says(60_000, 60_000), "its size is more than the 50,000,000 pixels"),
        (png_of_16_bits(), "its colours have more than 8 bits .*save it with 8"),
    ],
    ids=["text", "empty", "cut", "huge", "bomb", "16 bits"],
)
def test_a_picture_that_cannot_be_used_is_named(tmp_path, content, says):
    folder = write_folder(tmp_path / "own", names(12))
    (folder / "7.png").write_bytes(content)
    with pytest.raises(InputError, match=f"metadata.jsonl:8: .*7.png: {says}") as error:
        load(folder)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"text": "  "}, "metadata.jsonl:3: the caption is empty; write one, or remove the row"),
        ({"text": None}, "metadata.jsonl:3: the caption is empty"),
        ({"file_name": "gone.png"}, "metadata.jsonl:3: .*gone.png: no such picture"),
        ({"file_name": None}, "metadata.jsonl:3: no file_name; each line names its picture"),
    ],
)
def test_a_row_that_says_too_little(tmp_path, change, says):
    folder = write_folder(tmp_path / "own", names(12))
    lines = (folder / "metadata.jsonl").read_text().splitlines()
    lines[2] = json.dumps(json.loads(lines[2]) | change)
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    with pytest.raises(InputError, match=says):
        load(folder)


def test_sources_that_are_none(tmp_path):
    with pytest.raises(InputError, match="no column caption; it has file_name, text .choose with"):
        load(write_folder(tmp_path / "a", names(12)), caption_column="caption")
    with pytest.raises(InputError, match="attribute text is 'picture number 0'|attribute no is"):
        load(write_folder(tmp_path / "b", names(12)), attributes=["no"])
    few = write_folder(tmp_path / "c", names(LEAST_EXAMPLES - 1))
    with pytest.raises(InputError, match="9 pictures; at least 10 are needed to hold one out"):
        load(few)
    (tmp_path / "d").mkdir()
    with pytest.raises(InputError, match="no metadata.jsonl or metadata.csv in this folder"):
        load(tmp_path / "d")
    with pytest.raises(InputError, match="embedded:cats: unknown; there is embedded:shapes"):
        load("embedded:cats")
    Dataset.from_dict({"text": names(12)}).to_parquet(tmp_path / "e.parquet")
    with pytest.raises(InputError, match="the picture column image is not there; it has text"):
        load(tmp_path / "e.parquet")
    with pytest.raises(InputError, match="the picture column text holds no pictures"):
        load(tmp_path / "e.parquet", image_column="text")
    same = write_folder(tmp_path / "f", ["always the same"] * 12)
    for i in range(12):
        picture(0).save(same / f"{i}.png")
    with pytest.raises(InputError, match="all its rows are alike"):
        load(same)


# ---- what is read, and held out


def test_a_folder_a_table_and_parquet_hold_the_same(tmp_path):
    captions = [f"picture number {i}" for i in range(30)]
    found = [load(write_folder(tmp_path / kind, captions, kind)) for kind in ("jsonl", "csv")]
    stored = {
        "image": [str(tmp_path / "csv" / f"{i}.png") for i in range(30)],
        "text": captions,
    }
    features = Features({"image": ImageFeature(), "text": Value("string")})
    rows = Dataset.from_dict(stored, features)
    rows.to_parquet(tmp_path / "rows.parquet")
    rows.save_to_disk(tmp_path / "saved")
    found += [load(tmp_path / "rows.parquet"), load(tmp_path / "saved")]
    for examples in found[1:]:
        for split in ("train", "validation"):
            for column in ("picture", "text"):
                assert examples[split][column][:] == found[0][split][column][:]
    sizes = [len(found[0][split]) for split in ("train", "validation")]
    assert sizes == [27, 3]
    number = int(found[0]["train"][0]["text"].split()[-1])
    assert found[0]["train"][0]["picture"] == resized(picture(number), PROCESSOR).tobytes()


def test_captions_of_one_picture_are_on_one_side(tmp_path):
    folder = write_folder(tmp_path / "own", [f"one of the captions {i}" for i in range(40)])
    for i in range(40):
        picture(i // 2).save(folder / f"{i}.png")
    examples = load(folder)
    sides = [set(examples[split]["picture"]) for split in ("train", "validation")]
    assert len(examples["validation"]) == 4 and not sides[0] & sides[1]


def test_made_pictures_hold_out_pairs_whose_parts_are_seen():
    limits = {"train": 600, "validation": 100}
    rows = list(made_pictures(limits, 3))
    pairs = {
        split: {
            (row["colour"], row["shape"].split("s")[0]) for row in rows if row["split"] == split
        }
        for split in limits
    }
    assert not pairs["train"] & pairs["validation"] and len(pairs["validation"]) == 4
    for part in range(2):
        assert {pair[part] for pair in pairs["validation"]} <= {
            pair[part] for pair in pairs["train"]
        }
    again = list(made_pictures(limits, 3))
    assert [row["image"].tobytes() for row in again] == [row["image"].tobytes() for row in rows]
    other = list(made_pictures(limits, 4))
    assert [row["text"] for row in other] != [row["text"] for row in rows]


def test_a_made_caption_says_what_is_drawn():
    """Where the pixels of its colour lie, and how many pieces they are."""
    from scipy.ndimage import label

    words = load_sample_data("finetune_picture", "shapes")
    for row in made_pictures({"train": 40, "validation": 20}, 1):
        numbers = np.asarray(row["image"]).astype(int)
        colour = np.array(words["colours"][row["colour"]])
        is_shape = np.abs(numbers - colour).max(axis=2) < 60
        ys, xs = is_shape.nonzero()
        assert [int(xs.mean() >= 16), int(ys.mean() >= 16)] == words["positions"][row["position"]]
        assert label(is_shape)[1] == 1 + words["counts"].index(row["count"]), row["text"]
        noun = row["shape"]
        assert row["text"] == f"{row['count']} {row['colour']} {noun} at the {row['position']}"
        assert (noun in words["shapes"]) == (row["count"] == "one")
