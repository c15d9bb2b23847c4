"""What a recipe is told about pictures, and about the two halves of a model that reads them."""

from dataclasses import dataclass, field
from typing import Literal


@dataclass
class PictureArguments:
    """Pictures with captions, what sees, what writes, and how captions are judged."""

    source: str = field(
        default="embedded:shapes",
        metadata={
            "help": "embedded:shapes, a folder of pictures with a metadata.jsonl or metadata.csv "
            "(file_name, text), .parquet files, a saved data set, or a Hub id"
        },
    )
    image_column: str = field(
        default="image", metadata={"help": "of tables: the column of pictures"}
    )
    caption_column: str = field(default="text", metadata={"help": "the column of captions"})
    attributes: list[str] = field(
        default_factory=list,
        metadata={
            "help": "columns with words of the caption, such as colour, that are judged one by one"
        },
    )
    train_examples: int | None = field(
        default=None,
        metadata={"help": "at most this many; default of embedded:shapes: 12,000", "min": 1},
    )
    validation_examples: int = field(
        default=500, metadata={"help": "held out: at most this many, or a tenth", "min": 1}
    )
    encoder: str = field(
        default="new",
        metadata={"help": "folder or Hub id of a ViT or its kin, or new: random weights"},
    )
    image_size: int = field(
        default=32,
        metadata={"help": "of a new encoder: pixels of a picture's side", "min": 1, "max": 10_000},
    )
    patch_size: int = field(
        default=8,
        metadata={"help": "of a new encoder: pixels of a patch's side", "min": 1, "max": 10_000},
    )
    encoder_layers: int = field(
        default=3,
        metadata={
            "help": "of a new encoder, which is as wide as the decoder",
            "min": 1,
            "max": 1000,
        },
    )
    model: str = field(
        default="new",
        metadata={"help": "what writes: folder or Hub id of a GPT-2, or new: random weights"},
    )
    tokenizer: str | None = field(
        default=None,
        metadata={
            "help": "train:<vocab size>, char, a folder or a Hub id; default: the checkpoint's own"
        },
    )
    max_new_tokens: int = field(default=32, metadata={"help": "longest caption", "min": 1})
    baseline: Literal["shuffled_pictures", "blank_pictures"] = field(
        default="shuffled_pictures",
        metadata={"help": "what the model is shown instead, to see whether it looks"},
    )
