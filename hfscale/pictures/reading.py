"""Pictures with captions as people keep them -> RGB, and what is wrong with them in one line."""

import io
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from datasets import Dataset, Image
from PIL import Image as PILImage
from PIL import ImageOps

from hfscale.data.files import find_files, kind_of, read_rows, reading
from hfscale.data.sources import load_saved, load_tables
from hfscale.process import InputError
from hfscale.shown import one_line

# Of the imagefolder layout of `datasets`: beside the pictures, with a column file_name.
METADATA = ("metadata.jsonl", "metadata.csv")
MOST_PIXELS = (
    50_000_000  # 200 MB when it is unpacked; of a file that says more, nothing is unpacked
)
SHOWN_CHARACTERS = 200  # of what Pillow says


class Captioned(NamedTuple):
    """A picture and what is known of it."""

    place: str  # where it stands, for errors
    picture: Path | bytes  # a file, or what one holds
    columns: dict[str, Any]  # all others


def read_pictures(source: str, image_column: str) -> Iterator[Captioned]:
    """The pictures of a folder with a metadata.jsonl or metadata.csv, of parquet files, a data set
    saved with `save_to_disk`, or one of the Hub; their files are not opened yet.

    Raises InputError: nothing there, or no pictures in it.
    """
    folder = Path(source)
    metadata = sorted(path for name in METADATA for path in folder.rglob(name))
    if folder.is_dir() and metadata:
        for path in metadata:
            yield from _of_metadata(path)
        return
    is_saved = (folder / "state.json").is_file() or (folder / "dataset_dict.json").is_file()
    if folder.is_dir() and not is_saved and not any(folder.rglob("*.parquet")):
        raise InputError(
            f"source {source}: no metadata.jsonl or metadata.csv in this folder; write one beside "
            "the pictures, with the columns file_name and text"
        )
    files = [] if is_saved else [path for path in find_files(source) if kind_of(path) == "parquet"]
    with reading(f"source {source}"):
        if files:
            rows = load_tables("parquet", [str(path) for path in files])
        else:
            rows = load_saved(source, None, "train")
    yield from _of_rows(source, rows, image_column)


def _of_metadata(path: Path) -> Iterator[Captioned]:
    for place, row in read_rows(path):
        name = row.get("file_name")
        if not isinstance(name, str) or not name:
            raise InputError(
                f"{path}{place}: no file_name; each line names its picture, beside this file; it "
                f"has {', '.join(row)}"
            )
        yield Captioned(f"{path}{place}", path.parent / name, row)


def _of_rows(source: str, rows: Dataset, image_column: str) -> Iterator[Captioned]:
    """Of a column of pictures as `datasets` keeps them: the bytes of a file, or its path."""
    feature = rows.features.get(image_column)
    is_stored = isinstance(feature, dict) and {"bytes", "path"} <= feature.keys()
    if not isinstance(feature, Image) and not is_stored:
        held = "holds no pictures" if feature else "is not there"
        raise InputError(
            f"source {source}: the picture column {image_column} {held}; it has "
            f"{', '.join(rows.column_names)} (choose with --image_column)"
        )
    rows = rows.cast_column(image_column, Image(decode=False))
    for i, row in enumerate(rows):
        stored = row.pop(image_column) or {}
        name = stored.get("path")
        place = f"{source}: row {i}" + (f" ({name})" if name else "")
        if not stored.get("bytes") and not name:
            raise InputError(f"{place}: no picture in it; remove the row")
        yield Captioned(place, stored.get("bytes") or Path(str(name)), row)


def open_picture(place: str, picture: Path | bytes) -> PILImage.Image:
    """A picture in RGB, turned as its camera noted; of an animation the first.

    Raises InputError: not there, broken, of too many pixels, or of more than 8 bits a colour.
    """
    named = f"{place}: {picture}" if isinstance(picture, Path) else place
    file = picture if isinstance(picture, Path) else io.BytesIO(picture)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Pillow's own, smaller limit, and of odd metadata
            with PILImage.open(file) as image:
                width, height = image.size
                if width * height <= MOST_PIXELS:
                    return to_rgb(ImageOps.exif_transpose(image))
    except PILImage.DecompressionBombError:
        width = height = 0
    except FileNotFoundError:
        raise InputError(f"{named}: no such picture; put it there, or remove the row") from None
    except InputError as error:
        raise InputError(f"{named}: {error}") from None
    except Exception as error:  # Pillow's readers raise errors of many kinds
        reason = one_line(str(error))[:SHOWN_CHARACTERS] or type(error).__name__
        raise InputError(
            f"{named}: cannot be read as a picture ({reason}); mend or remove it"
        ) from None
    size = f"{width:,} x {height:,} pixels" if width else "its size"
    raise InputError(
        f"{named}: {size} is more than the {MOST_PIXELS:,} pixels that are unpacked; make it "
        "smaller"
    )


def to_rgb(image: PILImage.Image) -> PILImage.Image:
    """In RGB: grey has three equal colours, what is transparent lies on white.

    Raises InputError: more than 8 bits a colour, which Pillow would cut off.
    """
    if image.mode.startswith(("I", "F")):
        raise InputError(
            f"its colours have more than 8 bits (Pillow's mode {image.mode}); save it with 8"
        )
    if image.has_transparency_data:
        opaque = image.convert("RGBA")
        white = PILImage.new("RGBA", opaque.size, "white")
        return PILImage.alpha_composite(white, opaque).convert("RGB")
    return image.convert("RGB")
