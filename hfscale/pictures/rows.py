"""Pictures and captions -> what the model reads."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from datasets import Dataset, DatasetDict
from transformers import PreTrainedTokenizerBase

from hfscale.data.layouts import IGNORED
from hfscale.data.tokens import encode_texts
from hfscale.pictures.model import size_of
from hfscale.process import InputError


def picture_rows(
    examples: DatasetDict, tokenizer: PreTrainedTokenizerBase, max_length: int
) -> DatasetDict:
    """Rows of `picture` (uint8, see `examples.FEATURES`), `decoder_input_ids` (EOS, the caption,
    EOS), `labels` (the same, -100 for the first), `num_tokens` (those that carry loss) and
    `num_bytes` (of the caption).

    Raises InputError: a caption that is longer than `max_length` tokens with both EOS.
    """
    rows = DatasetDict()
    for name, split in examples.items():
        rows[name] = _rows(split, tokenizer, max_length)
    return rows


def _rows(examples: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int) -> Dataset:
    eos = tokenizer.eos_token_id
    ids = [[eos, *tokens, eos] for tokens in encode_texts(examples["text"], tokenizer)]
    lengths = [len(row) for row in ids]
    if max(lengths) > max_length:
        i = lengths.index(max(lengths))
        raise InputError(
            f"{examples[i]['place']}: its caption has {lengths[i] - 2} tokens, and there is room "
            f"for {max_length - 2}; raise --max_position_embeddings, or shorten it"
        )
    columns = {
        "decoder_input_ids": ids,
        "labels": [[IGNORED, *row[1:]] for row in ids],
        "num_tokens": [length - 1 for length in lengths],
        "num_bytes": [len(text.encode()) for text in examples["text"]],
    }
    rows = examples.select_columns("picture")
    for name, values in columns.items():
        rows = rows.add_column(name, values)
    return rows


class PictureCollator:
    """Rows -> a batch: `pixel_values` (rows, 3, height, width) as the image processor computes
    them, and captions padded behind their EOS under label -100, where nothing looks back at it.
    """

    def __init__(self, processor: Any, eos_token_id: int):
        # Any: upstream declares these numbers in each kind of processor.
        self.eos_token_id = eos_token_id
        self.shape = (3, *size_of(processor))
        self.scale = processor.rescale_factor if processor.do_rescale else 1.0
        mean = processor.image_mean if processor.do_normalize else [0.0] * 3
        std = processor.image_std if processor.do_normalize else [1.0] * 3
        self.mean = torch.tensor(mean).view(3, 1, 1)
        self.std = torch.tensor(std).view(3, 1, 1)

    def pixel_values(self, pictures: Sequence[bytes]) -> torch.Tensor:
        """float32 (pictures, 3, height, width) of uint8 ones."""
        numbers = np.frombuffer(b"".join(pictures), np.uint8).reshape(-1, *self.shape)
        return (torch.from_numpy(numbers.astype(np.float32)) * self.scale - self.mean) / self.std

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """The batch of some rows of `picture_rows`."""
        length = max(len(row["labels"]) for row in rows)
        return {
            "pixel_values": self.pixel_values([row["picture"] for row in rows]),
            "decoder_input_ids": _padded(rows, "decoder_input_ids", length, self.eos_token_id),
            "labels": _padded(rows, "labels", length, IGNORED),
        }


def _padded(rows: Sequence[dict[str, Any]], name: str, length: int, filler: int) -> torch.Tensor:
    return torch.tensor([row[name] + [filler] * (length - len(row[name])) for row in rows])
