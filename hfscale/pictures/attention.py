"""Where a model looks while it writes a caption: its cross-attention over the patches of a picture.

In a head, the weights of a place in the text are softmax(q K^T / sqrt(d)), with the query q of that
place, the keys K of all that the encoder says, and the width d of the head (Vaswani et al. 2017,
arXiv:1706.03762, equation 1).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from datasets import Dataset
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from transformers import PreTrainedTokenizerBase, VisionEncoderDecoderModel

from hfscale.folders import CAPTION_ATTENTION
from hfscale.pictures.model import count_patches
from hfscale.pictures.rows import PictureCollator
from hfscale.report.pictures import in_picture

DRAWN = 3  # pictures
COLUMNS = 8  # words of a caption that are drawn


class Looked(NamedTuple):
    """A caption word by word."""

    words: list[str]
    maps: np.ndarray  # (words, rows, columns of patches): mean weight over layers and heads


@torch.inference_mode()
def cross_attention(
    model: VisionEncoderDecoderModel, pixel_values: torch.Tensor, decoder_input_ids: torch.Tensor
) -> torch.Tensor:
    """(batch, layers, heads, tokens, states of the encoder): the weights that the decoder itself
    computes; each row sums to 1. The model must have been loaded with `attn_implementation="eager"`
    (others return none).
    """
    outputs = model.eval()(
        pixel_values=pixel_values,
        decoder_input_ids=decoder_input_ids,
        output_attentions=True,
        use_cache=False,
    )
    return torch.stack(outputs.cross_attentions, dim=1)


def look(
    model: VisionEncoderDecoderModel,
    tokenizer: PreTrainedTokenizerBase,
    pixel_values: torch.Tensor,
    ids: Sequence[int],
) -> Looked:
    """The words of a caption, and for each the weights from which it was written: those of the
    place before it, which predicts it. A word of several tokens has their mean.

    Args:
        pixel_values: (3, height, width) of one picture.
        ids: of the caption, without EOS at either end.
    """
    eos = tokenizer.eos_token_id
    inputs = torch.tensor([[eos, *ids]], device=model.device)
    weights = cross_attention(model, pixel_values[None].to(model.device), inputs)[0]
    rows, columns = count_patches(model)
    # What stands before the patches, such as a ViT's [CLS], has no place in the picture.
    maps = weights.mean(dim=(0, 1))[:-1, -rows * columns :].view(-1, rows, columns).cpu().numpy()
    words: list[str] = []
    tokens_of_words: list[list[int]] = []
    for place, token in enumerate(ids):
        text = str(tokenizer.decode([token]))
        if not words or text.startswith(" "):
            words.append("")
            tokens_of_words.append([])
        words[-1] += text
        tokens_of_words[-1].append(place)
    of_words = np.stack([maps[places].mean(axis=0) for places in tokens_of_words])
    return Looked([word.strip() for word in words], of_words)


def draw_looked(
    pictures: Sequence[np.ndarray], looked: Sequence[Looked], references: Sequence[str], path: Path
) -> None:
    """A row for each picture: itself, and its first words with what the model looked at for each.

    Args:
        pictures: uint8 (height, width, 3).
    """
    columns = 1 + min(COLUMNS, max(len(each.words) for each in looked))
    figure = Figure(figsize=(1.3 * columns, 1.75 * len(pictures)), layout="constrained")
    grid: Any = figure.subplots(len(pictures), columns, squeeze=False)
    for row, picture, each, reference in zip(grid, pictures, looked, references, strict=True):
        for axes in row:
            axes.set_axis_off()
        row[0].imshow(picture)
        row[0].set_title(in_picture(f"picture:\n{reference}"), size=6, wrap=True)
        height, width = picture.shape[:2]
        # One scale for a caption; the shade grows with the root, so that small weights show.
        scale = PowerNorm(0.5, 0, each.maps.max())
        for axes, word, weights in zip(row[1:], each.words, each.maps, strict=False):
            axes.imshow(picture.mean(axis=2), cmap="gray", vmin=0, vmax=255, alpha=0.5)
            axes.imshow(
                weights,
                cmap="Reds",
                alpha=0.6,
                norm=scale,
                extent=(-0.5, width - 0.5, height - 0.5, -0.5),
            )
            axes.set_title(in_picture(word), size=9)
    figure.savefig(path, dpi=120)


def draw_captions(
    output_dir: str,
    tokenizer: PreTrainedTokenizerBase,
    collate: PictureCollator,
    examples: Dataset,
    captions: Sequence[str],
) -> None:
    """Write `caption_attention.png` beside a saved model: the first examples, and where it looked
    while it wrote their captions.
    """
    model = VisionEncoderDecoderModel.from_pretrained(output_dir, attn_implementation="eager")
    pictures, looked, references = [], [], []
    for example, caption in zip(examples.take(min(DRAWN, len(examples))), captions, strict=False):
        ids = tokenizer(caption, add_special_tokens=False)["input_ids"]
        if ids:  # of a model that has learned nothing yet there can be none
            picture = np.frombuffer(example["picture"], np.uint8).reshape(collate.shape)
            pictures.append(picture.transpose(1, 2, 0))
            pixel_values = collate.pixel_values([example["picture"]])[0]
            looked.append(look(model, tokenizer, pixel_values, ids))
            references.append(example["text"])
    if looked:
        draw_looked(pictures, looked, references, Path(output_dir, CAPTION_ATTENTION))
