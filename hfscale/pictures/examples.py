"""Pictures with captions -> examples to train on and to judge by, held apart."""

import hashlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, DatasetDict, Features, List, Value
from datasets.fingerprint import Hasher
from PIL import Image
from transformers import BaseImageProcessor

from hfscale.data.caches import kept, stamps_of
from hfscale.data.files import reading as reading_source
from hfscale.pictures import made, reading
from hfscale.pictures.made import ATTRIBUTES, made_pictures
from hfscale.pictures.reading import Captioned, open_picture, read_pictures
from hfscale.process import InputError
from hfscale.tasks import sample_data
from hfscale.tasks.held_out import hold_out

MADE = "embedded:shapes"
DEFAULT_TRAIN_EXAMPLES = 12_000  # of the made set
LEAST_EXAMPLES = 10  # of which one is held out
FEATURES = Features(
    {
        "place": Value("string"),
        "picture": Value("binary"),  # uint8, (3, height, width), as large as the encoder takes it
        "text": Value("string"),
        "attributes": List(Value("string")),  # words of the caption, in the order of their names
        "split": Value("string"),
    }
)


def load_examples(args: Any, processor: BaseImageProcessor, seed: int) -> DatasetDict:
    """`train` and `validation`, with the columns of FEATURES but `split`.

    Every picture is opened once, here, so that a broken one is named before anything is trained.
    Of a source of one's own, at most a tenth and at most `validation_examples` are held out: those
    with the smallest hashes, and all captions of one picture on one side.

    Args:
        args: of the recipe; `attributes` become those of the made set, if that is read.
        processor: of the encoder; pictures get the size that it gives them.

    Raises:
        InputError: as `read_pictures` and `open_picture`; a missing or empty caption, an attribute
            that is not in its caption, too few pictures to hold one out.
    """
    limits = {
        "train": args.train_examples or DEFAULT_TRAIN_EXAMPLES,
        "validation": args.validation_examples,
    }
    if args.source == MADE:
        args.attributes = list(ATTRIBUTES)
        rows = _kept_rows(
            partial(_made_rows, limits, seed, processor),
            [limits, seed, processor.to_json_string(), _code_hash()],
        )
        return DatasetDict(
            {
                split: rows.filter(
                    lambda value, split=split: value == split,
                    input_columns="split",
                    keep_in_memory=True,
                    desc=f"Held apart: {split}",
                ).remove_columns("split")
                for split in limits
            }
        )
    if args.source.startswith("embedded:"):
        raise InputError(f"source {args.source}: unknown; there is {MADE}")
    captioned = list(read_pictures(args.source, args.image_column))
    # An empty or missing file is an error of the picture that it belongs to.
    files = [c.picture for c in captioned if isinstance(c.picture, Path) and c.picture.is_file()]
    content = [c.picture for c in captioned if isinstance(c.picture, bytes)]
    key = [
        [(c.place, c.columns) for c in captioned],
        stamps_of([str(path) for path in files]),
        content,
        [args.caption_column, args.attributes],
        processor.to_json_string(),
        _code_hash(),
    ]
    make = partial(_own_rows, captioned, args.caption_column, args.attributes, processor)
    with reading_source(f"source {args.source}"):
        rows = _kept_rows(make, key)
    return _held_apart(rows.remove_columns("split"), args, limits)


def _kept_rows(make: Any, key: list[Any]) -> Dataset:
    """What the generator `make` gives, from the cache if it was made before."""
    fingerprint = Hasher.hash(key)
    return kept(
        "pictures",
        key,
        lambda folder: Dataset.from_generator(
            make, features=FEATURES, cache_dir=str(folder), fingerprint=fingerprint
        ),
    )


def _made_rows(
    limits: dict[str, int], seed: int, processor: BaseImageProcessor
) -> Iterator[dict[str, Any]]:
    for i, row in enumerate(made_pictures(limits, seed)):
        yield {
            "place": f"{MADE}: row {i}",
            "picture": resized(row["image"], processor).tobytes(),
            "text": row["text"],
            "attributes": [row[name] for name in ATTRIBUTES],
            "split": row["split"],
        }


def _own_rows(
    captioned: list[Captioned],
    caption_column: str,
    attributes: list[str],
    processor: BaseImageProcessor,
) -> Iterator[dict[str, Any]]:
    for place, picture, columns in captioned:
        text = columns.get(caption_column)
        if caption_column not in columns:
            raise InputError(
                f"{place}: no column {caption_column}; it has {', '.join(columns)} (choose with "
                "--caption_column)"
            )
        if not isinstance(text, str) or not text.strip():
            raise InputError(f"{place}: the caption is empty; write one, or remove the row")
        yield {
            "place": place,
            "picture": resized(open_picture(place, picture), processor).tobytes(),
            "text": text.strip(),
            "attributes": [_attribute(place, name, columns, text) for name in attributes],
            "split": None,
        }


def _attribute(place: str, name: str, columns: dict[str, Any], text: str) -> str:
    value = columns.get(name)
    if not isinstance(value, str) or f" {value} " not in f" {text.strip()} ":
        raise InputError(
            f"{place}: attribute {name} is {value!r}, which are no words of the caption {text!r}; "
            "an attribute is a column with words of its caption"
        )
    return value


def resized(image: Image.Image, processor: BaseImageProcessor) -> np.ndarray:
    """uint8 (3, height, width): a picture in RGB in the size that the processor gives it."""
    batch = processor(image, do_rescale=False, do_normalize=False, return_tensors="np")
    return batch["pixel_values"][0].round().clip(0, 255).astype(np.uint8)


def _held_apart(rows: Dataset, args: Any, limits: dict[str, int]) -> DatasetDict:
    if len(rows) < LEAST_EXAMPLES:
        raise InputError(
            f"source {args.source}: {len(rows)} pictures; at least {LEAST_EXAMPLES} are needed to "
            "hold one out"
        )
    # Captions of one picture share this context, and stay on one side.
    named = [
        (str(i), {"context": hashlib.sha256(row["picture"]).hexdigest(), "text": row["text"]})
        for i, row in enumerate(rows)
    ]
    split = hold_out(named, min(limits["validation"], len(rows) // LEAST_EXAMPLES), [])
    if not split.train:
        raise InputError(
            f"source {args.source}: all its rows are alike, so none can be held out; give others"
        )
    train = [int(number) for number, _ in split.train]
    if args.train_examples:
        train = train[: args.train_examples]
    return DatasetDict(
        {
            "train": rows.select(train),
            "validation": rows.select([int(number) for number, _ in split.held_out]),
        }
    )


def _code_hash() -> str:
    """SHA-256 over the files whose change changes rows."""
    digest = hashlib.sha256(Path(__file__).read_bytes())
    for module in (made, reading):
        digest.update(Path(str(module.__file__)).read_bytes())
    words = sample_data.load_sample_data("finetune_picture", "shapes")
    digest.update(repr(words).encode())
    return digest.hexdigest()
